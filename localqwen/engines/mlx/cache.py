"""Slots whose keys and values are MLX's caches."""

from __future__ import annotations

from dataclasses import dataclass, field

from localqwen.engines.mlx.model import Caches, trim
from localqwen.engines.scheduling import slots


@dataclass(eq=False)
class Slot(slots.Slot):
    """`caches` hold the keys and values of `tokens`, one cache per layer."""

    caches: Caches = field(kw_only=True)

    def settled(self) -> Caches:
        """Return the caches cut to `tokens`: an interrupted pass may have left more in some layers."""
        trim(self.caches, len(self.tokens))
        return self.caches
