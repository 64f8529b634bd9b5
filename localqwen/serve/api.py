"""What the APIs share: the request, what is known when its response begins, and how the response streams.

An API module offers, without I/O:

    read(body: Mapping[str, Any]) -> ParsedRequest        raises BadField and other LocalqwenErrors
    Stream(parsed, meta): media_type; feed(event, index) and end() -> bytes, error(error) -> bytes
    response_body(parsed, meta, answers: Sequence[Answer]) -> Mapping   the body of a response that is not streamed
    error(error: LocalqwenError) -> Mapping               the body of an error; its status is error.http_status
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from localqwen.chat.messages import Event, Request
from localqwen.errors import LocalqwenError

#: Where an answer's thinking goes: into a field of its own, into the text between its tags, or nowhere.
ShowThinking = Literal["apart", "inline", "hidden"]

#: `reasoning_effort` and Ollama's levels -> tokens of thinking; 0 is thinking off, None no limit. The Qwen team
#: advises budgets above 1,024 ("Thinking Budget" in its documentation).
EFFORTS: Mapping[str, int | None] = {
    "none": 0, "minimal": 512, "low": 2048, "medium": 8192, "high": None, "xhigh": None, "max": None,
}  # fmt: skip

#: The `keep_alive` of a model that stays loaded for ever.
FOR_EVER = math.inf


@dataclass(frozen=True)
class ParsedRequest:
    """The parsed body of a request, of any API. `model` is as the client wrote it, "" for the default one.

    `keep_alive` is how many seconds the model stays loaded afterwards (FOR_EVER: always, None: the server's setting).
    `answers` is OpenAI's `n`. Only the API's own Stream and response_body read `extra`.
    """

    model: str
    request: Request
    stream: bool = False
    include_usage: bool = False
    answers: int = 1
    show_thinking: ShowThinking = "apart"
    keep_alive: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ResponseMeta:
    """What is known before the first event. `id` is 24 random hex digits, `model` the name in the response, `created`
    seconds since 1970; `reasoning_fields` are the names of the fields that contain the thinking."""

    id: str
    model: str
    created: float
    reasoning_fields: tuple[str, ...] = ("reasoning_content", "reasoning")

    def call_id(self, index: int, number: int) -> str:
        """Return the id of tool call `number` (from 0) of answer `index`."""
        return f"call_{self.id[:16]}{index:x}{number:03x}"


class Stream(Protocol):
    """The encoder of a streamed response. `index` says to which of several answers (`n`) an event belongs, from 0."""

    media_type: str

    def feed(self, event: Event, index: int = 0) -> bytes:
        """Return what an event adds to the response; b"" if it shows nothing. The events of all answers pass through
        one Stream."""
        ...

    def end(self) -> bytes:
        """Return what ends the response, after the Finished of the last answer."""
        ...

    def error(self, error: LocalqwenError) -> bytes:
        """Return what ends the response if an answer failed after the response had begun."""
        ...
