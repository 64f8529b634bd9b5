"""Ollama's API, the two calls that answer: `/api/chat` and `/api/generate`. Pure functions, no I/O.

Fields and answers as in Ollama's `docs/api.md`. What has its own meaning here: an answer that must not or cannot be
given as asked is an error and never something else; penalties count generated tokens only; `<|im_start|>` and its kind
are text in every field, with `raw` too. Unknown options (and those of loading, as `num_gpu`) are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from localqwen.chat.messages import (
    Event,
    Finished,
    JsonFormat,
    Message,
    Overrides,
    Request,
    Text,
    Thinking,
    TokenLogprob,
    Tool,
    ToolCall,
)
from localqwen.errors import LocalqwenError, Unsupported
from localqwen.serve import openai_common, openai_fields
from localqwen.serve.asked import EFFORTS, FOR_EVER, Answer, Asked, Head
from localqwen.serve.fields import Fields, kind
from localqwen.serve.wire import NDJSON, ndjson

#: How Ollama's clients name a repository of a hub -> how we do.
_HUBS = {"hf.co/": "hf:", "huggingface.co/": "hf:", "modelscope.cn/": "ms:"}
_NO_IMAGES = "cannot be taken: Qwen3 reads text only"
#: A duration as Go writes it, "1h30m": parts of a number and a unit, in seconds.
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def model_name(asked: str) -> str:
    """What a client of Ollama calls a model, as we call it."""
    prefix = next((each for each in _HUBS if asked.lower().startswith(each)), None)
    return asked if prefix is None else _HUBS[prefix] + asked[len(prefix) :]


def read_chat(body: Mapping[str, Any]) -> Asked:
    """Of `/api/chat`. Without messages it asks to load the model, or to unload it: see `is_load`."""
    fields = Fields(body)
    messages = tuple(_message(each) for each in fields.objects("messages"))
    if messages and messages[-1].role == "assistant":
        raise fields.wrong("messages", "must not end with the assistant's: an answer is not begun for the model")
    tools = openai_fields.tools(fields)
    return _asked(fields, messages, tools=tools, api="chat")


def read_generate(body: Mapping[str, Any]) -> Asked:
    """Of `/api/generate`. Without a prompt it asks to load the model, or to unload it: see `is_load`."""
    fields = Fields(body)
    for name in ("suffix", "template"):
        if fields.text(name):
            raise fields.wrong(name, "cannot be given: Qwen3 answers in its own chat template and fills no gaps")
    if fields.list("context"):
        raise fields.wrong("context", "is not kept here", "send the conversation as messages to /api/chat")
    if fields.list("images"):
        raise fields.wrong("images", _NO_IMAGES)
    prompt, system = fields.text("prompt") or "", fields.text("system")
    if fields.flag("raw"):
        return _raw(fields, prompt, system)
    messages = (Message("user", prompt),) if prompt else ()
    if system and prompt:
        messages = (Message("system", system), *messages)
    return _asked(fields, messages, api="generate")


def _raw(fields: Fields, prompt: str, system: str | None) -> Asked:
    if system:
        raise fields.wrong("system", "cannot stand beside raw: the prompt is continued as it is")
    if fields.data.get("think"):
        raise fields.wrong("think", "cannot stand beside raw: the prompt is continued as it is")
    return _asked(fields, (), api="generate", prompt=prompt or None)


def _asked(
    fields: Fields,
    messages: Sequence[Message],
    *,
    api: str,
    tools: Sequence[Tool] = (),
    prompt: str | None = None,
) -> Asked:
    options = fields.object("options") or Fields({})
    think, budget = _think(fields)
    stream = fields.flag("stream")
    request = Request(
        messages=messages,
        tools=tools,
        think=think,
        budget=budget,
        max_tokens=_limit(options),
        stop=options.texts("stop"),
        sampling=_sampling(options),
        format=_format(fields),
        logprobs=_logprobs(fields),
        prompt=prompt,
    )
    return Asked(
        model=model_name(fields.needed_text("model")),
        request=request,
        stream=stream is None or stream,
        keep_alive=keep_alive(fields),
        extra={"api": api, "name": fields.needed_text("model"), "num_ctx": options.whole("num_ctx", 1, 2**31 - 1)},
    )


def is_load(asked: Asked) -> bool:
    """Whether nothing is to be answered: the model is to be loaded, or with `keep_alive` 0 unloaded."""
    return not asked.request.messages and asked.request.prompt is None


def check_context(asked: Asked, context_length: int) -> None:
    """The context is the server's; what would need a longer one is refused. Raises Unsupported."""
    wanted = asked.extra["num_ctx"]
    if wanted is not None and wanted > context_length:
        raise Unsupported(
            f"options.num_ctx asks for a context of {wanted:,} tokens, this server's holds {context_length:,}",
            "leave num_ctx out, or start the server with a larger --ctx",
        )


def _message(fields: Fields) -> Message:
    if fields.list("images"):
        raise fields.wrong("images", _NO_IMAGES)
    role = fields.one_of("role", ("system", "user", "assistant", "tool"))
    if role is None:
        raise fields.wrong("role", "is missing")
    calls = tuple(_call(each) for each in fields.objects("tool_calls"))
    thinking = fields.text("thinking") or None
    if role != "assistant" and (calls or thinking):
        raise fields.wrong("role", f"is {role!r}, but only the assistant thinks and calls tools")
    return Message(role, fields.text("content") or "", thinking, calls, fields.text("tool_call_id") or "")  # type: ignore[arg-type]


