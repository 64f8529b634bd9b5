"""Read sizes and durations as people write them. The callers decide what they accept, and raise the errors."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*(?:([KMGT])(I?)B?)?", re.IGNORECASE | re.ASCII)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
#: The most characters of a duration.
_LONGEST = 100
#: Parts of a number and a unit, as Go writes durations: 1h30m.
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_size(text: str, *, unit: int | None = None) -> int | None:
    """Return the bytes of `8GB`, `512 MB`, `1.5gib`, `4G`, in any case; None for what is not a size above 0.

    Units are decimal, or binary with an `i`. `unit` is the unit in bytes of a number without one; None refuses those.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or (found[2] is None and unit is None):
        return None
    scale = (1024 if found[3] else 1000) ** _POWERS[found[2].lower()] if found[2] else unit or 1
    return int(float(found[1]) * scale) or None


def parse_duration(text: str) -> float | None:
    """Return the seconds of `90`, `90s`, `1h30m`, `250ms`, `-1`, which may be negative; None for anything else."""
    text = text.strip()
    if len(text) > _LONGEST:  # the search for parts is quadratic in a row of digits
        return None
    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if re.fullmatch(r"\d+(\.\d+)?", body, re.ASCII):
        return sign * float(body)
    parts = _PART.findall(body)
    if not parts or "".join(number + unit for number, unit in parts) != body:
        return None
    return sign * sum(float(number) * _SECONDS[unit] for number, unit in parts)
