"""Parse what the requests of OpenAI's APIs share: messages, tools, sampling, thinking, the format of an answer.

Reads OpenAI's own fields, and those of vLLM, SGLang, llama-server and DashScope.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from localqwen.chat.messages import JsonFormat, Message, Overrides, Role, Tool, ToolCall
from localqwen.serve.api import EFFORTS, ShowThinking
from localqwen.serve.fields import Fields, listed, shown

ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "function": "tool",
}  # fmt: skip
_TEXT_PARTS = ("text", "input_text", "output_text")
#: The names of the thinking budget in DashScope, vLLM and llama-server.
_BUDGETS = ("thinking_budget", "thinking_token_budget", "reasoning_budget_tokens")
_SWITCHES = ("enabled", "disabled", "auto", "adaptive")
#: The largest `n`. The answers share one prompt; a larger number on one machine is a mistake.
MOST_ANSWERS = 16
#: The most log-probabilities in each place; OpenAI's own limit.
MOST_LOGPROBS = 20


#: Fields of other servers that would change the answer and that this server cannot obey -> why.
_CANNOT: Mapping[str, str] = {
    "logit_bias": "is not supported: this server cannot change the weight of single tokens",
    "min_tokens": "is not supported: the model decides where its answer ends",
    "ignore_eos": "is not supported: the model decides where its answer ends",
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "grammar", "regex",
         "ebnf", "json_schema"),
        "is not supported: describe the format in response_format, with the type json_schema",
    ),
}  # fmt: skip
#: Such fields of chat completion requests -> why.
_CANNOT_CHAT: Mapping[str, str] = {
    "functions": "is not supported: send the functions as tools",
    "audio": "is not supported: these models write text only",
    "web_search_options": "is not supported: this server does not search the web",
    "continue_final_message": "is not supported: the model cannot continue an answer that you began",
}


def refuse(fields: Fields) -> None:
    """Raise BadField if a field would change the answer and cannot be obeyed."""
    fields.refuse(_CANNOT)


def refuse_chat(fields: Fields) -> None:
    """Raise BadField if a field of a chat completion request would change the answer and cannot be obeyed."""
    fields.refuse({**_CANNOT, **_CANNOT_CHAT})
    if fields.flag("add_generation_prompt") is False:
        raise fields.wrong(
            "add_generation_prompt", "cannot be false: the model cannot continue an answer that you began"
        )
    if set(fields.texts("modalities")) - {"text"}:
        raise fields.wrong("modalities", "must be text: these models write text only")


def messages(fields: Fields) -> tuple[Message, ...]:
    """Return the conversation. Raise BadField if it is empty or holds something other than text."""
    if fields.list("messages") is None:
        raise fields.wrong("messages", "is missing")
    found = tuple(_message(each) for each in fields.objects("messages"))
    if not found:
        raise fields.wrong("messages", "is empty")
    return found


def _message(fields: Fields) -> Message:
    role = ROLES[fields.one_of("role", tuple(ROLES)) or _missing(fields, "role")]
    calls = tuple(_call(each) for each in fields.objects("tool_calls")) if role == "assistant" else ()
    if not fields.has("content") and role != "assistant":
        _missing(fields, "content")
    thinking = None
    if role == "assistant":
        thinking = fields.text("reasoning_content") if fields.has("reasoning_content") else fields.text("reasoning")
    return Message(role, content(fields, "content"), thinking, calls, fields.text("tool_call_id") or "")


def _missing(fields: Fields, name: str) -> str:
    raise fields.wrong(name, "is missing")


def content(fields: Fields, name: str) -> str:
    """Return a string, or the joined text of a list of parts; "" if the field is missing."""
    if not isinstance(fields.data.get(name), list):
        return fields.text(name) or ""
    return "".join(_part(part) for part in fields.objects(name))


def _part(part: Fields) -> str:
    kind = part.needed_text("type")
    if kind == "refusal":
        return part.needed_text("refusal")
    if kind not in _TEXT_PARTS:
        raise part.wrong("type", f"is {shown(kind)}: these models read text only", "remove images, audio and files")
    return part.needed_text("text")


def _call(fields: Fields) -> ToolCall:
    function = fields.object("function")
    if function is None:
        raise fields.wrong("function", "is missing")
    return ToolCall(function.needed_text("name"), arguments(function, "arguments"), fields.text("id") or "")


def arguments(fields: Fields, name: str) -> Mapping[str, Any]:
    """Return a call's arguments: a JSON object, or a string that contains one. An empty string stands for no
    arguments."""
    value = fields.data.get(name)
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        value = fields.json(name)
    if not isinstance(value, Mapping):
        raise fields.wrong(name, "must be a JSON object, or a string that contains one")
    return value


def tools(fields: Fields) -> tuple[Tool, ...]:
    """Return the functions that the model may call. OpenAI nests them under `function`; in the Responses API they are
    flat. Both forms are read."""
    return tuple(_tool(each) for each in fields.objects("tools"))


def _tool(fields: Fields) -> Tool:
    kind = fields.text("type") or "function"
    if kind != "function":
        raise fields.wrong("type", f"is {shown(kind)}: only functions are supported")
    function = (fields.object("function") if fields.has("function") else None) or fields
    parameters = function.object("parameters")
    name = function.needed_text("name")
    if not name:
        raise function.wrong("name", "is empty")
    return Tool(name, function.text("description") or "", parameters.data if parameters else {})


def tool_choice(fields: Fields, offered: Sequence[Tool]) -> tuple[Sequence[Tool], tuple[str, ...]]:
    """Return the tools to show to the model, and the names of those of which it must call one."""
    choice = fields.data.get("tool_choice")
    if choice is None or choice == "auto":
        return offered, ()
    if choice == "none":
        return (), ()
    names = tuple(tool.name for tool in offered)
    if choice == "required":
        if not names:
            raise fields.wrong("tool_choice", 'is "required", but there are no tools')
        return offered, names
    if isinstance(choice, str):
        raise fields.wrong("tool_choice", f"is {shown(choice)}, it must be none, auto, required or a function")
    chosen, known = Fields(choice, fields.at("tool_choice"), fields), dict.fromkeys(names)
    if chosen.text("type") == "allowed_tools":
        return _allowed_tools(chosen.object("allowed_tools") or chosen, offered, known)
    return offered, (_named_tool(chosen, known),)


def _allowed_tools(
    choice: Fields, offered: Sequence[Tool], names: Collection[str]
) -> tuple[Sequence[Tool], tuple[str, ...]]:
    """Return what `tool_choice` returns, for `allowed_tools`. If a call is required, all tools stay in the prompt,
    whose beginning then stays cached, and a grammar allows only the named ones. Otherwise only the named ones are
    shown."""
    allowed = tuple(_named_tool(each, names) for each in choice.objects("tools"))
    if choice.one_of("mode", ("auto", "required")) == "required":
        return offered, allowed
    chosen = frozenset(allowed)
    return tuple(tool for tool in offered if tool.name in chosen), ()


def _named_tool(choice: Fields, names: Collection[str]) -> str:
    if choice.text("type") not in (None, "function"):
        raise choice.wrong("type", f"is {shown(choice.text('type'))}: only functions are supported")
    function = choice.object("function") or choice
    name = function.needed_text("name")
    if name not in names:
        there_are = listed(names) or "there are none"
        raise function.wrong("name", f"is {shown(name)}, which is none of the tools: {there_are}")
    return name


def sampling(fields: Fields) -> Overrides:
    """Return the sampling parameters that the request sets, OpenAI's and those of vLLM and llama-server."""
    repetition = "repetition_penalty" if fields.has("repetition_penalty") else "repeat_penalty"
    return Overrides(
        temperature=fields.sampling("temperature"),
        top_p=fields.sampling("top_p"),
        top_k=0 if fields.data.get("top_k") == -1 else fields.sampling("top_k"),  # vLLM's word for "all"
        min_p=fields.sampling("min_p"),
        presence_penalty=fields.sampling("presence_penalty"),
        frequency_penalty=fields.sampling("frequency_penalty"),
        repetition_penalty=fields.sampling("repetition_penalty", repetition),
        seed=fields.whole("seed"),
    )


