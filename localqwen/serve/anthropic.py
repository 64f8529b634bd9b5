"""Anthropic's API: `/v1/messages` and `/v1/messages/count_tokens`. Pure functions, no I/O.

Fields, events and errors as in Anthropic's API reference and its Python client. What has its own meaning here: without
`thinking` the model and the soft switch in the messages decide, as in every other API of this server; a budget may be
as small as one token; the signature of a thinking block is its sha256, which nobody checks when it comes back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from localqwen.chat.messages import (
    Event,
    Finished,
    JsonFormat,
    Message,
    Overrides,
    Request,
    Started,
    Text,
    Thinking,
    Tool,
    ToolCall,
    Usage,
)
from localqwen.errors import LocalqwenError
from localqwen.serve.asked import EFFORTS, Answer, Asked, Head
from localqwen.serve.fields import Fields
from localqwen.serve.wire import SSE, sse

#: HTTP status -> the type of an error.
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
#: Between the blocks of one message.
_BLOCKS = "\n"


def read(body: Mapping[str, Any]) -> Asked:
    """Of `/v1/messages`."""
    fields = Fields(body)
    limit = fields.whole("max_tokens", 1)
    if limit is None:
        raise fields.wrong("max_tokens", "is missing")
    return _asked(fields, limit)


def read_count(body: Mapping[str, Any]) -> Asked:
    """Of `/v1/messages/count_tokens`: the same without a limit; what is counted is the prompt."""
    return _asked(Fields(body), None)


def _asked(fields: Fields, limit: int | None) -> Asked:
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
        stop=fields.texts("stop_sequences"),
        sampling=Overrides(
            temperature=fields.number("temperature", 0, 100),
            top_p=fields.number("top_p", 0, 1),
            top_k=fields.whole("top_k", 0, 2**31 - 1),
        ),
        format=_format(fields),
        must_call=must_call,
        parallel_calls=parallel,
    )
    return Asked(
        model=fields.needed_text("model"),
        request=request,
        stream=fields.flag("stream") or False,
        show_thinking="hidden" if hidden else "apart",
    )


def _system(fields: Fields) -> list[Message]:
    """A string or blocks of text."""
    text = _text(fields, "system")
    return [Message("system", text)] if text else []


def _text(fields: Fields, name: str) -> str:
    """A string, or blocks of which all are text."""
    if isinstance(fields.data.get(name), str):
        return fields.text(name) or ""
    texts = []
    for block in fields.objects(name):
        if block.needed_text("type") != "text":
            raise _not_taken(block)
        texts.append(block.needed_text("text"))
    return _BLOCKS.join(texts)


def _not_taken(block: Fields) -> LocalqwenError:
    kind = block.needed_text("type")
    if kind in ("image", "document"):
        return block.wrong("type", f"is {kind!r}, which cannot be taken: Qwen3 reads text only")
    return block.wrong("type", f"is {kind!r}, which is not taken here")


def _messages(fields: Fields) -> Iterator[Message]:
    listed = list(fields.objects("messages"))
    if not listed:
        raise fields.wrong("messages", "must hold at least one message")
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
        raise fields.wrong("messages", "must not end with the assistant's: an answer is not begun for the model")


def _blocks(message: Fields) -> Iterator[Fields]:
    """The blocks of a message; a string is one of text."""
    if not message.has("content"):
        raise message.wrong("content", "is missing")
    if isinstance(message.data["content"], str):
        yield Fields({"type": "text", "text": message.data["content"]}, message.at("content"))
    else:
        yield from message.objects("content")


def _user(message: Fields) -> Iterator[Message]:
    """Results of tools become messages of their own; the text between them keeps its place."""
    texts: list[str] = []
    seen = False
    for block in _blocks(message):
        seen = True
        match block.needed_text("type"):
            case "text":
                texts.append(block.needed_text("text"))
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
    """`is_error` has no place in the template: the text says it."""
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
            case "tool_use":
                arguments = block.object("input")
                calls.append(
                    ToolCall(block.needed_text("name"), arguments.data if arguments else {}, block.needed_text("id"))
                )
            case _:
                raise _not_taken(block)
    return Message("assistant", _BLOCKS.join(texts), _BLOCKS.join(thoughts) or None, tuple(calls))


def _thinking(fields: Fields, limit: int | None) -> tuple[bool | None, int | None]:
    """The switch and the budget. "adaptive" leaves the switch to the model and the soft switch; `output_config.effort`
    then is a budget (see EFFORTS)."""
    thinking = fields.object("thinking")
    if thinking is None:
        return None, None
    match thinking.one_of("type", ("enabled", "disabled", "adaptive")):
        case "disabled":
            return False, None
        case "adaptive":
            config = fields.object("output_config") or Fields({})
            effort = config.one_of("effort", tuple(EFFORTS))
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
    """The tools, those of which one must be called, and whether there may be several calls."""
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
                raise choice.wrong("name", f"is {name!r}, which is none of the tools: {', '.join(names) or 'none'}")
            return tools, (name,), parallel
        case None:
            raise choice.wrong("type", "is missing")
    return tools, (), parallel


def _tool(fields: Fields) -> Tool:
    if fields.text("type") not in (None, "custom"):
        raise fields.wrong("type", f"is {fields.text('type')!r}: only tools that the client runs are taken")
    schema = fields.object("input_schema")
    if schema is None:
        raise fields.wrong("input_schema", "is missing")
    return Tool(fields.needed_text("name"), fields.text("description") or "", schema.data)


def _format(fields: Fields) -> JsonFormat | None:
    config = fields.object("output_config")
    form = config.object("format") if config else None
    if form is None:
        return None
    schema = form.object("schema")
    if form.one_of("type", ("json_schema",)) is None or schema is None:
        raise form.wrong("schema", "is missing")
    return JsonFormat(schema.data)


class Stream:
    """Server-sent events: the message, its blocks one after another, why it ended."""

    media_type = SSE

    def __init__(self, asked: Asked, head: Head) -> None:
        self._head = head
        self._limit = asked.request.max_tokens
        self._hidden = asked.show_thinking == "hidden"
        self._index = -1
        self._open = ""  # the type of the block that is open
        self._signature = hashlib.sha256()
        self._calls = 0
        self._last = b""

    def feed(self, event: Event, index: int = 0) -> bytes:
        match event:
            case Started():
                usage = _usage(Usage(event.prompt_tokens, event.cached_tokens))
                message = _message(self._head, [], usage)
                return _event("message_start", message=message)
            case Thinking(text):
                opened = self._enter("thinking", {"thinking": "", "signature": ""})
                self._signature.update(text.encode(errors="surrogatepass"))
                return opened if self._hidden else opened + self._delta("thinking_delta", thinking=text)
            case Text(text):
                return self._enter("text", {"text": ""}) + self._delta("text_delta", text=text)
            case ToolCall():
                return self._call(event)
            case Finished():
                self._last = self._close() + _event("message_delta", **_ending(event, self._limit))
        return b""

    def _call(self, call: ToolCall) -> bytes:
        """A block of its own: calls come whole."""
        start = _call(call, self._head, self._calls) | {"input": {}}
        self._calls += 1
        body = json.dumps(dict(call.arguments), ensure_ascii=False)
        begun = self._close() + self._begin("tool_use", start)
        return begun + self._delta("input_json_delta", partial_json=body) + self._close()

    def _enter(self, kind: str, block: Mapping[str, Any]) -> bytes:
        return b"" if self._open == kind else self._close() + self._begin(kind, block)

    def _begin(self, kind: str, block: Mapping[str, Any]) -> bytes:
        self._open = kind
        self._index += 1
        return _event("content_block_start", index=self._index, content_block={"type": kind, **block})

    def _delta(self, kind: str, **what: str) -> bytes:
        return _event("content_block_delta", index=self._index, delta={"type": kind, **what})

    def _close(self) -> bytes:
        if not self._open:
            return b""
        signed = b""
        if self._open == "thinking":
            signed = self._delta("signature_delta", signature=self._signature.hexdigest())
        self._open = ""
        return signed + _event("content_block_stop", index=self._index)

    def end(self) -> bytes:
        return self._last + _event("message_stop")

    def error(self, error: LocalqwenError) -> bytes:
        return sse(_error_body(error), "error")


def _event(kind: str, **data: Any) -> bytes:
    return sse({"type": kind, **data}, kind)


def whole(asked: Asked, head: Head, answers: Sequence[Answer]) -> dict[str, Any]:
    answer = answers[0]
    ending = _ending(answer.finished, asked.request.max_tokens)
    return {**_message(head, _content(asked, head, answer), ending["usage"]), **ending["delta"]}


def _content(asked: Asked, head: Head, answer: Answer) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    if answer.thinking:
        signature = hashlib.sha256(answer.thinking.encode(errors="surrogatepass")).hexdigest()
        shown = "" if asked.show_thinking == "hidden" else answer.thinking
        content.append({"type": "thinking", "thinking": shown, "signature": signature})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    return content + [_call(call, head, number) for number, call in enumerate(answer.calls)]


def _call(call: ToolCall, head: Head, number: int) -> dict[str, Any]:
    name = call.id or "toolu_" + head.call_id(0, number).removeprefix("call_")
    return {"type": "tool_use", "id": name, "name": call.name, "input": dict(call.arguments)}


def _message(head: Head, content: Sequence[Mapping[str, Any]], usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_{head.id}",
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": list(content),
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _ending(finished: Finished, limit: int | None) -> dict[str, Any]:
    delta = {"stop_reason": _reason(finished, limit), "stop_sequence": finished.stop}
    return {"delta": delta, "usage": _usage(finished.usage)}


def _reason(finished: Finished, limit: int | None) -> str:
    """A context that is full before `max_tokens` has a reason of its own."""
    if finished.stop is not None:
        return "stop_sequence"
    if finished.finish_reason == "tool_calls":
        return "tool_use"
    if finished.finish_reason == "stop":
        return "end_turn"
    full = limit is not None and finished.usage.completion_tokens < limit
    return "model_context_window_exceeded" if full else "max_tokens"


def _usage(usage: Usage) -> dict[str, Any]:
    """`input_tokens` are those that were not found in the cache: the sum is the prompt."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.thinking_tokens},
    }


def counted(tokens: int) -> dict[str, Any]:
    """The answer of `count_tokens`."""
    return {"input_tokens": tokens}


def error(error: LocalqwenError) -> dict[str, Any]:
    return _error_body(error)


def _error_body(error: LocalqwenError) -> dict[str, Any]:
    kind = _ERRORS.get(error.http_status, "api_error")
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return {"type": "error", "error": {"type": kind, "message": message}}
