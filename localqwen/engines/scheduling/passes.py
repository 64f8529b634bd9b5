"""Which ids of which runs the next pass computes, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localqwen.engines.engine import FinishReason, Logprobs, Run, TokenOutput
from localqwen.engines.scheduling.slots import state_of

#: Seconds that a pass over prompts may take: a cancel waits for it, also on a slow machine.
LONGEST_PASS = 1.0
#: Ids of prompts in a pass on a machine whose speed is not yet known.
SMALLEST_SLICE = 32


@dataclass(frozen=True)
class Share:
    """The next `count` ids of a run's `todo`, computed in one pass."""

    run: Run
    count: int

    @property
    def ids(self) -> list[int]:
        return state_of(self.run).todo[: self.count]

    @property
    def draws(self) -> bool:
        """Whether a token is drawn behind the last of them."""
        return self.count == len(state_of(self.run).todo) and self.run.max_tokens > 0


class Passes:
    """Chooses what each pass computes: the one id of every answering run, and slices of prompts.

    `mixed` puts both into one pass; without it they alternate. Of several prompts the shortest comes first, so that a
    short question does not wait for a long document; every other time the oldest, which no number of short ones can
    hold up.
    """

    def __init__(self, largest_slice: int, *, mixed: bool) -> None:
        self.slice = SMALLEST_SLICE
        self._largest = largest_slice
        self._mixed = mixed
        self._prefilled_last = False
        self._oldest_first = False

    def schedule(self, live: Sequence[Run]) -> list[Share]:
        """Return what the next pass computes of the live runs, none where there are none."""
        answers = [Share(run, 1) for run in live if len(state_of(run).todo) == 1]
        prefilling = [run for run in live if len(state_of(run).todo) > 1]
        if not prefilling or (answers and self._prefilled_last and not self._mixed):
            self._prefilled_last = False
            return answers
        self._prefilled_last = True
        return (answers if self._mixed else []) + self._prompts(prefilling)

    def _prompts(self, prefilling: Sequence[Run]) -> list[Share]:
        oldest_first = sorted(prefilling, key=lambda run: state_of(run).slot.used)
        self._oldest_first = not self._oldest_first
        left = [len(state_of(run).todo) for run in oldest_first]
        counts = shares(left, min(self.slice, self._largest), oldest_first=self._oldest_first)
        return [Share(oldest_first[index], count) for index, count in counts]

    def measured(self, computed: Sequence[Share], seconds: float) -> None:
        """Adapt the slice to a pass that took so long. One that only continued answers says nothing of prompts."""
        if any(share.count > 1 for share in computed):
            count = sum(share.count for share in computed)
            self.slice = next_slice(self.slice, count, seconds, self._largest)


def shares(left: Sequence[int], room: int, *, oldest_first: bool) -> list[tuple[int, int]]:
    """Return (index, ids) of the prompts that a pass of `room` ids prefills.

    `left` is how many ids each has left, the oldest prompt first. One of them gets a slice, the others only all they
    need: a part of theirs would hold up the one that ends here.
    """
    order = range(len(left)) if oldest_first else sorted(range(len(left)), key=lambda index: left[index])
    found: list[tuple[int, int]] = []
    for index in order:
        if left[index] <= room or not found:
            found.append((index, min(left[index], room)))
            room -= found[-1][1]
    return found


def next_slice(present: int, count: int, seconds: float, largest: int) -> int:
    """Return how many ids of prompts the next pass may compute, when one of `count` took `seconds`."""
    if count >= present and 2 * seconds <= LONGEST_PASS:
        return min(largest, present * 2)
    return max(SMALLEST_SLICE, present // 2) if seconds > 2 * LONGEST_PASS else present


def rows_that_draw(computed: Sequence[Share]) -> list[tuple[Run, int]]:
    """Return each run that draws a token behind the pass, and the row of its logits: the place of its last id among
    those of all shares, one share after another, counted from 0."""
    found, end = [], 0
    for share in computed:
        end += share.count
        if share.draws:
            found.append((share.run, end - 1))
    return found


def note_computed(computed: Sequence[Share]) -> list[Run]:
    """Move the ids of a pass from `todo` into their slots; return the prefill-only runs that are complete."""
    for share in computed:
        run, state = share.run, state_of(share.run)
        state.slot.tokens += share.ids
        del state.todo[: share.count]
        run.prefilled = min(run.prompt_tokens, len(state.slot.tokens))
    return [share.run for share in computed if not share.run.max_tokens and not state_of(share.run).todo]


def add_token(run: Run, token: int, data: bytes | None, logprobs: Logprobs | None, *, full: bool) -> TokenOutput:
    """Add a drawn token to its run and return what it added. `data` are the token's bytes, None for a stop token;
    `full` says that there is no room for another."""
    state = state_of(run)
    run.generated += 1
    finish: FinishReason | None = "length" if full or run.generated >= run.max_tokens else None
    if data is None:
        return TokenOutput((token,), "", state.whole, "stop", logprobs)
    state.todo.append(token)
    return TokenOutput((token,), state.text.decode(data), state.whole, finish, logprobs)
