"""OpenAI's `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from localqwen._version import __version__
from localqwen.chat.answer import Answer
from localqwen.chat.messages import Event, Finished, Request, Started, Text, Thinking, ToolCall
from localqwen.errors import LocalqwenError
from localqwen.serve import encoding
from localqwen.serve.api import ParsedRequest, ResponseMeta
from localqwen.serve.fields import Fields
from localqwen.serve.openai import request as openai_request
from localqwen.serve.openai import response as openai_response

error = openai_response.error
_FINGERPRINT = f"localqwen-{__version__}"


def read(body: Mapping[str, Any]) -> ParsedRequest:
    """Parse the body of a chat completion request. Raise BadField if a field is wrong or cannot be obeyed."""
    fields = Fields(body)
    openai_request.refuse_chat(fields)
    think, budget = openai_request.thinking(fields)
    tools, must_call = openai_request.tool_choice(fields, openai_request.tools(fields))
    options = fields.object("stream_options")
    request = Request(
        messages=openai_request.messages(fields),
        tools=tools,
        think=think,
        budget=budget,
        max_tokens=openai_request.limit(fields, "max_completion_tokens", "max_tokens"),
        stop=fields.stops("stop"),
        sampling=openai_request.sampling(fields),
        format=openai_request.response_format(fields),
        must_call=must_call,
        read_calls=bool(tools),
        parallel_calls=fields.flag("parallel_tool_calls") is not False,
        logprobs=_logprobs(fields),
    )
    return ParsedRequest(
        fields.text("model") or "",
        request,
        stream=fields.flag("stream") or False,
        include_usage=bool(options and options.flag("include_usage")),
        answers=fields.whole("n", 1, openai_request.MOST_ANSWERS) or 1,
        show_thinking=openai_request.show_thinking(fields),
    )


def _logprobs(fields: Fields) -> int | None:
    top = fields.whole("top_logprobs", 0, openai_request.MOST_LOGPROBS)
    if fields.flag("logprobs"):
        return top or 0
    if top:
        raise fields.wrong("top_logprobs", 'needs "logprobs": true')
    return None


class Stream:
    """Encodes the events as `chat.completion.chunk` objects, then `[DONE]`."""

    media_type = encoding.SSE

    def __init__(self, parsed: ParsedRequest, meta: ResponseMeta) -> None:
        self._parsed = parsed
        self._meta = meta
        self._calls: dict[int, int] = {}
        self._inside: set[int] = set()  # answers with an open think tag in their text
        self._finished: list[Finished] = []

    def feed(self, event: Event, index: int = 0) -> bytes:
        """Return the chunks of one event of answer `index`."""
        match event:
            case Started():
                return self._chunk(index, {"role": "assistant", "content": ""})
            case Thinking(text):
                return self._thinking(index, text)
            case Text(text, logprobs):
                return self._close_tag(index) + self._chunk(index, {"content": text}, logprobs=logprobs)
            case ToolCall():
                return self._close_tag(index) + self._chunk(index, {"tool_calls": [self._call(index, event)]})
            case Finished():
                self._finished.append(event)
                return self._close_tag(index) + self._chunk(index, {}, finished=event)
        return b""

    def end(self) -> bytes:
        """Return the usage, if the client wants it, and `[DONE]`."""
        return openai_response.end(self._parsed, self._base(), self._finished)

    def error(self, error: LocalqwenError) -> bytes:
        """Return the error and `[DONE]`, after an answer that failed in the middle."""
        return openai_response.failed(error)

    def _thinking(self, index: int, text: str) -> bytes:
        if self._parsed.show_thinking == "hidden":
            return b""
        if self._parsed.show_thinking == "apart":
            return self._chunk(index, dict.fromkeys(self._meta.reasoning_fields, text))
        opened = "" if index in self._inside else "<think>\n"
        self._inside.add(index)
        return self._chunk(index, {"content": opened + text})

    def _close_tag(self, index: int) -> bytes:
        if index not in self._inside:
            return b""
        self._inside.discard(index)
        return self._chunk(index, {"content": "\n</think>\n\n"})

    def _call(self, index: int, found: ToolCall) -> dict[str, Any]:
        number = self._calls.get(index, 0)
        self._calls[index] = number + 1
        return {"index": number, **openai_response.call(found, self._meta.call_id(index, number))}

    def _base(self) -> dict[str, Any]:
        return _base(self._meta, "chat.completion.chunk")

    def _chunk(
        self, index: int, delta: Mapping[str, Any], *, logprobs: Sequence[Any] = (), finished: Finished | None = None
    ) -> bytes:
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": openai_response.logprobs(logprobs) if logprobs else None,
            "finish_reason": finished.finish_reason if finished else None,
        }
        return openai_response.chunk(self._parsed, self._base(), choice, finished)


def response_body(parsed: ParsedRequest, meta: ResponseMeta, answers: Sequence[Answer]) -> Mapping[str, Any]:
    """Return the body of a response that is not streamed, a `chat.completion` object."""
    finished = [answer.end for answer in answers]
    return {
        **_base(meta, "chat.completion"),
        "choices": [_choice(parsed, meta, index, answer) for index, answer in enumerate(answers)],
        "usage": openai_response.usage(finished),
        "timings": openai_response.timings(finished[0]),
    }


def _base(meta: ResponseMeta, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{meta.id}",
        "object": kind,
        "created": int(meta.created),
        "model": meta.model,
        "system_fingerprint": _FINGERPRINT,
    }


def _choice(parsed: ParsedRequest, meta: ResponseMeta, index: int, answer: Answer) -> dict[str, Any]:
    text = answer.content
    if parsed.show_thinking == "inline" and answer.thinking:
        text = f"<think>\n{answer.thinking}\n</think>\n\n{text}"
    message: dict[str, Any] = {
        "role": "assistant",
        "content": text or (None if answer.tool_calls else ""),
        "refusal": None,
    }
    if parsed.show_thinking == "apart" and answer.thinking:
        message |= dict.fromkeys(meta.reasoning_fields, answer.thinking)
    if answer.tool_calls:
        ids = (meta.call_id(index, number) for number in range(len(answer.tool_calls)))
        message["tool_calls"] = [openai_response.call(*pair) for pair in zip(answer.tool_calls, ids, strict=False)]
    return {
        "index": index,
        "message": message,
        "logprobs": openai_response.logprobs(answer.logprobs) if parsed.request.logprobs is not None else None,
        "finish_reason": answer.end.finish_reason,
    }
