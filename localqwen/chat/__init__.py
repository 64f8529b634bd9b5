"""Messages in, events out: the chat layer that both engines and the server share."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Protocol

from localqwen.chat.messages import Event, Message, Request, ThinkingMode


class ChatModel(Protocol):
    """A model that answers. `close()` on the generator of `stream` is the one way to cancel an answer."""

    name: str
    engine_name: str
    thinking_mode: ThinkingMode
    context_length: int
    load_ms: float

    @property
    def backend_description(self) -> str:
        """Return what computes at the moment, in a few words; "" where that is not known."""
        ...

    def stream(self, request: Request) -> Generator[Event, None, None]:
        """Return the events of an answer: Started; Thinking, Text and ToolCall as they come, PrefillProgress between
        them; Finished."""
        ...

    def prefill_ahead(self, request: Request, answer: Message) -> Iterator[None]:
        """Compute what a turn after this answer will begin with, a short step per `next`; for while nobody waits."""
        ...

    def end_thinking(self) -> None:
        """End the thinking of the latest answer: call it between two of its events."""
        ...

    def preset(self, request: Request) -> Mapping[str, float | int]:
        """Return the sampling that the first phase of this request would get, by name."""
        ...

    def close(self) -> None:
        """Free the memory. Every later call raises EngineError, and so does the next event of a live answer."""
        ...
