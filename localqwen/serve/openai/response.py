"""Encode what the responses of OpenAI's APIs share: usage, timings, calls, log-probabilities, errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from localqwen.chat.messages import Finished, TokenLogprob, ToolCall
from localqwen.errors import BadField, ContextTooLong, LocalqwenError, ModelNotFound, WrongKey
from localqwen.serve import encoding
from localqwen.serve.api import ParsedRequest

_CODES = {ContextTooLong: "context_length_exceeded", ModelNotFound: "model_not_found", WrongKey: "invalid_api_key"}


def chunk(
    parsed: ParsedRequest, base: Mapping[str, Any], choice: Mapping[str, Any], finished: Finished | None
) -> bytes:
    """Return one event of a stream of completions. If the client wants the usage, it is null in every chunk but the
    last, as OpenAI does it."""
    data = {**base, "choices": [choice]}
    if parsed.include_usage:
        data["usage"] = None
    if finished:
        data["timings"] = timings(finished)
    return encoding.sse(data)


def end(parsed: ParsedRequest, base: Mapping[str, Any], finished: Sequence[Finished]) -> bytes:
    """Return the end of a stream of completions, with the usage of all answers if the client wants it."""
    if not parsed.include_usage:
        return encoding.DONE
    return encoding.sse({**base, "choices": [], "usage": usage(finished)}) + encoding.DONE


def failed(problem: LocalqwenError) -> bytes:
    """Return the end of a stream of completions whose answer failed in the middle."""
    return encoding.sse(error(problem)) + encoding.DONE


def usage(finished: Sequence[Finished]) -> dict[str, Any]:
    """Return the token counts of all answers together; they share one prompt."""
    first = finished[0].usage
    completion = sum(each.usage.completion_tokens for each in finished)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": sum(each.usage.thinking_tokens for each in finished)},
    }


def timings(finished: Finished) -> dict[str, Any]:
    """Return milliseconds and tokens per second under llama-server's names: `prompt_n` counts the prompt tokens that
    were computed, `cache_n` those found in the cache."""
    used, timing = finished.usage, finished.timing
    computed = used.prompt_tokens - used.cached_tokens
    return {
        "cache_n": used.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": timing.prompt_ms,
        "prompt_per_token_ms": _each(timing.prompt_ms, computed),
        "prompt_per_second": timing.prompt_per_second,
        "predicted_n": used.completion_tokens,
        "predicted_ms": timing.predicted_ms,
        "predicted_per_token_ms": _each(timing.predicted_ms, used.completion_tokens),
        "predicted_per_second": timing.predicted_per_second,
    }


def _each(milliseconds: float | None, tokens: int) -> float | None:
    return milliseconds / tokens if milliseconds is not None and tokens else None


def call(found: ToolCall, call_id: str) -> dict[str, Any]:
    """Return a tool call in OpenAI's format, its arguments as a JSON string."""
    function = {"name": found.name, "arguments": json.dumps(dict(found.arguments), ensure_ascii=False)}
    return {"id": call_id, "type": "function", "function": function}


def logprob(entry: TokenLogprob) -> dict[str, Any]:
    """Return the log-probability of one token and of the most likely ones in its place."""
    return {**_token(entry), "top_logprobs": [_token(other) for other in entry.top]}


def logprobs(entries: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Return the log-probabilities of a chat completion."""
    return {"content": [logprob(entry) for entry in entries], "refusal": None}


def _token(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.text, "logprob": finite(entry.logprob), "bytes": list(entry.token)}


def finite(value: float) -> float:
    """Return a log-probability that JSON can hold: OpenAI writes -9999 for a token that cannot occur."""
    return max(value, -9999.0)


def error(problem: LocalqwenError) -> Mapping[str, Any]:
    """Return the body of an error in OpenAI's format."""
    status = problem.http_status
    kind = "invalid_request_error" if status < 500 else "server_error"
    code = next((code for known, code in _CODES.items() if isinstance(problem, known)), None)
    body: dict[str, Any] = {
        "message": f"{problem.message} ({problem.hint})" if problem.hint else problem.message,
        "type": kind,
        "param": _parameter(problem),
        "code": code,
    }
    if isinstance(problem, ContextTooLong):  # the names are llama-server's
        body |= {"n_prompt_tokens": problem.prompt_tokens, "n_ctx": problem.context_length}
    return {"error": body}


def _parameter(problem: LocalqwenError) -> str | None:
    if isinstance(problem, BadField):
        return problem.field or None
    if isinstance(problem, ContextTooLong):
        return "messages"
    return "model" if isinstance(problem, ModelNotFound) else None
