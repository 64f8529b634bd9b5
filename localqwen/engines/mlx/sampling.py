"""Drawing a token from MLX's logits, with the meaning that `Sampling` has on every engine.

The logits stay where MLX computed them. Only the candidates that `top_k` leaves come to the host, where the rest is
done in double precision with a random generator for each run. So a seed repeats its answer whatever runs beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from localqwen.engines.engine import Constraint, Logprobs, Sampling
from localqwen.errors import EngineError


class Sampler:
    """What one run needs to draw tokens: its random numbers and the tokens that it has generated. `earlier` are the
    tokens of a restarted answer."""

    def __init__(self, sampling: Sampling, earlier: Iterable[int], constraint: Constraint | None) -> None:
        self._sampling = sampling
        self._constraint = constraint
        self._counts = Counter(earlier)
        self._random = np.random.default_rng(None if sampling.seed is None else sampling.seed % 2**64)

    def draw(self, logits: mx.array) -> int:
        """Return a token drawn from raw logits of shape (vocabulary,). Raise EngineError where the constraint allows
        nothing."""
        token = self._choose(self._penalized(self._constrained(logits)))
        self._counts[token] += 1
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    def _constrained(self, logits: mx.array) -> mx.array:
        if self._constraint is None:
            return logits
        allowed = self._constraint.allowed()
        if not allowed.any():
            raise EngineError("the constraint allows no token", "check the grammar or schema")
        return mx.where(mx.array(allowed), logits, -mx.inf)

    def _penalized(self, logits: mx.array) -> mx.array:
        """Return the logits after penalties, as llama.cpp computes them (llama-sampling.cpp): repetition divides a
        positive logit and multiplies a negative one; frequency is subtracted per occurrence, presence once."""
        sampling = self._sampling
        if not sampling.penalizes or not self._counts:
            return logits
        ids = mx.array(list(self._counts))
        seen, counts = logits[ids], mx.array(list(self._counts.values()))
        seen = mx.where(seen <= 0, seen * sampling.repetition_penalty, seen / sampling.repetition_penalty)
        logits = logits[:]  # assignment below changes what its name stands for: not the caller's
        logits[ids] = seen - counts * sampling.frequency_penalty - sampling.presence_penalty
        return logits

    def _choose(self, logits: mx.array) -> int:
        if self._sampling.temperature == 0:
            return int(np.array(mx.argmax(logits)))
        ids, values = best(logits, self._sampling.top_k or logits.size)
        kept = filtered(values, self._sampling)
        cumulative = np.cumsum(kept)
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(ids[min(int(drawn), len(kept) - 1)])


def filtered(values: NDArray[np.float64], sampling: Sampling) -> NDArray[np.float64]:
    """Return the probabilities that temperature, top_p and min_p leave, in this order, of logits that stand best
    first. They need not sum to 1."""
    finite = values[np.isfinite(values)]
    with np.errstate(over="ignore"):  # behind the smallest temperatures only the best is left: exp(-inf) is 0
        probabilities = np.exp((finite - finite[0]) / sampling.temperature)
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        keep = int(np.searchsorted(np.cumsum(probabilities), sampling.top_p)) + 1
        probabilities = probabilities[:keep]
    kept: NDArray[np.float64] = probabilities[probabilities >= sampling.min_p * probabilities[0]]
    return kept


def best(logits: mx.array, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return ids and values of the `count` largest logits, best first, the smaller id first among equals."""
    if count < logits.size:
        ids = mx.argpartition(-logits, kth=count - 1)[:count]
        found, values = np.array(ids).astype(np.int64), np.array(logits[ids]).astype(np.float64)
    else:
        found, values = np.arange(logits.size), np.array(logits).astype(np.float64)
    order = np.lexsort((found, -values))
    return found[order], values[order]


def logprobs(logits: mx.array, token: int, count: int) -> Logprobs:
    """Return the logprobs of the token and of the `count` likeliest, from raw logits of shape (vocabulary,)."""
    total = float(np.array(mx.logsumexp(logits)))
    ids, values = best(logits, count) if count else (np.array([], np.int64), np.array([]))
    top = tuple((int(each), float(value) - total) for each, value in zip(ids, values, strict=True))
    return Logprobs(float(np.array(logits[token])) - total, top)
