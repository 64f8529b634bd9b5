"""What all engines decide alike: which prompts they take, which slot a new run gets, from whose cache it takes over its
prompt's beginning, and how much of a prompt is read in one pass.

One rule for all, so that the same requests find the same tokens cached everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from localqwen.engines.engine import Run
from localqwen.errors import ContextTooLong, EngineError, UsageError

#: Positions of keys and values that are copied while one token of a prompt is read, with a wide margin: on two cores
#: with 0.6B about 400, with larger models more. What is copied is a whole context at the worst.
_COPIED_PER_TOKEN = 100


#: Seconds that a pass over a prompt may take: a cancel waits for it, also on a slow machine.
LONGEST_PASS = 1.0
#: Ids of prompts in a pass on a machine not yet known.
SMALLEST_SLICE = 32


class Held(Protocol):
    """A slot: the ids whose keys and values it holds, its live run, and when it was used last, as a rising number."""

    tokens: list[int]
    run: Run | None
    used: int


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids the two begin with alike."""
    shorter = min(len(left), len(right))
    return next((i for i in range(shorter) if left[i] != right[i]), shorter)


def check_prompt(prompt: Sequence[int], max_tokens: int, context_length: int) -> None:
    """Before any work. Raises UsageError, and ContextTooLong where no token would fit behind the prompt."""
    if not prompt or max_tokens < 0:
        raise UsageError(f"a run needs a prompt and a number of tokens, not {len(prompt)} and {max_tokens}")
    if len(prompt) >= context_length:
        raise ContextTooLong(len(prompt), context_length)


def next_slice(present: int, count: int, seconds: float, most: int) -> int:
    """How many ids the next pass may read, when one of `count` took `seconds`."""
    if count >= present and 2 * seconds <= LONGEST_PASS:
        return min(most, present * 2)
    return max(SMALLEST_SLICE, present // 2) if seconds > 2 * LONGEST_PASS else present


def check_free(slots: Sequence[Held]) -> None:
    """Raises EngineError where every slot has a live run."""
    if all(slot.run is not None for slot in slots):
        raise EngineError(f"all {len(slots)} runs of the engine are busy", "wait for one to end")


def held(prompt: Sequence[int], slots: Sequence[Held]) -> int:
    """How many ids of the prompt's beginning some slot holds."""
    return max(common_prefix(prompt, slot.tokens) for slot in slots)


def place(run: Run, slots: Sequence[Held], context_length: int) -> tuple[int, int, int]:
    """The slot for the run, the donor, and how many of the donor's ids are kept: those of the longest known prefix.

    The donor is the slot itself, or another one that keeps its other tokens. A run that only reads stays with its
    donor: it goes on with that conversation, and must not push another one out.
    """
    check_free(slots)
    prompt = run.prompt
    free = [index for index, slot in enumerate(slots) if slot.run is None]
    donor = max(range(len(slots)), key=lambda i: (common_prefix(prompt, slots[i].tokens), slots[i].run is None))
    # The last id is computed even if it is known: its logits are what the first token is drawn from.
    keep = min(common_prefix(prompt, slots[donor].tokens), len(prompt) - 1)
    if keep and donor in free and (not run.max_tokens or 2 * keep >= len(slots[donor].tokens)):
        return donor, donor, keep
    others = [index for index in free if index != donor] if keep else free
    if not others:  # nobody else is free: the donor gives up what it does not share
        return donor, donor, keep
    index = _least_missed(slots, others)
    if keep * _COPIED_PER_TOKEN < context_length:
        return index, index, 0
    return index, donor, keep


def _least_missed(slots: Sequence[Held], free: Sequence[int]) -> int:
    """Beside a live one, because llama.cpp computes neighbours together; the one not used for the longest."""
    near = [i for i in free if any(0 <= j < len(slots) and slots[j].run is not None for j in (i - 1, i + 1))]
    return min(near or free, key=lambda i: slots[i].used)
