"""Whatever JSON comes, the readers of the Ollama and Anthropic APIs understand it or say which field is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from localqwen.errors import BadField
from localqwen.serve.anthropic import messages as anthropic_messages
from localqwen.serve.api import ParsedRequest
from localqwen.serve.ollama import chat as ollama_chat
from localqwen.serve.ollama import generate as ollama_generate
from localqwen.serve.ollama import models as ollama_models

NAMES = (
    "arguments", "budget_tokens", "content", "context", "display", "effort", "format", "function", "id", "images",
    "input", "input_schema", "is_error", "keep_alive", "logprobs", "max_tokens", "messages", "model", "name", "num_ctx",
    "num_predict", "options", "output_config", "parameters", "prompt", "raw", "role", "schema", "seed", "stop",
    "stop_sequences", "stream", "suffix", "system", "template", "temperature", "text", "think", "thinking",
    "tool_calls", "tool_choice", "tool_use_id", "tools", "top_k", "top_logprobs", "top_p", "type",
)  # fmt: skip
WORDS = (
    "user", "assistant", "system", "tool", "text", "thinking", "tool_use", "tool_result", "image", "enabled",
    "adaptive", "json", "json_schema", "any", "auto", "5m", "-1h", "low", "demo", "",
)  # fmt: skip
LEAF = some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.sampled_from(WORDS)
JSON = some.recursive(
    LEAF | some.text(max_size=5),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(NAMES), inner, max_size=6),
    max_leaves=25,
)
BODY = some.dictionaries(some.sampled_from(NAMES), JSON, max_size=8)
GOOD: Mapping[str, Any] = {
    "model": "demo",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "hi"}],
    "prompt": "hi",
}


def understood(read: Callable[[Mapping[str, Any]], Any], body: Mapping[str, Any]) -> Any:
    """What was read, or the name of the field that is wrong."""
    try:
        return read(body)
    except BadField as problem:
        return problem.field or pytest.fail(f"{problem} names no field")


@pytest.mark.parametrize(
    "read", [ollama_chat.read, ollama_generate.read, anthropic_messages.read, anthropic_messages.read_count]
)
def test_a_body_is_understood_or_the_wrong_field_is_named(read: Callable[[Mapping[str, Any]], ParsedRequest]) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(BODY)
    def check(body: dict[str, Any]) -> None:
        assert isinstance(understood(read, {**GOOD, **body}), ParsedRequest | str)

    check()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(BODY)
def test_a_pull_too(body: dict[str, Any]) -> None:
    assert understood(ollama_models.read_pull, body)
