"""How much a conversion changed a model: perplexity, KL divergence and top-1 agreement on a text, on any two engines.

Both models read the same ids in the same windows. The reference's log-probabilities wait in a temporary file, so that
the two models are never in memory together and no position is sampled or shortened.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localqwen.engines.engine import Engine
from localqwen.engines.logits import log_softmax
from localqwen.errors import StorageError, UsageError
from localqwen.models import store

#: Tokens that are read together; each window begins without context.
WINDOW = 512
#: Told how many positions of how many are done.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Quality:
    """Of a model beside its reference, over `tokens` positions. `perplexity` is e to the mean negative log-probability
    of the text's next token; KL divergence is that of the model's prediction from the reference's, in nats; `top1` is
    the share of positions at which both think the same token likeliest."""

    tokens: int
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    kl_p99: float
    top1: float


def bundled_text() -> str:
    """Prose, code, tables, arithmetic and chat in four languages, written for this purpose."""
    return resources.files("localqwen.bench").joinpath("text.txt").read_text(encoding="utf-8")


class Reference:
    """What a model predicts at every position of a text. Use with `with`: its file is gone afterwards.

    Raises UsageError for a text without two tokens, StorageError where the disk has no room for the predictions.
    """

    def __init__(self, engine: Engine, text: str, progress: Progress | None = None) -> None:
        self.vocabulary = engine.vocabulary()
        self.windows = _windows(engine.tokenize(text, special=True), min(WINDOW, engine.context_length))
        self._file = tempfile.TemporaryFile(dir=_scratch())  # noqa: SIM115  (closed by __exit__)
        scores = []
        for _, block, following in _predictions(engine, self.windows, progress):
            self._keep(block)
            scores.append(_scores(block, following))
        self.perplexity = _perplexity(scores)

    def _keep(self, block: NDArray[np.float32]) -> None:
        try:
            self._file.write(block.data)
        except OSError as exc:
            needed = 4 * sum(map(len, self.windows)) * len(self.vocabulary)
            raise StorageError(
                f"the predictions of the reference take {needed / 1e9:.1f} GB in {_scratch()}: {exc.strerror}",
                "make room there, or give a shorter text with --text FILE",
            ) from exc

    def rows(self, position: int, count: int) -> NDArray[np.float32]:
        """Log-probabilities of shape (count, vocabulary)."""
        width = len(self.vocabulary)
        self._file.seek(4 * position * width)
        return np.frombuffer(self._file.read(4 * count * width), np.float32).reshape(count, width)

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def compare(reference: Reference, engine: Engine, progress: Progress | None = None) -> Quality:
    """Raises UsageError where the two models do not share a vocabulary."""
    if engine.vocabulary() != reference.vocabulary:
        raise UsageError(
            "the two models have different vocabularies, so their predictions cannot be compared",
            "compare a model with a conversion of itself",
        )
    divergences, agreements, scores = [], [], []
    for position, block, following in _predictions(engine, reference.windows, progress):
        known = reference.rows(position, len(block))
        divergences.append((np.exp(known) * (known - block)).sum(axis=-1, dtype=np.float64))
        agreements.append(known.argmax(axis=-1) == block.argmax(axis=-1))
        scores.append(_scores(block, following))
    divergence = np.concatenate(divergences)
    return Quality(
        tokens=len(divergence),
        perplexity=_perplexity(scores),
        reference_perplexity=reference.perplexity,
        kl_mean=float(divergence.mean()),
        kl_p99=float(np.quantile(divergence, 0.99)),
        top1=float(np.concatenate(agreements).mean()),
    )


def _windows(tokens: Sequence[int], length: int) -> list[list[int]]:
    """Consecutive windows; a last one of a single token is left out, there is nothing to predict in it."""
    windows = [list(tokens[start : start + length]) for start in range(0, len(tokens), length)]
    kept = [window for window in windows if len(window) > 1]
    if not kept:
        raise UsageError("the text has less than two tokens", "give a longer one with --text FILE")
    return kept


def _predictions(
    engine: Engine, windows: Sequence[Sequence[int]], progress: Progress | None
) -> Iterator[tuple[int, NDArray[np.float32], list[int]]]:
    """Blocks of log-probabilities with their position in the text, and the tokens that really followed."""
    position, total = 0, sum(map(len, windows))
    for window in windows:
        start = 0
        for logits in engine.evaluate(window):
            following = list(window[start + 1 : start + 1 + len(logits)])
            yield position + start, log_softmax(logits), following
            start += len(logits)
            if progress is not None:
                progress(position + start, total)
        position += len(window)


def _scores(block: NDArray[np.float32], following: list[int]) -> NDArray[np.float32]:
    """Log-probabilities of the tokens that followed; behind a window's last token nothing is known to follow."""
    taken: NDArray[np.float32] = block[np.arange(len(following)), following]
    return taken


def _perplexity(scores: Sequence[NDArray[np.float32]]) -> float:
    return float(np.exp(-np.concatenate(scores).mean(dtype=np.float64)))


def _scratch() -> Path:
    """On the disk of our cache: a system's own temporary folder may lie in memory."""
    folder = store.cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
