"""Make sure that a model is on disk: ask, pull it, convert it. And show a pull: its plan, a bar, or lines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from localqwen.cli.format import readable_bytes
from localqwen.cli.progress import conversion_bar
from localqwen.models.names import LocalPath, Named

if TYPE_CHECKING:
    from localqwen.models.pull import Plan, Step
    from localqwen.models.resolve import ResolvedModel

#: The seconds between two lines of progress if there is no terminal.
LINE_SECONDS = 15.0
_WORDS = {"load": "downloading", "wait": "waiting for another pull of", "check": "checking", "convert": "converting"}


def ensure(model: ResolvedModel, *, yes: bool, force: bool = False) -> ResolvedModel:
    """Return the model with its files on disk, in the format that its engine loads.

    Raise ModelNotFound if a path does not exist, NotPulled if nobody can be asked, NotEnoughMemory before the download
    of a model that cannot run on this machine.
    """
    from localqwen.models import resolve

    if isinstance(model.reference, Named) and model.reference.why:
        sys.stderr.write(f"{model.given} is {model.reference.text}: {model.reference.why}\n")
    if model.files is None and not isinstance(model.reference, LocalPath):
        _pull_asking(model, yes=yes, force=force)
        model = resolve.located(model)
    with conversion_bar(f"converting {model.display}") as progress:
        model.path(progress)
    return model


def _pull_asking(model: ResolvedModel, *, yes: bool, force: bool) -> None:
    from localqwen.machine import this_machine
    from localqwen.models import fit, inventory, pull

    reference = pull.wanted(model.reference, engine=model.engine)
    asks = not yes and sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    if not yes and not asks:
        raise inventory.not_pulled(reference)
    if isinstance(reference, Named) and not reference.mlx and not force:
        fit.check_named(reference.model, reference.quant, this_machine())
    planned = pull.plan(reference)
    sys.stderr.write(f"{reference.text} is not on disk: {announcement(planned)}\n")
    if asks and not click.confirm("Pull it now?", default=True, err=True):
        raise inventory.not_pulled(reference)
    show_pull(planned)


def announcement(planned: Plan) -> str:
    """Return what a pull will download, from where and into which folder."""
    from localqwen.models import sources

    missing, total = planned.missing_bytes, planned.total_bytes
    files = "1 file" if len(planned.files) == 1 else f"{len(planned.files)} files"
    if not missing:
        text = f"everything is in {planned.folder}: {files}, {readable_bytes(total)}; checking"
    else:
        kept = f" ({readable_bytes(total - missing)} are on disk already)" if missing < total else ""
        host = sources.hub(planned.source).host()
        text = f"downloading {readable_bytes(missing)} in {files} from {host} into {planned.folder}{kept}"
    if planned.convert and not planned.target.exists():
        size = f", about {readable_bytes(planned.converted_bytes)}" if planned.converted_bytes else ""
        text += f"; there is no official {planned.quant} file, so it will be converted on this machine{size}"
    return text


def show_pull(planned: Plan) -> Path:
    """Run a pull with a bar, or with a line from time to time if there is no terminal. Return the path of the model."""
    from localqwen.models import pull

    try:
        with _steps(planned) as report:
            return pull.run(planned, report)
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the downloaded part is kept, and the same command resumes there\n")
        raise


@contextlib.contextmanager
def _steps(planned: Plan) -> Iterator[Callable[[Step], None]]:
    if not sys.stderr.isatty():
        yield _Lines(planned.reference.text)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(bar.add_task, bar.update, bar.remove_task)


class _Bar:
    """A bar with one task per stage, so that speed and remaining time are those of the stage."""

    def __init__(self, add: Callable[..., object], update: Callable[..., None], remove: Callable[..., None]) -> None:
        self._add, self._update, self._remove = add, update, remove
        self._stage: tuple[str, str] | None = None
        self._task: object = None

    def __call__(self, step: Step) -> None:
        if self._stage != (step.stage, step.name):
            if self._stage is not None:
                self._remove(self._task)
            self._stage = (step.stage, step.name)
            title = f"{_WORDS[step.stage]} {step.name}"
            self._task = self._add(title, total=step.total_bytes, completed=step.done_bytes)
        self._update(self._task, completed=step.done_bytes)


class _Lines:
    def __init__(self, name: str) -> None:
        self._name, self._last = name, time.monotonic()

    def __call__(self, step: Step) -> None:
        if time.monotonic() - self._last < LINE_SECONDS:
            return
        self._last = time.monotonic()
        done, total = readable_bytes(step.done_bytes), readable_bytes(step.total_bytes)
        sys.stderr.write(f"{self._name}: {_WORDS[step.stage]} {step.name}, {done} of {total}\n")
        sys.stderr.flush()
