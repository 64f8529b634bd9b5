"""A bar on stderr while a checkpoint is converted; nothing where stderr is no terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convert import Progress


@contextlib.contextmanager
def conversion_bar(title: str) -> Iterator[Callable[[Progress], None] | None]:
    """Gives the function that moves the bar, None without a terminal. The bar appears with the first bytes."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(title)

    def move(progress: Progress) -> None:
        bar.start()
        bar.update(task, completed=progress.done_bytes, total=progress.total_bytes)

    try:
        yield move
    finally:
        bar.stop()


@contextlib.contextmanager
def byte_bar(title: str, total: int) -> Iterator[Callable[[str, int], None]]:
    """Gives a function that is told how many bytes of which file are done; it moves a bar where there is a terminal."""
    if not sys.stderr.isatty():
        yield lambda name, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    done_of: dict[str, int] = {}
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)

        def move(name: str, done: int) -> None:
            done_of[name] = done
            bar.update(task, completed=sum(done_of.values()))

        yield move


@contextlib.contextmanager
def counting_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Gives a function that is told what goes on and how many of how many are done. Without a terminal it is silent."""
    if not sys.stderr.isatty():
        yield lambda text, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def move(text: str, done: int, total: int) -> None:
            bar.update(task, description=text, completed=done, total=total or None)

        yield move


@contextlib.contextmanager
def count_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """The same for one thing that goes on: a function that is told how many of how many are done."""
    with counting_bar() as tell:
        yield lambda done, total: tell(title, done, total)
