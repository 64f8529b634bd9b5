"""Parse what Anthropic's two requests share: blocks into messages, thinking, tools, the format of an answer."""

from __future__ import annotations

from collections.abc import Iterator

from localqwen.chat.messages import JsonFormat, Message, Overrides, Request, Tool, ToolCall
from localqwen.errors import LocalqwenError
from localqwen.serve.api import EFFORTS, ParsedRequest
from localqwen.serve.fields import Fields, listed, shown

#: The separator between the blocks of one message.
_BLOCKS = "\n"


def parsed_request(fields: Fields, limit: int | None) -> ParsedRequest:
    """Return what the fields that `messages` and `count_tokens` share ask for. `limit` is `max_tokens`, or None if only
    the prompt matters."""
    fields.refuse({"mcp_servers": "is not supported: the client must run its tools itself"})
    think, budget = _thinking(fields, limit)
    tools, must_call, parallel = _tools(fields)
    thinking = fields.object("thinking")
    hidden = thinking is not None and thinking.one_of("display", ("summarized", "omitted")) == "omitted"
    request = Request(
        messages=[*_system(fields), *_messages(fields)],
        tools=tools,
        think=think,
        budget=budget,
        max_tokens=limit,
        stop=fields.stops("stop_sequences"),
        sampling=Overrides(
            temperature=fields.sampling("temperature"),
            top_p=fields.sampling("top_p"),
            top_k=fields.sampling("top_k"),
        ),
        format=_format(fields),
        must_call=must_call,
        read_calls=bool(tools),
        parallel_calls=parallel,
    )
    return ParsedRequest(
        model=fields.needed_text("model"),
        request=request,
        stream=fields.flag("stream") or False,
        show_thinking="hidden" if hidden else "apart",
    )


def _system(fields: Fields) -> list[Message]:
    """Return the system prompt: a string, or blocks of text."""
    text = _text(fields, "system")
    return [Message("system", text)] if text else []


def _text(fields: Fields, name: str) -> str:
    """Return a string, or the joined blocks of a list in which every block is text."""
    if isinstance(fields.data.get(name), str):
        return fields.text(name) or ""
    texts = []
    for block in fields.objects(name):
        if block.needed_text("type") != "text":
            raise _not_taken(block)
        texts.append(block.needed_text("text"))
    return _BLOCKS.join(texts)


def _document(block: Fields) -> str:
    """Return the text of a document block. Raise BadField if the document is not text."""
    source = block.object("source")
    if source is None or source.text("type") != "text":
        raise _not_taken(block)
    return source.needed_text("data")


def _not_taken(block: Fields) -> LocalqwenError:
    kind = block.needed_text("type")
    if kind in ("image", "document"):
        return block.wrong("type", f"is {shown(kind)}, which is not supported: Qwen3 reads text only")
    return block.wrong("type", f"is {shown(kind)}, which is not supported")


def _messages(fields: Fields) -> Iterator[Message]:
    listed = list(fields.objects("messages"))
    if not listed:
        raise fields.wrong("messages", "must have at least one message")
    for message in listed:
        role = message.one_of("role", ("user", "assistant", "system"))
        match role:
            case "user":
                yield from _user(message)
            case "assistant":
                yield _assistant(message)
            case "system":
                yield Message("system", _text(message, "content"))
            case _:
                raise message.wrong("role", "is missing")
    if role == "assistant":
        raise fields.wrong(
            "messages", "must not end with an assistant message: the model cannot continue an answer that you began"
        )


def _blocks(message: Fields) -> Iterator[Fields]:
    """Yield the blocks of a message; a string counts as one block of text."""
    if not message.has("content"):
        raise message.wrong("content", "is missing")
    if isinstance(message.data["content"], str):
        yield Fields({"type": "text", "text": message.data["content"]}, message.at("content"), message)
    else:
        yield from message.objects("content")


def _user(message: Fields) -> Iterator[Message]:
    """Yield the messages of a user's turn. Each tool result becomes a separate message; the text between them keeps its
    place."""
    texts: list[str] = []
    seen = False
    for block in _blocks(message):
        seen = True
        match block.needed_text("type"):
            case "text":
                texts.append(block.needed_text("text"))
            case "document":
                texts.append(_document(block))
            case "tool_result":
                if texts:
                    yield Message("user", _BLOCKS.join(texts))
                    texts = []
                yield _result(block)
            case _:
                raise _not_taken(block)
    if texts or not seen:
        yield Message("user", _BLOCKS.join(texts))


