"""Anthropic's API: `/v1/messages` and `/v1/messages/count_tokens`. Pure functions, no I/O.

Fields, events and errors are those of Anthropic's API reference and its Python client. Different here: without
`thinking` the model and the soft switch in the messages decide, as in every other API of this server; a budget may be
as small as one token; the signature of a thinking block is its sha256, which is not checked when it comes back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from localqwen.chat.answer import Answer
from localqwen.chat.messages import (
    Event,
    Finished,
    Started,
    Text,
    Thinking,
    ToolCall,
    Usage,
)
from localqwen.errors import LocalqwenError
from localqwen.serve.anthropic.request import parsed_request
from localqwen.serve.api import ParsedRequest, ResponseMeta
from localqwen.serve.encoding import SSE, sse
from localqwen.serve.fields import Fields

#: HTTP status -> the type of an error.
_ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def read(body: Mapping[str, Any]) -> ParsedRequest:
    """Parse the body of a messages request. Raise BadField if a field is wrong or cannot be obeyed."""
    fields = Fields(body)
    limit = fields.whole("max_tokens", 1)
    if limit is None:
        raise fields.wrong("max_tokens", "is missing")
    return parsed_request(fields, limit)


def read_count(body: Mapping[str, Any]) -> ParsedRequest:
    """Parse the body of a `count_tokens` request: the same without a limit, because only the prompt is counted."""
    return parsed_request(Fields(body), None)


class Stream:
    """Encodes the events as server-sent events: the message, its blocks one after another, and the reason for the
    end."""

    media_type = SSE

    def __init__(self, parsed: ParsedRequest, meta: ResponseMeta) -> None:
        self._meta = meta
        self._limit = parsed.request.max_tokens
        self._hidden = parsed.show_thinking == "hidden"
        self._index = -1
        self._open = ""  # the type of the open block
        self._signature = hashlib.sha256()
        self._calls = 0
        self._last = b""

    def feed(self, event: Event, index: int = 0) -> bytes:
        """Return the events that one event of the answer stands for; `index` is always 0."""
        match event:
            case Started():
                usage = _usage(Usage(event.prompt_tokens, event.cached_tokens))
                message = _message(self._meta, [], usage)
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
        """Return the events of one block: a call always arrives complete."""
        start = _call(call, self._meta, self._calls) | {"input": {}}
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
        """Return the last events: the reason, the usage, and the stop."""
        return self._last + _event("message_stop")

    def error(self, error: LocalqwenError) -> bytes:
        """Return an error event, after an answer that failed in the middle."""
        return sse(_error_body(error), "error")


def _event(kind: str, **data: Any) -> bytes:
    return sse({"type": kind, **data}, kind)


def response_body(parsed: ParsedRequest, meta: ResponseMeta, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the body of a response that is not streamed, a `message` object."""
    answer = answers[0]
    ending = _ending(answer.end, parsed.request.max_tokens)
    return {**_message(meta, _content(parsed, meta, answer), ending["usage"]), **ending["delta"]}


def _content(parsed: ParsedRequest, meta: ResponseMeta, answer: Answer) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    if answer.thinking:
        signature = hashlib.sha256(answer.thinking.encode(errors="surrogatepass")).hexdigest()
        shown = "" if parsed.show_thinking == "hidden" else answer.thinking
        content.append({"type": "thinking", "thinking": shown, "signature": signature})
    if answer.content:
        content.append({"type": "text", "text": answer.content})
    return content + [_call(call, meta, number) for number, call in enumerate(answer.tool_calls)]


def _call(call: ToolCall, meta: ResponseMeta, number: int) -> dict[str, Any]:
    """Return the block of a tool call."""
    name = call.id or "toolu_" + meta.call_id(0, number).removeprefix("call_")
    return {"type": "tool_use", "id": name, "name": call.name, "input": dict(call.arguments)}


def _message(meta: ResponseMeta, content: Sequence[Mapping[str, Any]], usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": f"msg_{meta.id}",
        "type": "message",
        "role": "assistant",
        "model": meta.model,
        "content": list(content),
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _ending(finished: Finished, limit: int | None) -> dict[str, Any]:
    delta = {"stop_reason": _reason(finished, limit), "stop_sequence": finished.stop}
    return {"delta": delta, "usage": _usage(finished.usage)}


def _reason(finished: Finished, limit: int | None) -> str:
    """Return the reason for the end. A context that is full before `max_tokens` has its own reason."""
    if finished.stop is not None:
        return "stop_sequence"
    if finished.finish_reason == "tool_calls":
        return "tool_use"
    if finished.finish_reason == "stop":
        return "end_turn"
    full = limit is not None and finished.usage.completion_tokens < limit
    return "model_context_window_exceeded" if full else "max_tokens"


def _usage(usage: Usage) -> dict[str, Any]:
    """Return the token counts. `input_tokens` excludes the cached ones: the sum is the prompt."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.thinking_tokens},
    }


def counted(tokens: int) -> dict[str, Any]:
    """Return the response of `count_tokens`."""
    return {"input_tokens": tokens}


def error(error: LocalqwenError) -> dict[str, Any]:
    """Return the body of an error in Anthropic's format."""
    return _error_body(error)


def _error_body(error: LocalqwenError) -> dict[str, Any]:
    usual = "invalid_request_error" if error.http_status < 500 else "api_error"
    kind = _ERRORS.get(error.http_status, usual)
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return {"type": "error", "error": {"type": kind, "message": message}}
