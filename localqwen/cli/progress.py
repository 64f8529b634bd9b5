"""Bars of progress on stderr; nothing if stderr is not a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convert import Progress


@contextlib.contextmanager
def conversion_bar(title: str) -> Iterator[Callable[[Progress], None] | None]:
    """Yield a function that moves the bar, or None without a terminal. The bar appears with the first bytes."""
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
    """Yield a function that takes the name of a file and its bytes so far; it moves a bar if there is a terminal."""
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
    """Yield a function that takes a text, how many are done, and how many there are; it moves a bar if there is a
    terminal."""
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
    """Yield a function that takes how many are done and how many there are, under one title."""
    with counting_bar() as report:
        yield lambda done, total: report(title, done, total)