def _result(block: Fields) -> Message:
    """Return the message of a tool result. The template has no place for `is_error`, so the text says it."""
    text = _text(block, "content")
    if block.flag("is_error"):
        text = f"Error: {text}"
    return Message("tool", text, tool_call_id=block.needed_text("tool_use_id"))


def _assistant(message: Fields) -> Message:
    texts, thoughts, calls = [], [], []
    for block in _blocks(message):
        match block.needed_text("type"):
            case "text":
                texts.append(block.needed_text("text"))
            case "thinking":
                thoughts.append(block.needed_text("thinking"))
            case "redacted_thinking":
                continue  # another vendor's model encrypted it: it cannot be read
            case "tool_use":
                arguments = block.object("input")
                calls.append(
                    ToolCall(block.needed_text("name"), arguments.data if arguments else {}, block.needed_text("id"))
                )
            case _:
                raise _not_taken(block)
    return Message("assistant", _BLOCKS.join(texts), _BLOCKS.join(thoughts) or None, tuple(calls))


def _thinking(fields: Fields, limit: int | None) -> tuple[bool | None, int | None]:
    """Return the switch and the budget. Without `thinking`, and with "adaptive", the model and the soft switch decide,
    and `output_config.effort` gives the budget (see EFFORTS)."""
    config = fields.object("output_config") or Fields({})
    effort = config.one_of("effort", tuple(EFFORTS))
    thinking = fields.object("thinking")
    if thinking is None:
        return None, EFFORTS[effort] if effort else None
    match thinking.one_of("type", ("enabled", "disabled", "adaptive")):
        case "disabled":
            return False, None
        case "adaptive":
            return None, EFFORTS[effort] if effort else None
        case None:
            raise thinking.wrong("type", "is missing")
    budget = thinking.whole("budget_tokens", 1)
    if budget is None:
        raise thinking.wrong("budget_tokens", "is missing")
    if limit is not None and budget >= limit:
        raise thinking.wrong("budget_tokens", f"is {budget:,}, it must be less than max_tokens, which is {limit:,}")
    return True, budget


def _tools(fields: Fields) -> tuple[tuple[Tool, ...], tuple[str, ...], bool]:
    """Return the tools, the names of those of which the model must call one, and whether several calls are allowed."""
    tools = tuple(_tool(each) for each in fields.objects("tools"))
    choice = fields.object("tool_choice")
    if choice is None:
        return tools, (), True
    kind = choice.one_of("type", ("auto", "any", "tool", "none"))
    parallel = not choice.flag("disable_parallel_tool_use")
    names = tuple(tool.name for tool in tools)
    match kind:
        case "none":
            return (), (), True
        case "any":
            if not names:
                raise choice.wrong("type", "is 'any', but there are no tools")
            return tools, names, parallel
        case "tool":
            name = choice.needed_text("name")
            if name not in names:
                raise choice.wrong("name", f"is {shown(name)}, which is none of the tools: {listed(names) or 'none'}")
            return tools, (name,), parallel
        case None:
            raise choice.wrong("type", "is missing")
    return tools, (), parallel


def _tool(fields: Fields) -> Tool:
    if fields.text("type") not in (None, "custom"):
        raise fields.wrong(
            "type", f"is {shown(fields.text('type'))}, which is not supported: the client must run its tools itself"
        )
    schema = fields.object("input_schema")
    if schema is None:
        raise fields.wrong("input_schema", "is missing")
    return Tool(fields.needed_text("name"), fields.text("description") or "", schema.data)


def _format(fields: Fields) -> JsonFormat | None:
    config = fields.object("output_config") or Fields({})
    form = config.object("format") or fields.object("output_format")  # output_format is its older place
    if form is None:
        return None
    schema = form.object("schema")
    if form.one_of("type", ("json_schema",)) is None or schema is None:
        raise form.wrong("schema", "is missing")
    return JsonFormat(schema.data)
