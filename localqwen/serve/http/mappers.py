"""Which API answers on which path, and in whose words an error on a path is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from localqwen.chat.answer import Answer
from localqwen.errors import LocalqwenError
from localqwen.serve.anthropic import messages as anthropic_messages
from localqwen.serve.api import ParsedRequest, ResponseMeta, Stream
from localqwen.serve.ollama import chat as ollama_chat
from localqwen.serve.openai import chat as openai_chat
from localqwen.serve.openai import completions as openai_completions
from localqwen.serve.openai import response as openai_response
from localqwen.serve.openai import responses as openai_responses


class Api(Protocol):
    """What an API's module offers; see `localqwen.serve.api`."""

    def read(self, body: Mapping[str, Any]) -> ParsedRequest: ...

    def Stream(self, parsed: ParsedRequest, meta: ResponseMeta) -> Stream: ...

    def response_body(
        self, parsed: ParsedRequest, meta: ResponseMeta, answers: Sequence[Answer]
    ) -> Mapping[str, Any]: ...

    def error(self, error: LocalqwenError) -> Mapping[str, Any]: ...


#: POST path -> the API that answers there.
ANSWERING: Mapping[str, Api] = {
    "/v1/chat/completions": openai_chat,
    "/v1/completions": openai_completions,
    "/v1/responses": openai_responses,
    "/v1/messages": anthropic_messages,
}


def error_body(path: str, error: LocalqwenError) -> Mapping[str, Any]:
    """Each API's clients understand their own shape only; what belongs to none gets OpenAI's."""
    if path.startswith("/api/"):
        return ollama_chat.error(error)
    if path.startswith("/v1/messages"):
        return anthropic_messages.error(error)
    return openai_response.error(error)
