"""What a live run has in an engine, whichever it is."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from localqwen.errors import ContextTooLong, EngineError

S = TypeVar("S")
D = TypeVar("D")


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


@dataclass(eq=False)
class Decoding(Generic[S, D]):
    """Its slot, its sampler, and the ids whose keys and values are not there yet. `text` keeps half characters."""

    slot: S
    sampler: D
    todo: list[int]
    text: codecs.IncrementalDecoder = field(default_factory=_decoder)

    @property
    def whole(self) -> bool:
        return not self.text.getstate()[0]


def check_evaluation(tokens: Sequence[int], context_length: int, *, live: bool) -> None:
    """Before `Engine.evaluate` does any work. Raises EngineError while a run is live, and ContextTooLong."""
    if live:
        raise EngineError("the engine cannot evaluate a text while a run is live", "cancel the runs first")
    if len(tokens) > context_length:
        raise ContextTooLong(len(tokens), context_length)
