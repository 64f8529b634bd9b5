"""What happens to a model's file while it is served."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random


def cut(random: Random, path: Path) -> None:
    """Truncate the file: whoever maps it gets SIGBUS behind the new end."""
    os.truncate(path, random.choice([0, random.randrange(path.stat().st_size)]))


def overwrite(random: Random, path: Path) -> None:
    """Write noise or zeros over up to a megabyte of the file, in place."""
    count = 1 << random.randrange(1, 21)
    with path.open("r+b") as file:
        file.seek(random.randrange(path.stat().st_size))
        file.write(random.choice([random.randbytes(count), bytes(count)]))


def grow(random: Random, path: Path) -> None:
    """Make the file larger, by nothing but zeros."""
    os.truncate(path, path.stat().st_size * 3)


def replace(random: Random, path: Path) -> None:
    """Put another file into its place, which is no model, or the beginning of one."""
    other = path.with_suffix(".new")
    other.write_bytes(random.choice([random.randbytes(100_000), path.read_bytes()[: random.randrange(1_000_000)]]))
    other.replace(path)


def delete(random: Random, path: Path) -> None:
    """Delete the file."""
    path.unlink()


CHANGES: Mapping[str, Callable[[Random, Path], None]] = {
    "cut": cut, "overwritten": overwrite, "grown": grow, "replaced": replace, "deleted": delete,
}  # fmt: skip
