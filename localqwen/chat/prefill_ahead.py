"""What of the next turn's prompt is known when an answer has ended.

Qwen3's template drops the thinking of earlier answers, so the cached prefix ends where the last answer began, and the
next turn reads that answer again before it can reply. While nobody waits, an engine can read it: `next_turn` gives the
ids, `Engine.start(…, max_tokens=0)` computes them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from localqwen.chat.messages import Message, Request, Role
from localqwen.chat.prompts import ModelFacts, encode_request
from localqwen.engines.engine import Engine, Sampling
from localqwen.engines.scheduling import common_prefix

#: Seconds that reading ahead may keep a newcomer waiting, and the ids that it takes at least.
_LONGEST_READING = 0.15
_SMALLEST_SLICE = 8


def next_turn(request: Request, answer: Message, model: ModelFacts, *, thinking: bool) -> tuple[int, ...]:
    """The ids with which every next turn begins: the history with this answer as the template will show it, up to where
    the next user text (or, after calls, the first tool result) begins.

    The template is asked, not imitated: two prompts that differ in that text alone agree exactly so far. Raises
    TemplateError, and gives () for a request without messages.
    """
    if request.prompt is not None or not request.messages:
        return ()
    role: Role = "tool" if answer.tool_calls else "user"
    turns = [[*request.messages, answer, Message(role, text)] for text in ("a", "1")]
    first, second = (encode_request(request, turn, model, thinking)[0] for turn in turns)
    return tuple(first[: common_prefix(first, second)])


@dataclass(eq=False)
class Ahead:
    """What the next turn of a conversation begins with, and how many of these ids the engine has."""

    ids: tuple[int, ...]
    read: int

    @property
    def done(self) -> bool:
        return self.read >= len(self.ids)


class ReadingAhead:
    """Reads ids into an engine that has nothing else to do, in slices as short as a newcomer can wait. It leaves no run
    behind. Raises EngineError."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._slice = _SMALLEST_SLICE

    def begin(self, ids: tuple[int, ...]) -> Ahead:
        """With what the engine still holds of them."""
        return Ahead(ids, self._engine.cached_prefix(ids))

    def read(self, ahead: Ahead) -> None:
        """One slice."""
        began = time.perf_counter()
        self._compute(ahead.ids[: ahead.read + self._slice])
        ahead.read += self._slice
        self._adapt_slice(time.perf_counter() - began)

    def _compute(self, ids: Sequence[int]) -> None:
        run = self._engine.start(ids, Sampling(), max_tokens=0)
        while not run.finished:
            self._engine.step()

    def _adapt_slice(self, seconds: float) -> None:
        if 2 * seconds < _LONGEST_READING:
            self._slice *= 2
        elif seconds > _LONGEST_READING:
            self._slice = max(_SMALLEST_SLICE, self._slice // 2)
