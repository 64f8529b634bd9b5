"""What of the next turn's prompt is known when an answer has ended, and computing it while nobody waits.

Qwen3's template drops the thinking of earlier answers, so the cached prefix ends where the last answer began, and the
next turn computes that answer again before it can reply. An idle engine can do this ahead: `next_turn` returns the ids,
`Engine.start(…, max_tokens=0)` computes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from localqwen.chat.messages import Message, Request, Role
from localqwen.chat.model_info import ModelInfo
from localqwen.chat.prompts import encode_request
from localqwen.engines.engine import Engine, Sampling
from localqwen.engines.scheduling import common_prefix

#: Seconds that a slice may keep a newcomer waiting, and the fewest ids that one takes.
LONGEST_SLICE = 0.15
SMALLEST_SLICE = 8


def next_turn(request: Request, answer: Message, model: ModelInfo, *, thinking: bool) -> tuple[int, ...]:
    """Return the ids with which every next turn begins: the history with this answer as the template will show it, up
    to where the next user text (or, after calls, the first tool result) begins.

    The template is asked, not imitated: two prompts that differ in that text alone agree exactly so far. Returns () for
    a request without messages. Raise TemplateError.
    """
    if request.prompt is not None or not request.messages:
        return ()
    role: Role = "tool" if answer.tool_calls else "user"
    turns = [[*request.messages, answer, Message(role, text)] for text in ("a", "1")]
    first, second = (encode_request(request, turn, model, thinking)[0] for turn in turns)
    return tuple(first[: common_prefix(first, second)])


@dataclass(eq=False)
class PendingPrefix:
    """What the next turn of a conversation begins with, and how many of these ids the engine has computed."""

    ids: tuple[int, ...]
    computed: int

    @property
    def complete(self) -> bool:
        """Return whether the engine has all of it."""
        return self.computed >= len(self.ids)


class PrefillAhead:
    """Computes prefixes on an engine that has nothing else to do, in slices as short as a newcomer can wait: a slice
    doubles while it takes less than half of LONGEST_SLICE, and halves when it takes longer. It leaves no run behind."""

    def __init__(self, engine: Engine, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine = engine
        self._clock = clock
        self._slice = SMALLEST_SLICE

    def pending(self, ids: tuple[int, ...]) -> PendingPrefix:
        """Return the prefix with what the engine has cached of it."""
        return PendingPrefix(ids, self._engine.cached_prefix(ids))

    def compute_slice(self, pending: PendingPrefix) -> None:
        """Compute the next ids of the prefix. Raise EngineError."""
        began = self._clock()
        self._compute(pending.ids[: pending.computed + self._slice])
        pending.computed += self._slice
        self._adapt_slice(self._clock() - began)

    def _compute(self, ids: Sequence[int]) -> None:
        run = self._engine.start(ids, Sampling(), max_tokens=0)
        while not run.finished:
            self._engine.step()

    def _adapt_slice(self, seconds: float) -> None:
        if 2 * seconds < LONGEST_SLICE:
            self._slice *= 2
        elif seconds > LONGEST_SLICE:
            self._slice = max(SMALLEST_SLICE, self._slice // 2)
