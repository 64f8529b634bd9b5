"""Quality of several models beside one reference, as samples: the other side of their speed and size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

from localqwen.bench import quality
from localqwen.bench.quality import Reference
from localqwen.bench.samples import Sample, Subject, Test
from localqwen.chat import load
from localqwen.chat.load_options import LoadOptions
from localqwen.errors import UsageError
from localqwen.models.resolve import ResolvedModel

Tell = Callable[[str, int, int], None]


def check(models: int, reference: str | None) -> None:
    """Raise UsageError where there is nothing to compare with: before anything is measured."""
    if reference is None and models < 2:
        raise UsageError(
            "quality is measured beside a reference", "name it: --reference FILE, best in 16 bit; or give two models"
        )


def measure(
    reference: ResolvedModel | None,
    models: Sequence[tuple[ResolvedModel, Subject]],
    text: str,
    tell: Tell,
    options: LoadOptions,
) -> Iterator[Sample]:
    """Yield a sample for each model; the reference's predictions are made once, with keys and values in 16 bit.

    Without a reference it is the largest of the models: it has lost the least. Raise what `quality` raises.
    """
    model, largest = max(models, key=lambda pair: pair[1].bytes)
    name = reference.display if reference else largest.label
    options = replace(options, context_length=quality.WINDOW)
    opened = load.open_engine(reference or model, replace(options, kv_quant=None))
    try:
        made = Reference(opened, text, lambda done, total: tell(f"{name}: predictions of the reference", done, total))
    finally:
        opened.close()
    with made:
        for model, subject in models:
            tell(f"{subject.label}: quality", 0, 0)
            engine = load.open_engine(model, options)
            try:
                found = quality.compare(made, engine, lambda done, total: tell("quality", done, total))
            finally:
                engine.close()
            values = {metric: float(value) for metric, value in asdict(found).items()}
            yield Sample(subject.label, Test("quality", name), values)
