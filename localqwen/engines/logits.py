"""Logits as numpy arrays: what every engine computes from them outside of sampling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from localqwen.engines.engine import Logprobs


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural logarithms of the probabilities along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def logprobs(known: NDArray[np.float32], token: int, top: int) -> Logprobs:
    """Of log-probabilities of shape (vocabulary,): the token's own, and those of the `top` likeliest."""
    count = min(top, len(known))
    best: Sequence[int] = np.argpartition(-known, count - 1)[:count].tolist() if count else []
    ordered = sorted(best, key=lambda each: (-known[each], each))
    return Logprobs(float(known[token]), tuple((each, float(known[each])) for each in ordered))


def stacked(rows: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Copies of rows of logits, shape (positions, vocabulary)."""
    return np.stack([row.copy() for row in rows])