def limit(fields: Fields, *names: str) -> int | None:
    """Return the first of these fields that is given, in tokens; None if there is no limit, which llama-server writes
    as -1."""
    for name in names:
        value = fields.whole(name, -1, 2**31 - 1)
        if value == 0:
            raise fields.wrong(name, "is 0, it must be at least 1")
        if value is not None:
            return None if value == -1 else value
    return None


def thinking(fields: Fields) -> tuple[bool | None, int | None]:
    """Return the switch and the budget in tokens; None means unset. A switch or a budget wins over an effort."""
    template = fields.object("chat_template_kwargs")
    switches = [own.flag("enable_thinking") for own in (fields, template) if own is not None]
    own = fields.object("thinking")  # Anthropic's format, which other OpenAI-compatible APIs read too
    if own is not None:
        switches.append({"enabled": True, "disabled": False}.get(own.one_of("type", _SWITCHES) or ""))
    think = next((value for value in switches if value is not None), None)
    budget = _budget(fields, template, own)
    effort = _effort(fields)
    if effort is None or think is not None or budget is not None:
        return think, budget
    allowed = EFFORTS[effort]
    return allowed != 0, allowed or None


def _budget(fields: Fields, template: Fields | None, thinking: Fields | None) -> int | None:
    custom = fields.object("custom_params")  # SGLang
    places = [(own, name) for own in (fields, template, custom) for name in _BUDGETS]
    for own, name in [*places, (thinking, "budget_tokens")]:
        value = own.whole(name, -1, 2**31 - 1) if own is not None else None
        if value is not None:
            return None if value == -1 else value
    return None


def _effort(fields: Fields) -> str | None:
    effort = fields.one_of("reasoning_effort", tuple(EFFORTS))
    nested = fields.object("reasoning")  # the Responses API
    return nested.one_of("effort", tuple(EFFORTS)) if effort is None and nested is not None else effort


def show_thinking(fields: Fields) -> ShowThinking:
    """Return where thinking goes: vLLM's `include_reasoning` hides it, SGLang's `separate_reasoning` puts it into the
    text."""
    if fields.flag("include_reasoning") is False:
        return "hidden"
    return "inline" if fields.flag("separate_reasoning") is False else "apart"


def response_format(fields: Fields) -> JsonFormat | None:
    """Return the JSON format of the answer, or None for plain text."""
    given = fields.object("response_format")
    if given is None:
        return None
    kind = given.one_of("type", ("text", "json_object", "json_schema")) or _missing(given, "type")
    if kind == "text":
        return None
    holder = given.object("json_schema") if kind == "json_schema" else given
    if holder is None:
        raise given.wrong("json_schema", "is missing")
    schema = holder.object("schema")
    if schema is None and kind == "json_schema":
        raise holder.wrong("schema", "is missing")
    return JsonFormat(schema.data if schema else None)
