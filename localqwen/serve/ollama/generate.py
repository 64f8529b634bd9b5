"""Ollama's `/api/generate`: a prompt instead of messages. Only the parsing differs from `/api/chat`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localqwen.chat.messages import Message
from localqwen.serve.api import ParsedRequest
from localqwen.serve.fields import Fields
from localqwen.serve.ollama.chat import Stream, error, response_body
from localqwen.serve.ollama.request import NO_IMAGES, parsed_request

__all__ = ["Stream", "error", "read", "response_body"]


def read(body: Mapping[str, Any]) -> ParsedRequest:
    """Parse the body of a generate request. A request without a prompt loads or unloads the model: see `chat.is_load`.
    With `raw` the model continues the prompt without a template."""
    fields = Fields(body)
    for name in ("suffix", "template"):
        if fields.text(name):
            raise fields.wrong(
                name, "is not supported: Qwen3 answers in its own chat template, and cannot fill gaps in a text"
            )
    if fields.list("context"):
        raise fields.wrong(
            "context",
            "is not supported: this server keeps no context",
            "send the conversation as messages to /api/chat",
        )
    if fields.list("images"):
        raise fields.wrong("images", NO_IMAGES)
    prompt, system = fields.text("prompt") or "", fields.text("system")
    if fields.flag("raw"):
        return _raw(fields, prompt, system)
    messages = (Message("user", prompt),) if prompt else ()
    if system and prompt:
        messages = (Message("system", system), *messages)
    return parsed_request(fields, messages, api="generate")


def _raw(fields: Fields, prompt: str, system: str | None) -> ParsedRequest:
    if system:
        raise fields.wrong("system", "cannot be used with raw: the model continues the prompt without a template")
    if fields.data.get("think"):
        raise fields.wrong("think", "cannot be used with raw: the model continues the prompt without a template")
    return parsed_request(fields, (), api="generate", prompt=prompt or None)
