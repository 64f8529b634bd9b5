"""Any OpenAI-compatible server, answering with the events of our own engines: the same code measures both.

What a server does not tell is taken from what streams: without `usage` a chunk counts as a token, and `approximate`
says so. The clock runs here, so the network between is in every figure; every request opens a
connection of its own.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from localqwen.chat.messages import Event, Finished, Request, Text, Thinking, Timing, ToolCall, Usage
from localqwen.errors import EngineError, EngineUnavailable, ModelNotFound, Unsupported, UsageError

#: Where servers put thinking: llama-server, SGLang and LM Studio; vLLM and mlx_lm.server.
_THINKING_FIELDS = ("reasoning_content", "reasoning")
_PATIENCE = httpx2.Timeout(10, read=600)
#: Servers close a connection after some number of requests, at worst while the next one is on its way.
_FRESH = httpx2.Limits(max_keepalive_connections=0)


class RemoteModel:
    """Each call of `stream` is one request; several threads may call at once.

    Raises EngineUnavailable where no server answers, ModelNotFound for a model that it does not have.
    """

    engine_name = "server"

    def __init__(self, url: str, name: str | None = None, *, key: str = "") -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--url {url} is no address of a server", "write it like http://127.0.0.1:8080/v1")
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(timeout=_PATIENCE, headers=headers, limits=_FRESH)
        self.approximate = False
        self.name = self._choose(name)

    def _choose(self, wanted: str | None) -> str:
        """The model that was asked for, else the only one that the server has."""
        try:
            answer = self._client.get(f"{self.url}/models")
        except httpx2.HTTPError as exc:
            raise EngineUnavailable(
                f"no server answers at {self.url}: {exc}", "start one, and end the address with /v1"
            ) from exc
        if answer.status_code == 404:
            raise EngineUnavailable(
                f"{self.url}/models is not there", "is it OpenAI-compatible? end the address with /v1"
            )
        _check(answer.status_code, answer.text)
        offered = [str(model["id"]) for model in answer.json().get("data", ())]
        if wanted in offered or (wanted and not offered):
            return wanted
        if wanted is None and len(offered) == 1:
            return offered[0]
        asked = f"{self.url} has no model {wanted!r}" if wanted else f"{self.url} has {len(offered)} models"
        raise ModelNotFound(asked, f"name one: {', '.join(offered) or 'it tells none'}")

    def stream(self, request: Request) -> Generator[Event, None, None]:
        answer = _Answer()
        try:
            with self._client.stream("POST", f"{self.url}/chat/completions", json=self._body(request)) as response:
                if response.status_code >= 400:
                    response.read()
                    _check(response.status_code, response.text)
                for chunk in _chunks(response.iter_lines()):
                    yield from answer.take(chunk)
        except httpx2.HTTPError as exc:
            raise EngineError(f"the server at {self.url} broke off: {exc or type(exc).__name__}", "try again") from exc
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
        """Tokens of a text, as far as can be told without the server's tokenizer: four characters each, which Qwen3
        needs for English. What was really sent is in the samples (`prompt_tokens`)."""
        return len(text) // 4

    def close(self) -> None:
        self._client.close()


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """OpenAI wants arguments as text."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else message


def _check(status: int, text: str) -> None:
    if status in (401, 403):
        raise Unsupported(f"the server refuses: {status}", "set LOCALQWEN_BENCH_KEY to its API key")
    if status >= 400:
        raise EngineError(f"the server answers {status}: {text[:300].strip()}", "look into the server's log")


def _chunks(lines: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of an event stream."""
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        try:
            chunk = json.loads(data)
        except ValueError as exc:
            raise EngineError(f"the server sent no JSON: {data[:100]}", "is it OpenAI-compatible?") from exc
        if "error" in chunk:
            raise EngineError(f"the server stopped: {chunk['error']}", "look into the server's log")
        yield chunk


@dataclass
class _Answer:
    """What has streamed of one answer."""

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
        told = self.usage or {}
        tokens = told.get("completion_tokens", self.thinking_chunks + self.text_chunks)
        thinking = (told.get("completion_tokens_details") or {}).get("reasoning_tokens")
        if thinking is None:  # a chunk is a token, or a fixed part of one
            chunks = self.thinking_chunks + self.text_chunks
            thinking = round(tokens * self.thinking_chunks / chunks) if chunks else 0
        cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Usage(told.get("prompt_tokens", 0), cached, tokens, thinking)
