"""Quality of several models beside one reference, as samples: the other side of their speed and size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from localqwen import engines
from localqwen.bench import quality
from localqwen.bench.quality import Reference
from localqwen.bench.samples import Sample, Subject, Test
from localqwen.engines.engine import Engine
from localqwen.errors import UsageError
from localqwen.models import names

_CONTEXT = quality.WINDOW
Tell = Callable[[str, int, int], None]


def check(models: int, reference: str | None) -> None:
    """Before anything is measured: raises UsageError where there is nothing to compare with."""
    if reference is None and models < 2:
        raise UsageError(
            "quality is measured beside a reference", "name it: --reference FILE, best in 16 bit; or give two models"
        )


def measure(
    reference: str | None,
    models: Sequence[tuple[str, Subject]],
    text: str,
    tell: Tell,
    *,
    threads: int | None,
    force: bool,
) -> Iterator[Sample]:
    """A sample for each model, the reference's predictions being made once. Without a reference it is the largest of
    the models: it has lost the least. Raises what `quality` raises."""
    path, largest = max(models, key=lambda pair: pair[1].bytes)
    name = names.display(reference) if reference else largest.label
    opened = _open(reference or path, None if reference else largest.engine, threads, force)
    try:
        made = Reference(opened, text, lambda done, total: tell(f"{name}: predictions of the reference", done, total))
    finally:
        opened.close()
    with made:
        for path, subject in models:
            tell(f"{subject.label}: quality", 0, 0)
            engine = _open(path, subject.engine, threads, force)
            try:
                found = quality.compare(made, engine, lambda done, total: tell("quality", done, total))
            finally:
                engine.close()
            values = {metric: float(value) for metric, value in asdict(found).items()}
            yield Sample(subject.label, Test("quality", name), values)


def _open(name: str, engine: str | None, threads: int | None, force: bool) -> Engine:
    return engines.open(name, engine=engine, context_length=_CONTEXT, threads=threads, force=force)
