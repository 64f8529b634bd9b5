"""A model on any OpenAI-compatible server, as the events of our own engines, so that the same code measures both.

What a server does not report is estimated from the stream: without `usage` a chunk counts as a token, and `approximate`
marks this. The clock runs on this side, so every figure includes the network; every request opens a new connection.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from localqwen.chat.messages import Event, Finished, Request, Text, Thinking, Timing, ToolCall, Usage
from localqwen.errors import EngineError, EngineUnavailable, ModelNotFound, Unsupported, UsageError

#: The fields of thinking: the first in llama-server, SGLang and LM Studio, the second in vLLM and mlx_lm.server.
_THINKING_FIELDS = ("reasoning_content", "reasoning")
_PATIENCE = httpx2.Timeout(10, read=600)
#: Servers close a connection after a number of requests, in the worst case while the next request is being sent.
_FRESH = httpx2.Limits(max_keepalive_connections=0)


class RemoteModel:
    """A model on a server. Each call of `stream` is one request; several threads may call at the same time.

    Raise EngineUnavailable if no server answers, ModelNotFound if the server does not have the model.
    """

    engine_name = "server"

    def __init__(self, url: str, name: str | None = None, *, key: str = "") -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--url {url} is not the address of a server", "write it like http://127.0.0.1:8080/v1")
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(timeout=_PATIENCE, headers=headers, limits=_FRESH)
        self.approximate = False
        self.name = self._choose(name)

    def _choose(self, wanted: str | None) -> str:
        """Return the requested model, else the only one that the server has."""
        try:
            answer = self._client.get(f"{self.url}/models")
        except httpx2.HTTPError as exc:
            raise EngineUnavailable(
                f"no server answers at {self.url}: {exc}", "start a server, and end its address with /v1"
            ) from exc
        if answer.status_code == 404:
            raise EngineUnavailable(
                f"{self.url}/models does not exist", "use an OpenAI-compatible server, and end its address with /v1"
            )
        _check(answer.status_code, answer.text)
        offered = [str(model["id"]) for model in answer.json().get("data", ())]
        if wanted in offered or (wanted and not offered):
            return wanted
        if wanted is None and len(offered) == 1:
            return offered[0]
        message = f"{self.url} has no model {wanted!r}" if wanted else f"{self.url} has {len(offered)} models"
        raise ModelNotFound(message, f"name one: {', '.join(offered) or 'the server lists none'}")

    def stream(self, request: Request) -> Generator[Event, None, None]:
        """Yield the events of an answer."""
        answer = _Answer()
        try:
            with self._client.stream("POST", f"{self.url}/chat/completions", json=self._body(request)) as response:
                if response.status_code >= 400:
                    response.read()
                    _check(response.status_code, response.text)
                for chunk in _chunks(response.iter_lines()):
                    yield from answer.take(chunk)
        except httpx2.HTTPError as exc:
            raise EngineError(f"the server at {self.url} hung up: {exc or type(exc).__name__}", "try again") from exc
        self.approximate = self.approximate or answer.usage is None
        yield from answer.finish()

    def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [_message(message.to_json()) for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **request.sampling.set_values(),
        }
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        if request.tools:
            body["tools"] = [tool.to_json() for tool in request.tools]
        if request.think is not None:
            body["chat_template_kwargs"] = {"enable_thinking": request.think}
        if request.budget is not None:
            body["thinking_budget"] = request.budget
        return body

    def count(self, text: str) -> int:
        """Return the approximate number of tokens of a text, without the server's tokenizer: one for four characters,
        as Qwen3 needs for English. The samples have the true number (`prompt_tokens`)."""
        return len(text) // 4

    def close(self) -> None:
        """Do nothing: each request has its own connection."""
        self._client.close()


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message in OpenAI's format, which has arguments as text."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else message


def _check(status: int, text: str) -> None:
    if status in (401, 403):
        raise Unsupported(f"the server refuses the request: {status}", "set LOCALQWEN_BENCH_KEY to its API key")
    if status >= 400:
        raise EngineError(f"the server answers {status}: {text[:300].strip()}", "see the server's log")


def _chunks(lines: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON objects of an event stream."""
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        try:
            chunk = json.loads(data)
        except ValueError as exc:
            raise EngineError(f"the server did not send JSON: {data[:100]}", "use an OpenAI-compatible server") from exc
        if "error" in chunk:
            raise EngineError(f"the server stopped: {chunk['error']}", "see the server's log")
        yield chunk


@dataclass
class _Answer:
    """The part of one answer that has been streamed."""

    usage: Mapping[str, Any] | None = None
    reason: str = "stop"
    thinking_chunks: int = 0
    text_chunks: int = 0
    calls: dict[int, dict[str, str]] = field(default_factory=dict)

    def take(self, chunk: Mapping[str, Any]) -> Iterator[Event]:
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices", ()):
            self.reason = choice.get("finish_reason") or self.reason
            yield from self._delta(choice.get("delta") or {})

    def _delta(self, delta: Mapping[str, Any]) -> Iterator[Event]:
        thought = next((delta[name] for name in _THINKING_FIELDS if delta.get(name)), "")
        if thought:
            self.thinking_chunks += 1
            yield Thinking(thought)
        if delta.get("content"):
            self.text_chunks += 1
            yield Text(delta["content"])
        for call in delta.get("tool_calls") or ():
            known = self.calls.setdefault(call.get("index", 0), {"name": "", "arguments": ""})
            for name in known:
                known[name] += (call.get("function") or {}).get(name) or ""

    def finish(self) -> Iterator[Event]:
        for call in self.calls.values():
            try:
                yield ToolCall(call["name"], json.loads(call["arguments"] or "{}"))
            except ValueError:
                yield Text(call["arguments"])
        reason: Any = self.reason if self.reason in ("length", "tool_calls") else "stop"
        yield Finished(reason, self._usage(), Timing())

    def _usage(self) -> Usage:
        reported = self.usage or {}
        tokens = reported.get("completion_tokens", self.thinking_chunks + self.text_chunks)
        thinking = (reported.get("completion_tokens_details") or {}).get("reasoning_tokens")
        if thinking is None:  # a chunk is a token, or a fixed part of one
            chunks = self.thinking_chunks + self.text_chunks
            thinking = round(tokens * self.thinking_chunks / chunks) if chunks else 0
        cached = (reported.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Usage(reported.get("prompt_tokens", 0), cached, tokens, thinking)
