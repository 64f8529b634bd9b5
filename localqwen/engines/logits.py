"""Log-probabilities from logits in numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from localqwen.engines.engine import Logprobs


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the natural logarithms of the probabilities along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalized: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized


def logprobs(known: NDArray[np.float32], token: int, top: int) -> Logprobs:
    """Return the token's log-probability and those of the `top` likeliest; `known` has shape (vocabulary,)."""
    count = min(top, len(known))
    best: Sequence[int] = np.argpartition(-known, count - 1)[:count].tolist() if count else []
    ordered = sorted(best, key=lambda each: (-known[each], each))
    return Logprobs(float(known[token]), tuple((each, float(known[each])) for each in ordered))


def stacked(rows: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return copies of rows of logits, shape (positions, vocabulary)."""
    return np.stack([row.copy() for row in rows])
