"""JSON files from strangers, read strictly: one object, in UTF-8, of a size that fits into memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from localqwen.errors import FormatError

#: Larger than any tokenizer.json (Qwen3's has 11 MB); a longer file is not read into memory.
MAX_BYTES = 64_000_000
_REPAIR = "download this file again"


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises FormatError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"{path} has more than {MAX_BYTES:,} bytes", _REPAIR)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise FormatError(f"{path} cannot be read: {exc}", _REPAIR) from exc
    return parse_object(path, text)


def parse_object(path: Path, text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in the content of the file `path`. Raises FormatError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"{path} is not JSON: {exc}", _REPAIR) from exc
    if not isinstance(value, dict):
        raise FormatError(f"{path} is not a JSON object", _REPAIR)
    return value
