"""JSON files from strangers, read strictly: one object, in UTF-8, of a size that fits into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from localqwen import json_text
from localqwen.errors import FormatError

#: Larger than any tokenizer.json (Qwen3's has 11 MB); a longer file is not read into memory.
MAX_BYTES = 64_000_000
#: The most values and keys; Qwen3's tokenizer.json has 900,000.
_MOST_VALUES = 4_000_000
_REPAIR = "download this file again"


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises FormatError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"{path} has more than {MAX_BYTES:,} bytes", _REPAIR)
        content = path.read_bytes()
    except OSError as exc:
        raise FormatError(f"{path} cannot be read: {exc}", _REPAIR) from exc
    return parse_object(path, content)


def parse_object(path: Path, text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in the content of the file `path`. Raises FormatError."""
    content = text.encode() if isinstance(text, str) else text
    try:
        value, _ = json_text.parse(content, finite=False, allowance=_MOST_VALUES)
    except json_text.Refused as exc:
        raise FormatError(f"{path} {exc}", _REPAIR) from exc
    if not isinstance(value, dict):
        raise FormatError(f"{path} is not a JSON object", _REPAIR)
    return value
