"""One request between the two threads: the event loop makes it, the worker answers it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from localqwen.chat.messages import Event
from localqwen.errors import LocalqwenError
from localqwen.serve.api import Asked


@dataclass(frozen=True)
class Delivery:
    """An event of answer `index`, or the error that ends the request."""

    what: Event | LocalqwenError
    index: int = 0


@dataclass(eq=False)
class Job:
    """`model` is the resolved name. `cancelled` is set by the worker: nothing is delivered after it."""

    asked: Asked
    model: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    cancelled: bool = False


#: Takes what one step gave to all requests; called in the worker's thread.
Post = Callable[[Sequence[tuple[Job, Delivery]]], None]
