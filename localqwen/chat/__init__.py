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
    def setup(self) -> str:
        """What computes at the moment, in a few words; "" where that is not known."""
        ...

    def stream(self, request: Request) -> Generator[Event, None, None]:
        """Started; Thinking, Text and ToolCall as they come, Working between them; Finished."""
        ...

    def read_ahead(self, request: Request, answer: Message) -> Iterator[None]:
        """Compute what a turn after this one will begin with, a short step per `next`; for while nobody waits."""
        ...

    def end_thinking(self) -> None:
        """End the thinking of the answer that streams: call it between two events."""
        ...

    def preset(self, request: Request) -> Mapping[str, float | int]:
        """The sampling that the first phase of this request would get, by name."""
        ...

    def close(self) -> None: ...
