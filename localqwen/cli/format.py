"""Format numbers and tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from localqwen import units
from localqwen.errors import UsageError

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def readable_bytes(count: float) -> str:
    """Return bytes in decimal units, as disks and downloads are sold."""
    power = 0
    while count >= 999.95 and power < len(_UNITS) - 1:
        count /= 1000
        power += 1
    return f"{count:,.1f} {_UNITS[power]}" if power else f"{count:,.0f} bytes"


def parsed_size(text: str) -> int:
    """Return the bytes of `4GB` or `500 MB`. Raise UsageError if the text is not a size."""
    size = units.parse_size(text)
    if size is None:
        raise UsageError(f"{text!r} is not a size", "write it like 4GB or 500MB")
    return size


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows as columns with two spaces between them, without trailing spaces."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