def _call(fields: Fields) -> ToolCall:
    function = fields.object("function")
    if function is None:
        raise fields.wrong("function", "is missing")
    arguments = openai_fields.arguments(function, "arguments")
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
        temperature=options.number("temperature", 0, 100),
        top_k=options.whole("top_k", 0, 2**31 - 1),
        top_p=options.number("top_p", 0, 1),
        min_p=options.number("min_p", 0, 1),
        presence_penalty=options.number("presence_penalty", -100, 100),
        frequency_penalty=options.number("frequency_penalty", -100, 100),
        repetition_penalty=options.number("repeat_penalty", 0.001, 100),
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
    top = fields.whole("top_logprobs", 0, 20)
    if not fields.flag("logprobs"):
        if top:
            raise fields.wrong("top_logprobs", "needs logprobs to be true")
        return None
    return top or 0


def keep_alive(fields: Fields) -> float | None:
    """Seconds that the model stays loaded: a number, or a duration as "5m", "1h30m"; below 0 is for ever."""
    value = fields.data.get("keep_alive")
    seconds = _duration(value) if isinstance(value, str) else fields.number("keep_alive", -1e18, 1e18)
    if seconds is None and value is not None:
        raise fields.wrong("keep_alive", f'is {value!r}, it must be seconds or a duration such as "5m"')
    return FOR_EVER if seconds is not None and seconds < 0 else seconds


def _duration(text: str) -> float | None:
    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if re.fullmatch(r"\d+(\.\d+)?", body):
        return sign * float(body)
    parts = _PART.findall(body)
    if not parts or "".join(number + unit for number, unit in parts) != body:
        return None
    return sign * sum(float(number) * _SECONDS[unit] for number, unit in parts)


class Stream:
    """NDJSON: a line for every piece, the last with `done` and the numbers."""

    media_type = NDJSON

    def __init__(self, asked: Asked, head: Head) -> None:
        self._asked = asked
        self._head = head
        self._calls = 0
        self._last = b""

    def feed(self, event: Event, index: int = 0) -> bytes:
        match event:
            case Thinking(text):
                return self._line(_part(self._asked, "", thinking=text))
            case Text(text, logprobs):
                return self._line(_part(self._asked, text) | _logprobs_out(self._asked, logprobs))
            case ToolCall():
                call = _call_out(event, self._head, self._calls)
                self._calls += 1
                return self._line(_part(self._asked, "", calls=[call]))
            case Finished():
                self._last = ndjson(_base(self._asked, self._head) | _part(self._asked, "") | _numbers(event))
        return b""

    def _line(self, part: Mapping[str, Any]) -> bytes:
        return ndjson({**_base(self._asked, self._head), **part, "done": False})

    def end(self) -> bytes:
        return self._last

    def error(self, error: LocalqwenError) -> bytes:
        return ndjson(_error_body(error))


def whole(asked: Asked, head: Head, answers: Sequence[Answer]) -> dict[str, Any]:
    answer = answers[0]
    calls = [_call_out(call, head, number) for number, call in enumerate(answer.calls)]
    part = _part(asked, answer.text, thinking=answer.thinking, calls=calls)
    logprobs = _logprobs_out(asked, answer.logprobs)
    return _base(asked, head) | part | logprobs | _numbers(answer.finished)


def loaded(asked: Asked, head: Head) -> dict[str, Any]:
    """The answer to a request that asks for none (`is_load`)."""
    reason = "unload" if asked.keep_alive == 0 else "load"
    return {**_base(asked, head), **_part(asked, ""), "done": True, "done_reason": reason}


def error(error: LocalqwenError) -> dict[str, Any]:
    return _error_body(error)


def _error_body(error: LocalqwenError) -> dict[str, Any]:
    return {"error": f"{error.message} ({error.hint})" if error.hint else error.message}


def timestamp(seconds: float) -> str:
    """Seconds since 1970 in RFC 3339, UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _base(asked: Asked, head: Head) -> dict[str, Any]:
    """Clients compare the name with the one they sent."""
    return {"model": asked.extra["name"], "created_at": timestamp(head.created)}


def _part(asked: Asked, text: str, *, thinking: str = "", calls: Sequence[Any] = ()) -> dict[str, Any]:
    extra: dict[str, Any] = {"thinking": thinking} if thinking else {}
    if calls:
        extra["tool_calls"] = list(calls)
    if asked.extra["api"] == "generate":
        return {"response": text, **extra}
    return {"message": {"role": "assistant", "content": text, **extra}}


def _call_out(call: ToolCall, head: Head, number: int) -> dict[str, Any]:
    function = {"index": number, "name": call.name, "arguments": dict(call.arguments)}
    return {"id": call.id or head.call_id(0, number), "function": function}


def _logprobs_out(asked: Asked, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    if asked.request.logprobs is None or not logprobs:
        return {}
    return {"logprobs": [openai_common.logprob(each) for each in logprobs]}


def _numbers(finished: Finished) -> dict[str, Any]:
    """Durations are nanoseconds, the total with what the request waited for its model to be loaded. A tool call ends
    an answer like any other: `done_reason` is "stop"."""
    timing, usage = finished.timing, finished.usage
    return {
        "done": True,
        "done_reason": "length" if finished.finish_reason == "length" else "stop",
        "total_duration": _nanoseconds((timing.load_ms or 0) + (timing.total_ms or 0)),
        "load_duration": _nanoseconds(timing.load_ms),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(timing.prompt_ms),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(timing.predicted_ms),
    }


def _nanoseconds(milliseconds: float | None) -> int:
    return round((milliseconds or 0) * 1e6)
