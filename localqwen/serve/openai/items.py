"""The parts of a response of OpenAI's `/v1/responses`: the items of its output, and the response around them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from localqwen.chat.messages import Finished, TokenLogprob, ToolCall
from localqwen.serve.api import ParsedRequest, ResponseMeta
from localqwen.serve.openai import response as openai_response

Item = dict[str, Any]
_PREFIXES = {"reasoning": "rs", "message": "msg", "call": "fc"}


def item_id(kind: str, meta: ResponseMeta, position: int) -> str:
    """Return the id of the item at `position` of a response's output; `kind` is reasoning, message or call."""
    return f"{_PREFIXES[kind]}_{meta.id}{position:02x}"


def status(finished: Finished) -> str:
    """Return the status of a finished response, and of the item that was being written at its end."""
    return "incomplete" if finished.finish_reason == "length" else "completed"


def written(kind: str, name: str, text: str, state: str = "completed", logprobs: Sequence[TokenLogprob] = ()) -> Item:
    """Return an output item with thinking (`kind` "reasoning") or text ("message"); `name` is its id."""
    if kind == "reasoning":
        part = {"type": "reasoning_text", "text": text}
        return {"id": name, "type": "reasoning", "summary": [], "content": [part], "status": state}
    entries = [openai_response.logprob(each) for each in logprobs]
    shown = {"type": "output_text", "text": text, "annotations": [], "logprobs": entries}
    return {"id": name, "type": "message", "role": "assistant", "status": state, "content": [shown]}


def called(found: ToolCall, meta: ResponseMeta, position: int) -> Item:
    """Return the output item of a tool call."""
    return {
        "id": item_id("call", meta, position),
        "type": "function_call",
        "call_id": meta.call_id(0, position),
        "name": found.name,
        "arguments": json.dumps(dict(found.arguments), ensure_ascii=False),
        "status": "completed",
    }


def response(
    parsed: ParsedRequest, meta: ResponseMeta, items: Sequence[Item], finished: Finished | None
) -> dict[str, Any]:
    """Return a response object with these output items; `finished` is None while the answer is not complete."""
    state = "in_progress" if finished is None else status(finished)
    return {
        "id": f"resp_{meta.id}",
        "object": "response",
        "created_at": int(meta.created),
        "status": state,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if state == "incomplete" else None,
        "model": meta.model,
        "output": list(items),
        "parallel_tool_calls": parsed.request.parallel_calls,
        "previous_response_id": None,
        "store": False,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {},
        "truncation": "disabled",
        **parsed.extra,
        "usage": _usage(finished) if finished else None,
    }


def _usage(finished: Finished) -> dict[str, Any]:
    used = finished.usage
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": used.thinking_tokens},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
