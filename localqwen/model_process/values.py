"""Requests, events and errors as plain data, and back. What comes back is checked: a child may have lost its mind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from localqwen import errors
from localqwen.chat.messages import (
    Event,
    Finished,
    JsonFormat,
    Message,
    PrefillProgress,
    Request,
    SamplingOverrides,
    Started,
    Text,
    Thinking,
    Timing,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)
from localqwen.errors import EngineError, LocalqwenError
from localqwen.model_process.frames import BrokenMessage

_SAMPLINGS = ("sampling", "thinking_sampling", "text_sampling")
#: The fields of a Request that are numbers, texts or None, and stay as they are.
_PLAIN = ("think", "budget", "max_tokens", "parallel_calls", "read_calls", "logprobs", "prompt")


def request_to_json(request: Request) -> dict[str, Any]:
    """Return a request as plain data."""
    return {
        "messages": [message.to_json() for message in request.messages],
        "tools": [_tool_to_json(tool) for tool in request.tools],
        "stop": list(request.stop),
        "must_call": list(request.must_call),
        "format": None if request.format is None else {"schema": request.format.schema},
        **{name: getattr(request, name).set_values() for name in _SAMPLINGS},
        **{name: getattr(request, name) for name in _PLAIN},
    }


def request_from_json(data: Mapping[str, Any]) -> Request:
    """Return the request that `request_to_json` made plain. Raise BrokenMessage for other data."""
    try:
        form = data["format"]
        rest: dict[str, Any] = {name: SamplingOverrides(**data[name]) for name in _SAMPLINGS}
        rest |= {name: data[name] for name in _PLAIN}
        return Request(
            messages=[Message.from_json(message) for message in data["messages"]],
            tools=[Tool(**tool) for tool in data["tools"]],
            stop=tuple(data["stop"]),
            must_call=tuple(data["must_call"]),
            format=None if form is None else JsonFormat(form["schema"]),
            **rest,
        )
    except (KeyError, TypeError, ValueError, AttributeError, errors.UsageError) as exc:
        raise BrokenMessage(f"a request that is not one: {exc}") from exc


def _tool_to_json(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


def event_to_json(event: Event) -> list[Any]:
    """Return an event as a list: its name, then its values."""
    match event:
        case Text(text, logprobs):
            return ["text", text, [_logprob_to_json(each) for each in logprobs]] if logprobs else ["text", text]
        case Thinking(text):
            return ["thinking", text]
        case Started(prompt, cached, thinking, warnings):
            return ["started", prompt, cached, thinking, list(warnings)]
        case ToolCall(name, arguments, number):
            return ["call", name, arguments, number]
        case PrefillProgress(done, total):
            return ["prefill", done, total]
        case Finished(reason, usage, timing, end, stop):
            return ["finished", reason, asdict(usage), asdict(timing), end, stop]


def event_from_json(data: Any) -> Event:
    """Return the event that `event_to_json` made plain. Raise BrokenMessage for other data."""
    match data:
        case ["text", str(text)]:
            return Text(text)
        case ["text", str(text), [*logprobs]]:
            return Text(text, tuple(map(_logprob_from_json, logprobs)))
        case ["thinking", str(text)]:
            return Thinking(text)
        case ["started", int(prompt), int(cached), bool(thinking), [*warnings]] if _all_text(warnings):
            return Started(prompt, cached, thinking, tuple(warnings))
        case ["call", str(name), dict(arguments), str(number)]:
            return ToolCall(name, arguments, number)
        case ["prefill", int(done), int(total)]:
            return PrefillProgress(done, total)
        case ["finished", "stop" | "length" | "tool_calls" as reason, usage, timing, end, None | str() as stop] if (
            end in (None, "model", "budget", "user")
        ):
            return Finished(reason, _usage(usage), _timing(timing), end, stop)
    raise BrokenMessage(f"an event that is not one: {str(data)[:100]}")


def _all_text(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _usage(data: Any) -> Usage:
    if _has_fields(data, Usage) and all(type(value) is int for value in data.values()):
        return Usage(**data)
    raise BrokenMessage("the counts of an answer are not counts")


def _timing(data: Any) -> Timing:
    if _has_fields(data, Timing) and all(value is None or type(value) in (int, float) for value in data.values()):
        return Timing(**data)
    raise BrokenMessage("the times of an answer are not times")


def _has_fields(data: Any, kind: type[Usage] | type[Timing]) -> bool:
    return isinstance(data, dict) and data.keys() == {field.name for field in fields(kind)}


def _logprob_to_json(value: TokenLogprob) -> list[Any]:
    # JSON has no bytes; latin-1 writes each byte as one character.
    return [value.token.decode("latin-1"), value.logprob, [_logprob_to_json(each) for each in value.top]]


def _logprob_from_json(data: Any) -> TokenLogprob:
    match data:
        case [str(token), int() | float() as logprob, [*top]] if all(ord(character) < 256 for character in token):
            return TokenLogprob(token.encode("latin-1"), logprob, tuple(map(_logprob_from_json, top)))
    raise BrokenMessage(f"a log probability that is not one: {str(data)[:100]}")


def error_to_json(error: LocalqwenError) -> dict[str, Any]:
    """Return an error as plain data: its class, message and hint, and what else its class takes."""
    data: dict[str, Any] = {"class": type(error).__name__, "message": error.message, "hint": error.hint}
    return data | {name: getattr(error, name) for name in _EXTRA.get(type(error).__name__, ())}


#: What errors carry beside message and hint.
_EXTRA = {
    "ContextTooLong": ("prompt_tokens", "context_length", "exact"),
    "Busy": ("retry_after",),
    "BadField": ("field",),
}


_EXTRA_TYPES: dict[str, type] = {"field": str, "exact": bool}


def error_from_json(data: Any) -> LocalqwenError:
    """Return the error that `error_to_json` made plain, of the same class: EngineError for a class that `errors` does
    not have. Raise BrokenMessage for other data."""
    match data:
        case {"class": str(name), "message": str(message), "hint": str(hint)}:
            kind = getattr(errors, name, None)
            if not (isinstance(kind, type) and issubclass(kind, LocalqwenError)):
                kind = EngineError
            error = kind.__new__(kind)
            LocalqwenError.__init__(error, message, hint)
            for extra in _EXTRA.get(kind.__name__, ()):
                setattr(error, extra, _extra(data, extra))
            return error
    raise BrokenMessage(f"an error that is not one: {str(data)[:100]}")


def _extra(data: Mapping[str, Any], name: str) -> Any:
    value = data.get(name)
    if type(value) is not _EXTRA_TYPES.get(name, int):
        raise BrokenMessage(f"an error whose {name} is {value!r}")
    return value
