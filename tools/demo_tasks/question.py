"""One question with its thinking and its answer. Every task generates questions; conversations consist of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Question:
    """One question with its solution. `again` holds the follow-up questions that refer to it ("Really?", "and o's?"),
    already resolved."""

    task: str
    text: str
    thinking: str
    answer: str
    again: Callable[[Random], Question] | None = None
    wrong: str = ""
    """A plausible wrong answer, as history for "Really?"."""


DOUBTS = (
    "Really?", "Are you sure?", "Really", "Sure?", "Is that right?", "Is that correct?", "Check again.",
    "Think again.", "Please check.", "Hmm, really?", "Are you certain?", "Can you check that?",
)  # fmt: skip
