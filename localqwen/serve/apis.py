"""Which API answers on which path, and in whose words an error on a path is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from localqwen.errors import LocalqwenError
from localqwen.serve import anthropic, ollama, openai_chat, openai_common, openai_completions, openai_responses
from localqwen.serve.asked import Answer, Asked, Head, Stream


class Api(Protocol):
    """What an API's module offers; see `localqwen.serve.asked`."""

    def read(self, body: Mapping[str, Any]) -> Asked: ...

    def Stream(self, asked: Asked, head: Head) -> Stream: ...

    def whole(self, asked: Asked, head: Head, answers: Sequence[Answer]) -> Mapping[str, Any]: ...

    def error(self, error: LocalqwenError) -> Mapping[str, Any]: ...


#: POST path -> the API that answers there.
ANSWERING: Mapping[str, Api] = {
    "/v1/chat/completions": openai_chat,
    "/v1/completions": openai_completions,
    "/v1/responses": openai_responses,
    "/v1/messages": anthropic,
}


def error_body(path: str, error: LocalqwenError) -> Mapping[str, Any]:
    """Each API's clients understand their own shape only; what belongs to none gets OpenAI's."""
    if path.startswith("/api/"):
        return ollama.error(error)
    if path.startswith("/v1/messages"):
        return anthropic.error(error)
    return openai_common.error(error)
