"""Random prompts: the content of a prompt does not change the speed, and no cache can contain random ids."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property

from localqwen.engines.engine import Engine


class RandomPrompts:
    """Random ids from the engine's ordinary vocabulary: no control tokens, no unused rows."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @cached_property
    def _ordinary(self) -> Sequence[int]:
        stops = self._engine.stop_tokens
        return [token for token, piece in enumerate(self._engine.vocabulary()) if piece and token not in stops]

    def tokens(self, count: int, *seed: int) -> tuple[int, ...]:
        """Return `count` ids, the same for the same seed."""
        generator = random.Random(repr(seed))
        return tuple(generator.choices(self._ordinary, k=count))
