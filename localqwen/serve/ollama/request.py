"""Parse what `/api/chat` and `/api/generate` share: the model's name, messages, options, thinking, keep_alive.

The fields are those of Ollama's `docs/api.md`. Different here: a field that cannot be obeyed is an error; penalties
count generated tokens only; `<|im_start|>` and similar are text in every field. Unknown options, and those of loading,
such as `num_gpu`, are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from localqwen import units
from localqwen.chat.messages import JsonFormat, Message, Overrides, Request, Role, Tool, ToolCall
from localqwen.serve.api import EFFORTS, FOR_EVER, ParsedRequest
from localqwen.serve.fields import Fields, kind, shown
from localqwen.serve.openai import request as openai_request

#: The prefix of a hub's repository in Ollama's clients -> localqwen's prefix.
_HUBS = {"hf.co/": "hf:", "huggingface.co/": "hf:", "modelscope.cn/": "ms:"}
_ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
NO_IMAGES = "cannot be used: Qwen3 reads text only"


def model_name(parsed: str) -> str:
    """Return localqwen's name of a model that an Ollama client names: `hf.co/owner/repo:quant` is
    `hf:owner/repo:quant`."""
    prefix = next((each for each in _HUBS if parsed.lower().startswith(each)), None)
    return parsed if prefix is None else _HUBS[prefix] + parsed[len(prefix) :]


def parsed_request(
    fields: Fields,
    messages: Sequence[Message],
    *,
    api: str,
    tools: Sequence[Tool] = (),
    prompt: str | None = None,
) -> ParsedRequest:
    """Return what the fields that `/api/chat` and `/api/generate` share ask for. `api` is "chat" or "generate";
    `prompt` replaces the messages."""
    options = fields.object("options") or Fields({})
    think, budget = _think(fields)
    stream = fields.flag("stream")
    request = Request(
        messages=messages,
        tools=tools,
        think=think,
        budget=budget,
        max_tokens=_limit(options),
        stop=options.stops("stop"),
        sampling=_sampling(options),
        format=_format(fields),
        logprobs=_logprobs(fields),
        prompt=prompt if messages else prompt or "",  # nothing at all asks to load the model
        read_calls=bool(tools),
    )
    return ParsedRequest(
        model=model_name(fields.needed_text("model")),
        request=request,
        stream=stream is None or stream,
        keep_alive=keep_alive(fields),
        extra={
            "api": api,
            "name": fields.needed_text("model"),
            "num_ctx": options.whole("num_ctx", 1, 2**31 - 1),
        },
    )


def message(fields: Fields) -> Message:
    """Return one message of a conversation. Raise BadField if it holds an image, or its role does not fit its
    fields."""
    if fields.list("images"):
        raise fields.wrong("images", NO_IMAGES)
    name = fields.one_of("role", tuple(_ROLES))
    if name is None:
        raise fields.wrong("role", "is missing")
    role = _ROLES[name]
    calls = tuple(_call(each) for each in fields.objects("tool_calls"))
    thinking = fields.text("thinking") or None
    if role != "assistant" and (calls or thinking):
        raise fields.wrong("role", f"is {role!r}, but only an assistant message can have thinking and tool_calls")
    return Message(role, fields.text("content") or "", thinking, calls, fields.text("tool_call_id") or "")


def _call(fields: Fields) -> ToolCall:
    function = fields.object("function")
    if function is None:
        raise fields.wrong("function", "is missing")
    arguments = openai_request.arguments(function, "arguments")
    return ToolCall(function.needed_text("name"), arguments, fields.text("id") or "")


def _think(fields: Fields) -> tuple[bool | None, int | None]:
    """Return the switch and the budget. `think` is true, false, or a level, which stands for a budget (see EFFORTS)."""
    value = fields.data.get("think")
    if isinstance(value, str):
        level = fields.one_of("think", tuple(EFFORTS))
        budget = EFFORTS[level or ""]
        return budget != 0, budget or None
    if value is not None and not isinstance(value, bool):
        raise fields.wrong("think", f"must be true, false or one of {', '.join(EFFORTS)}, not {kind(value)}")
    return value, None


def _limit(options: Fields) -> int | None:
    """Return the largest number of tokens. Ollama's -1 (no limit), -2 (to the end of the context) and 0 become None:
    the context ends every answer."""
    limit = options.whole("num_predict", -2)
    return limit if limit is not None and limit > 0 else None


def _sampling(options: Fields) -> Overrides:
    seed = options.whole("seed", -1, 2**63 - 1)
    return Overrides(
        temperature=options.sampling("temperature"),
        top_k=options.sampling("top_k"),
        top_p=options.sampling("top_p"),
        min_p=options.sampling("min_p"),
        presence_penalty=options.sampling("presence_penalty"),
        frequency_penalty=options.sampling("frequency_penalty"),
        repetition_penalty=options.sampling("repetition_penalty", "repeat_penalty"),
        seed=None if seed == -1 else seed,
    )


def _format(fields: Fields) -> JsonFormat | None:
    value = fields.data.get("format")
    if value is None or value == "":
        return None
    if isinstance(value, Mapping):
        return JsonFormat(value)
    if value == "json":
        return JsonFormat()
    raise fields.wrong("format", 'must be "json" or a JSON schema')


def _logprobs(fields: Fields) -> int | None:
    top = fields.whole("top_logprobs", 0, openai_request.MOST_LOGPROBS)
    if not fields.flag("logprobs"):
        if top:
            raise fields.wrong("top_logprobs", "needs logprobs to be true")
        return None
    return top or 0


def keep_alive(fields: Fields) -> float | None:
    """Return the seconds that the model stays loaded: a number, or a duration such as "5m" or "1h30m"; a negative one
    means for ever."""
    value = fields.data.get("keep_alive")
    seconds = units.parse_duration(value) if isinstance(value, str) else fields.number("keep_alive", -1e18, 1e18)
    if seconds is None and value is not None:
        raise fields.wrong("keep_alive", f'is {shown(value)}, it must be seconds or a duration such as "5m"')
    return FOR_EVER if seconds is not None and seconds < 0 else seconds
