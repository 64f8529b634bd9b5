"""How much a conversion changed a model: perplexity, KL divergence and top-1 agreement on a text, on any two engines.

Both models read the same ids in the same windows. The log-probabilities of the reference are stored in a temporary
file, so the two models are never in memory together, and every position counts with its whole vocabulary.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localqwen.bench.samples import Sample, Subject, Test
from localqwen.chat import load
from localqwen.chat.load_options import LoadOptions
from localqwen.engines.engine import Engine
from localqwen.engines.logits import log_softmax
from localqwen.errors import StorageError, UsageError
from localqwen.models import store
from localqwen.models.resolve import ResolvedModel

#: Tokens per window; each window begins without context.
WINDOW = 512
#: Called with the positions done and their total.
Progress = Callable[[int, int], None]
#: Called with what is being done, the steps done and their total.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Quality:
    """The quality of a model compared with its reference, over `tokens` positions. `perplexity` is e to the mean
    negative log-probability of the text's next token; the KL divergence is that of the model's prediction from the
    reference's, in nats; `top1` is the share of positions with the same most probable token."""

    tokens: int
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    kl_p99: float
    top1: float


def bundled_text() -> str:
    """Return a text of prose, code, tables, arithmetic and chat in four languages, written for this purpose."""
    return resources.files("localqwen.bench").joinpath("text.txt").read_text(encoding="utf-8")


class Reference:
    """The predictions of a model at every position of a text. Use it with `with`, which deletes its file at the end.

    Raise UsageError if the text has less than two tokens, StorageError if the disk has no room for the predictions.
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
        """Return the log-probabilities from a position on, of shape (count, vocabulary)."""
        width = len(self.vocabulary)
        self._file.seek(4 * position * width)
        return np.frombuffer(self._file.read(4 * count * width), np.float32).reshape(count, width)

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def compare(reference: Reference, engine: Engine, progress: Progress | None = None) -> Quality:
    """Return the quality of a model. Raise UsageError if the two models do not share a vocabulary."""
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


def check_reference(models: int, reference: str | None) -> None:
    """Raise UsageError if there is nothing to compare with, before anything is measured."""
    if reference is None and models < 2:
        raise UsageError(
            "quality is measured against a reference", "name it: --reference FILE, best in 16 bit; or give two models"
        )


def measure(
    reference: ResolvedModel | None,
    models: Sequence[tuple[ResolvedModel, Subject]],
    text: str,
    report: Report,
    options: LoadOptions,
) -> Iterator[Sample]:
    """Yield a sample for each model. The reference is computed once, with keys and values in 16 bit.

    Without a reference, the largest of the models is used: it has lost the least. Raise what Reference and `compare`
    raise.
    """
    model, largest = max(models, key=lambda pair: pair[1].bytes)
    name = reference.display if reference else largest.label
    options = replace(options, context_length=WINDOW)
    with contextlib.closing(load.open_engine(reference or model, replace(options, kv_quant=None))) as engine:
        predicted = Reference(
            engine, text, lambda done, total: report(f"{name}: predictions of the reference", done, total)
        )
    with predicted:
        for model, subject in models:
            report(f"{subject.label}: quality", 0, 0)
            with contextlib.closing(load.open_engine(model, options)) as engine:
                found = compare(predicted, engine, lambda done, total: report("quality", done, total))
            values = {metric: float(value) for metric, value in asdict(found).items()}
            yield Sample(subject.label, Test("quality", name), values)


def _windows(tokens: Sequence[int], length: int) -> list[list[int]]:
    """Return consecutive windows. A last window of one token is left out: there is nothing to predict in it."""
    windows = [list(tokens[start : start + length]) for start in range(0, len(tokens), length)]
    kept = [window for window in windows if len(window) > 1]
    if not kept:
        raise UsageError("the text has less than two tokens", "give a longer one with --text FILE")
    return kept


def _predictions(
    engine: Engine, windows: Sequence[Sequence[int]], progress: Progress | None
) -> Iterator[tuple[int, NDArray[np.float32], list[int]]]:
    """Yield blocks of log-probabilities with their position in the text, and the tokens that really followed."""
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
    """Return the log-probabilities of the tokens that followed; after a window's last token none is known."""
    taken: NDArray[np.float32] = block[np.arange(len(following)), following]
    return taken


def _perplexity(scores: Sequence[NDArray[np.float32]]) -> float:
    return float(np.exp(-np.concatenate(scores).mean(dtype=np.float64)))


def _scratch() -> Path:
    """Return a folder on the disk of the cache: a system's own temporary folder may be in memory."""
    return store.make_folder(store.cache_dir())
