"""What of the next turn's prompt is known when an answer has ended, and computing it while nobody waits.

`NextTurns` keeps the answers that have ended until their next turn is known, and these until they are computed.

Qwen3's template drops the thinking of earlier answers, so the cached prefix ends where the last answer began, and the
next turn computes that answer again before it can reply. An idle engine can do this ahead: `next_turn` returns the ids,
`Engine.start(…, max_tokens=0)` computes them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from localqwen.chat.encoding import encode_parts
from localqwen.chat.messages import Message, Request, Role
from localqwen.chat.model_info import ModelInfo
from localqwen.chat.prompts import OnStage, render_request, unnoticed
from localqwen.engines.engine import Engine, Sampling
from localqwen.engines.scheduling import common_prefix
from localqwen.errors import ContextTooLong

T = TypeVar("T")

#: Seconds that a slice may keep a newcomer waiting, and the fewest ids that one takes.
LONGEST_SLICE = 0.15
SMALLEST_SLICE = 8
#: Tokens at the end of a prompt that its continuation may lack: an empty think block, the first of a user's text.
_TAIL = 8


@dataclass(frozen=True, eq=False)
class EndedAnswer:
    """An answer that has ended, as `next_turn` takes it, and the ids of its prompt."""

    request: Request
    message: Message
    thinking: bool
    prompt: tuple[int, ...]


def next_turn(
    request: Request, answer: Message, model: ModelInfo, *, thinking: bool, on_stage: OnStage = unnoticed
) -> tuple[int, ...]:
    """Return the ids with which every next turn begins: the history with this answer as the template will show it, up
    to where the next user text (or, after calls, the first tool result) begins. It may be called in any thread.

    The template is asked, not imitated: two prompts that differ in that text alone agree exactly so far. Returns () for
    a request without messages, and where the history does not fit the context. Raise TemplateError.
    """
    if request.prompt is not None or not request.messages:
        return ()
    role: Role = "tool" if answer.tool_calls else "user"
    turns = [[*request.messages, answer, Message(role, text)] for text in ("a", "1")]
    first, second = (render_request(request, turn, model, thinking, on_stage=on_stage) for turn in turns)
    same = common_prefix(first, second)
    on_stage("text")
    try:
        ids = encode_parts(first[:same], model.tokenize, context_length=model.context_length)
        ends = [encode_parts(parts[same : same + 1], model.tokenize) for parts in (first, second)]
    except ContextTooLong:
        return ()
    ids += ends[0][: common_prefix(*ends)]
    return tuple(ids) if len(ids) < model.context_length else ()


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


class NextTurns:
    """The answers of one engine that have ended, and what of their next turns is still to be computed, the latest
    last. A conversation that has gone on is forgotten: to compute its last turn then would push out what its new one
    has cached."""

    def __init__(self, engine: Engine, context_length: int) -> None:
        self._context_length = context_length
        self._ahead = PrefillAhead(engine)
        self._ended: deque[EndedAnswer] = deque(maxlen=engine.max_runs)
        self._taken: deque[EndedAnswer] = deque(maxlen=engine.max_runs)
        self._pending: deque[PendingPrefix] = deque(maxlen=engine.max_runs)

    @property
    def ended(self) -> int:
        """Return how many answers have ended whose next turn nobody has asked for."""
        return len(self._ended)

    @property
    def pending(self) -> int:
        """Return how many prefixes are still to be computed."""
        return len(self._pending)

    def note_ended(self, answer: EndedAnswer) -> None:
        """Keep an answer that has ended."""
        self._ended.append(answer)

    def forget_continued(self, prompt: Sequence[int]) -> None:
        """Drop what belongs to the conversation that this prompt continues."""
        self._pending = _without(self._pending, lambda pending: continues(prompt, pending.ids))
        self._ended = _without(self._ended, lambda answer: continues(prompt, answer.prompt))
        self._taken = _without(self._taken, lambda answer: continues(prompt, answer.prompt))

    def take_ended(self) -> list[EndedAnswer]:
        """Return the answers that have ended; each is expected back by `add`."""
        taken = list(self._ended)
        self._taken.extend(taken)
        self._ended.clear()
        return taken

    def add(self, answer: EndedAnswer, ids: tuple[int, ...]) -> None:
        """Let the next turn of an answer be computed: the ids of `next_turn`, () where there is none. Nothing is
        computed if the conversation has gone on, or if others have taken its slot."""
        if answer not in self._taken:
            return
        self._taken.remove(answer)
        pending = self.pending_prefix(ids)
        if pending is not None and continues(pending.ids[: pending.computed], answer.prompt):
            self._pending.append(pending)

    def pending_prefix(self, ids: tuple[int, ...]) -> PendingPrefix | None:
        """Return a prefix with what the engine has cached of it; None for an empty one, or one that does not fit the
        context."""
        return self._ahead.pending(ids) if 0 < len(ids) < self._context_length else None

    def compute_latest(self) -> None:
        """Compute a slice of the latest prefix, if there is one. Raise EngineError."""
        if self._pending:
            self.compute_slice(self._pending[-1])
            if self._pending[-1].complete:
                self._pending.pop()

    def compute_slice(self, pending: PendingPrefix) -> None:
        """Compute a slice of a prefix, unless it is complete. Raise EngineError."""
        if not pending.complete:
            self._ahead.compute_slice(pending)


def continues(prompt: Sequence[int], earlier: Sequence[int]) -> bool:
    """Return whether a prompt goes on with an earlier one, but for the end of that."""
    return common_prefix(earlier, prompt) >= len(earlier) - _TAIL


def _without(kept: deque[T], dropped: Callable[[T], bool]) -> deque[T]:
    return deque((each for each in kept if not dropped(each)), kept.maxlen)
