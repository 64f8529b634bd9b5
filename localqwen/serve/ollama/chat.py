"""Ollama's `/api/chat`, and the responses of `/api/generate`. Pure functions, no I/O; see `localqwen.serve.api`.

`parsed.extra` has "api" (chat or generate), "name" (the model's name as the client wrote it), "num_ctx", and "load_ms":
the milliseconds that the request waited for its model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from localqwen.chat.answer import Answer
from localqwen.chat.messages import Event, Finished, Text, Thinking, TokenLogprob, ToolCall
from localqwen.errors import LocalqwenError, Unsupported
from localqwen.serve.api import ParsedRequest, ResponseMeta
from localqwen.serve.encoding import NDJSON, ndjson
from localqwen.serve.fields import Fields
from localqwen.serve.ollama.request import message, parsed_request
from localqwen.serve.openai import request as openai_request
from localqwen.serve.openai import response as openai_response

#: The first and the last second, since 1970, that `datetime` has.
_FIRST, _LAST = -62_135_596_800.0, 253_402_300_799.0


def read(body: Mapping[str, Any]) -> ParsedRequest:
    """Parse the body of a chat request. A request without messages loads or unloads the model: see `is_load`."""
    fields = Fields(body)
    messages = tuple(message(each) for each in fields.objects("messages"))
    if messages and messages[-1].role == "assistant":
        raise fields.wrong(
            "messages", "must not end with an assistant message: the model cannot continue an answer that you began"
        )
    tools = openai_request.tools(fields)
    return parsed_request(fields, messages, tools=tools, api="chat")


def is_load(parsed: ParsedRequest) -> bool:
    """Return whether nothing is to be answered: the model is to be loaded, or with `keep_alive` 0 unloaded."""
    return not parsed.request.messages and not parsed.request.prompt


def check_context(parsed: ParsedRequest, context_length: int) -> None:
    """Raise Unsupported if the request needs a context longer than `context_length` tokens, which the server
    decides."""
    wanted = parsed.extra["num_ctx"]
    if wanted is not None and wanted > context_length:
        raise Unsupported(
            f"options.num_ctx asks for a context of {wanted:,} tokens, this server's has {context_length:,}",
            "remove num_ctx, or start the server with a larger --ctx",
        )


class Stream:
    """Encodes the events as NDJSON: a line for each piece, then one with `done`, the counts and the durations."""

    media_type = NDJSON

    def __init__(self, parsed: ParsedRequest, meta: ResponseMeta) -> None:
        self._parsed = parsed
        self._meta = meta
        self._calls = 0
        self._last = b""

    def feed(self, event: Event, index: int = 0) -> bytes:
        """Return the line of one event; `index` is always 0."""
        match event:
            case Thinking(text):
                return self._line(_part(self._parsed, "", thinking=text))
            case Text(text, logprobs):
                return self._line(_part(self._parsed, text) | _logprobs_out(self._parsed, logprobs))
            case ToolCall():
                call = _call_out(event, self._meta, self._calls)
                self._calls += 1
                return self._line(_part(self._parsed, "", calls=[call]))
            case Finished():
                self._last = ndjson(
                    _base(self._parsed, self._meta) | _part(self._parsed, "") | _numbers(self._parsed, event)
                )
        return b""

    def _line(self, part: Mapping[str, Any]) -> bytes:
        return ndjson({**_base(self._parsed, self._meta), **part, "done": False})

    def end(self) -> bytes:
        """Return the last line."""
        return self._last

    def error(self, error: LocalqwenError) -> bytes:
        """Return the line of an error, after an answer that failed in the middle."""
        return ndjson(_error_body(error))


def response_body(parsed: ParsedRequest, meta: ResponseMeta, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the body of a response that is not streamed."""
    answer = answers[0]
    calls = [_call_out(call, meta, number) for number, call in enumerate(answer.tool_calls)]
    part = _part(parsed, answer.content, thinking=answer.thinking, calls=calls)
    logprobs = _logprobs_out(parsed, answer.logprobs)
    return _base(parsed, meta) | part | logprobs | _numbers(parsed, answer.end)


def loaded(parsed: ParsedRequest, meta: ResponseMeta) -> dict[str, Any]:
    """Return the response to a request that only loads or unloads the model (`is_load`)."""
    reason = "unload" if parsed.keep_alive == 0 else "load"
    return {**_base(parsed, meta), **_part(parsed, ""), "done": True, "done_reason": reason}


def error(error: LocalqwenError) -> dict[str, Any]:
    """Return the body of an error in Ollama's format."""
    return _error_body(error)


def _error_body(error: LocalqwenError) -> dict[str, Any]:
    return {"error": f"{error.message} ({error.hint})" if error.hint else error.message}


def timestamp(seconds: float) -> str:
    """Return seconds since 1970 in RFC 3339, UTC. A time of a file that no calendar has becomes the next one."""
    return datetime.fromtimestamp(min(max(seconds, _FIRST), _LAST), UTC).isoformat().replace("+00:00", "Z")


def _base(parsed: ParsedRequest, meta: ResponseMeta) -> dict[str, Any]:
    """Return the fields of every line. The name is the one that the client sent: clients compare them."""
    return {"model": parsed.extra["name"], "created_at": timestamp(meta.created)}


def _part(parsed: ParsedRequest, text: str, *, thinking: str = "", calls: Sequence[Any] = ()) -> dict[str, Any]:
    extra: dict[str, Any] = {"thinking": thinking} if thinking else {}
    if calls:
        extra["tool_calls"] = list(calls)
    if parsed.extra["api"] == "generate":
        return {"response": text, **extra}
    return {"message": {"role": "assistant", "content": text, **extra}}


def _call_out(call: ToolCall, meta: ResponseMeta, number: int) -> dict[str, Any]:
    function = {"index": number, "name": call.name, "arguments": dict(call.arguments)}
    return {"id": call.id or meta.call_id(0, number), "function": function}


def _logprobs_out(parsed: ParsedRequest, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    if parsed.request.logprobs is None or not logprobs:
        return {}
    return {"logprobs": [openai_response.logprob(each) for each in logprobs]}


def _numbers(parsed: ParsedRequest, finished: Finished) -> dict[str, Any]:
    """Return the counts, and the durations in nanoseconds; the total includes the time in which the model was loaded.
    `done_reason` is "stop" after a tool call too."""
    timing, usage, load_ms = finished.timing, finished.usage, parsed.extra.get("load_ms", 0.0)
    return {
        "done": True,
        "done_reason": "length" if finished.finish_reason == "length" else "stop",
        "total_duration": _nanoseconds(load_ms + (timing.total_ms or 0)),
        "load_duration": _nanoseconds(load_ms),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(timing.prompt_ms),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(timing.predicted_ms),
    }


def _nanoseconds(milliseconds: float | None) -> int:
    return round((milliseconds or 0) * 1e6)
