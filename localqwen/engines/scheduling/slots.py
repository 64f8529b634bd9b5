"""Which slot a new run gets, and whose cached keys and values it takes over."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from localqwen.engines.engine import Constraint, Run, Sampling
from localqwen.engines.scheduling.checks import check_prompt
from localqwen.errors import EngineError

#: Positions of keys and values that are copied while one token of a prompt is computed, with a wide margin: on two
#: cores with 0.6B about 400, with larger models more. A copy covers a whole context at the worst.
COPIED_PER_TOKEN = 100


@dataclass(eq=False)
class Slot:
    """One sequence of an engine. `tokens` are the ids whose keys and values it has cached, in order, also after its
    run has ended. `used` rises with every run that begins: the smallest was not used for the longest."""

    index: int
    tokens: list[int] = field(default_factory=list)
    run: Run | None = None
    used: int = 0


S = TypeVar("S", bound=Slot)
D = TypeVar("D")


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


@dataclass(eq=False)
class RunState(Generic[S, D]):
    """What an engine keeps for a live run: its slot, its sampler, and `todo`, the ids that are not computed yet.
    `text` keeps the bytes of a character whose end has not come."""

    slot: S
    sampler: D
    todo: list[int]
    text: codecs.IncrementalDecoder = field(default_factory=_decoder)

    @property
    def whole(self) -> bool:
        """Whether no character is unfinished."""
        return not self.text.getstate()[0]


def state_of(run: Run) -> RunState[Any, Any]:
    """Return the state of a run that `Slots.occupy` began."""
    assert isinstance(run.state, RunState)
    return run.state


def common_prefix(left: Sequence[object], right: Sequence[object]) -> int:
    """Return how many ids (or parts) the two begin with alike."""
    shorter = min(len(left), len(right))
    return next((i for i in range(shorter) if left[i] != right[i]), shorter)


@dataclass(frozen=True)
class Placement(Generic[S]):
    """The slot of a new run, and whose first `keep` ids it takes over: its own, or a donor's, who keeps all of them."""

    slot: S
    donor: S
    keep: int


class Slots(Generic[S]):
    """All slots of an engine, and the runs that live in them."""

    def __init__(self, slots: Sequence[S], context_length: int) -> None:
        """`slots` stand in the order of their indices, which count from 0."""
        self.all = tuple(slots)
        self._context_length = context_length
        self._clock = 0

    def live(self) -> list[Run]:
        """Return the live runs in the order of their slots."""
        return [slot.run for slot in self.all if slot.run is not None]

    def free(self) -> list[S]:
        """Return the slots without a run, the longest unused first."""
        return sorted((slot for slot in self.all if slot.run is None), key=lambda slot: slot.used)

    def positions(self) -> int:
        """Return how many ids all slots have cached together."""
        return sum(len(slot.tokens) for slot in self.all)

    def cached_prefix(self, prompt: Sequence[int]) -> int:
        """Return how many ids of the prompt's beginning some slot has cached."""
        return max(common_prefix(prompt, slot.tokens) for slot in self.all)

    def new_run(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_tokens: int,
        constraint: Constraint | None,
        logprobs: int | None,
    ) -> Run:
        """Return a run that has no slot yet; its answer is no longer than the context allows.

        Raise UsageError and ContextTooLong as `check_prompt` does, and EngineError where every slot has a live run.
        """
        check_prompt(prompt, max_tokens, self._context_length)
        if all(slot.run is not None for slot in self.all):
            raise EngineError(f"all {len(self.all)} runs of the engine are busy", "wait for one to end")
        limit = min(max_tokens, self._context_length - len(prompt))
        return Run(tuple(prompt), sampling, limit, constraint=constraint, logprobs=logprobs)

    def place(self, run: Run) -> Placement[S]:
        """Return the placement that keeps the longest cached prefix of the run's prompt where that is worth a copy.

        A prefill-only run stays with its donor: it continues that conversation, and must not push another one out.
        At least one slot is free. Nothing changes yet.
        """
        prompt = run.prompt
        donor = max(self.all, key=lambda slot: (common_prefix(prompt, slot.tokens), slot.run is None))
        # The last id is computed even if it is cached: its logits are what the first token is drawn from.
        keep = min(common_prefix(prompt, donor.tokens), len(prompt) - 1)
        if keep and donor.run is None and (not run.max_tokens or 2 * keep >= len(donor.tokens)):
            return Placement(donor, donor, keep)
        others = [slot for slot in self.free() if slot is not donor or not keep]
        if not others:  # the donor alone is free: it gives up what it does not share
            return Placement(donor, donor, keep)
        slot = self._least_missed(others)
        if keep * COPIED_PER_TOKEN < self._context_length:
            return Placement(slot, slot, 0)
        return Placement(slot, donor, keep)

    def _least_missed(self, free: Sequence[S]) -> S:
        """Return the slot not used for the longest, of those beside a live one if any: llama.cpp computes neighbours
        together."""
        live = {slot.index for slot in self.all if slot.run is not None}
        near = [slot for slot in free if live & {slot.index - 1, slot.index + 1}]
        return min(near or free, key=lambda slot: slot.used)

    def occupy(self, slot: S, run: Run, sampler: object) -> None:
        """Begin the run in a slot that has cached the beginning of its prompt and nothing else."""
        self._clock += 1
        slot.run, slot.used = run, self._clock
        run.cached_tokens = run.prefilled = len(slot.tokens)
        run.state = RunState(slot, sampler, list(run.prompt[run.prefilled :]))
