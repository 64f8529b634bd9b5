"""What Ollama's two answering calls share on the way in: the model's name, messages, options, thinking, keep_alive.

Fields as in Ollama's `docs/api.md`. What has its own meaning here: what must not or cannot be done as asked is an error
and never something else; penalties count generated tokens only; `<|im_start|>` and its kind are text in every field.
Unknown options (and those of loading, as `num_gpu`) are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from localqwen import units
from localqwen.chat.messages import JsonFormat, Message, Overrides, Request, Role, Tool, ToolCall
from localqwen.serve.api import EFFORTS, FOR_EVER, ParsedRequest
from localqwen.serve.fields import Fields, kind
from localqwen.serve.openai import request as openai_request

#: How Ollama's clients name a repository of a hub -> how we do.
_HUBS = {"hf.co/": "hf:", "huggingface.co/": "hf:", "modelscope.cn/": "ms:"}
_ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
NO_IMAGES = "cannot be taken: Qwen3 reads text only"


def model_name(parsed: str) -> str:
    """What a client of Ollama calls a model, as we call it."""
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
    if fields.list("images"):
        raise fields.wrong("images", NO_IMAGES)
    name = fields.one_of("role", tuple(_ROLES))
    if name is None:
        raise fields.wrong("role", "is missing")
    role = _ROLES[name]
    calls = tuple(_call(each) for each in fields.objects("tool_calls"))
    thinking = fields.text("thinking") or None
    if role != "assistant" and (calls or thinking):
        raise fields.wrong("role", f"is {role!r}, but only the assistant thinks and calls tools")
    return Message(role, fields.text("content") or "", thinking, calls, fields.text("tool_call_id") or "")


def _call(fields: Fields) -> ToolCall:
    function = fields.object("function")
    if function is None:
        raise fields.wrong("function", "is missing")
    arguments = openai_request.arguments(function, "arguments")
    return ToolCall(function.needed_text("name"), arguments, fields.text("id") or "")


def _think(fields: Fields) -> tuple[bool | None, int | None]:
    """The switch and the budget: true, false, or a level, which is a budget (see EFFORTS)."""
    value = fields.data.get("think")
    if isinstance(value, str):
        level = fields.one_of("think", tuple(EFFORTS))
        budget = EFFORTS[level or ""]
        return budget != 0, budget or None
    if value is not None and not isinstance(value, bool):
        raise fields.wrong("think", f"must be true, false or one of {', '.join(EFFORTS)}, not {kind(value)}")
    return value, None


def _limit(options: Fields) -> int | None:
    """Ollama's -1 (no limit), -2 (to the end of the context) and 0 are None: the context ends every answer."""
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
    """Seconds that the model stays loaded: a number, or a duration as "5m", "1h30m"; below 0 is for ever."""
    value = fields.data.get("keep_alive")
    seconds = units.parse_duration(value) if isinstance(value, str) else fields.number("keep_alive", -1e18, 1e18)
    if seconds is None and value is not None:
        raise fields.wrong("keep_alive", f'is {value!r}, it must be seconds or a duration such as "5m"')
    return FOR_EVER if seconds is not None and seconds < 0 else seconds
