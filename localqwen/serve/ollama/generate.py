"""Ollama's `/api/generate`: a prompt instead of messages. Everything but the reading is as in `/api/chat`."""

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
    """Without a prompt it asks to load the model, or to unload it: see `ollama.is_load`. With `raw` the prompt is
    continued as it stands."""
    fields = Fields(body)
    for name in ("suffix", "template"):
        if fields.text(name):
            raise fields.wrong(name, "cannot be given: Qwen3 answers in its own chat template and fills no gaps")
    if fields.list("context"):
        raise fields.wrong("context", "is not kept here", "send the conversation as messages to /api/chat")
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
        raise fields.wrong("system", "cannot stand beside raw: the prompt is continued as it is")
    if fields.data.get("think"):
        raise fields.wrong("think", "cannot stand beside raw: the prompt is continued as it is")
    return parsed_request(fields, (), api="generate", prompt=prompt or None)
