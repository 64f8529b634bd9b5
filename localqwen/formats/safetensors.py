"""One safetensors file: its header read strictly, its weights by memory map. Knows nothing of Qwen3.

A header comes from strangers, so every number in it is checked against the file before it is used. The format
(safetensors' README): eight bytes of header length, a JSON object, then the data without gaps.
"""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from localqwen import json_text
from localqwen.errors import FormatError
from localqwen.formats import dtypes
from localqwen.formats.tensors import MappedFile, SourceTensor

#: The reference implementation allows 100 MB; the whole of Qwen3-235B needs 5, and parsing takes many times as much.
MAX_HEADER = 25_000_000
#: The most values and keys in a header; Qwen3-235B's 36,000 tensors have 400,000.
_MOST_VALUES = 1_000_000
MAX_DIMENSIONS = 8
_REPAIR = "download this file again"


class SafetensorsFile(MappedFile):
    """An open file: `tensors` by name. Raises FormatError for a file that is not exactly what its header says."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _REPAIR)
        try:
            with path.open("rb") as file:  # not the map, which ends the process if the file is cut meanwhile
                self.tensors = _read_header(path, file)
        except FormatError:
            self.close()
            raise
        except OSError as exc:
            self.close()
            raise FormatError(f"{path} cannot be read: {exc}", _REPAIR) from exc


def read_header(path: Path) -> dict[str, SourceTensor]:
    """Return the tensors of a file by name; nothing stays open. Raises FormatError."""
    file = SafetensorsFile(path)
    file.close()
    return file.tensors


def _read_header(path: Path, file: BinaryIO) -> dict[str, SourceTensor]:
    size, prefix = os.fstat(file.fileno()).st_size, file.read(8)
    if len(prefix) < 8:
        raise FormatError(f"{path} has {size} bytes, too few for a safetensors file", _REPAIR)
    length = int.from_bytes(prefix, "little")
    if length > size - 8:
        raise FormatError(
            f"{path} is truncated or no safetensors file: its header should have {length:,} bytes, "
            f"the file has {size:,}",
            _REPAIR,
        )
    if length > MAX_HEADER:
        raise FormatError(f"{path} has a header of {length:,} bytes, more than {MAX_HEADER:,}", _REPAIR)
    entries = _parse(path, file.read(length))
    entries.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, 8 + length) for name, entry in entries.items()]
    _check_layout(path, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def _parse(path: Path, header: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise FormatError(f"the header of {path} names {key!r} twice", _REPAIR)
            result[key] = value
        return result

    try:
        json_text.check(header, _MOST_VALUES)
        entries = json.loads(header, object_pairs_hook=unique)
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"the header of {path} is not JSON: {exc}", _REPAIR) from exc
    if not isinstance(entries, dict):
        raise FormatError(f"the header of {path} is not a JSON object", _REPAIR)
    return entries


def _tensor(path: Path, name: str, entry: Any, data_start: int) -> SourceTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as exc:
        raise FormatError(f"{path}: the header entry of {name!r} lacks dtype, shape or offsets", _REPAIR) from exc
    if not sound or not isinstance(dtype, str) or dtype not in dtypes.SAFETENSORS or len(shape) > MAX_DIMENSIONS:
        raise FormatError(f"{path}: the header entry of {name!r} is malformed: {str(entry)[:200]}", _REPAIR)
    expected = prod(shape) * dtypes.SAFETENSORS[dtype].block_bytes
    if end - begin != expected:
        raise FormatError(
            f"{path}: {name!r} is {dtype} {list(shape)} and needs {expected:,} bytes, "
            f"its offsets [{begin}, {end}] hold {end - begin:,}",
            _REPAIR,
        )
    return SourceTensor(name, dtype, tuple(shape), data_start + begin, end - begin)


def _check_layout(path: Path, tensors: list[SourceTensor], data_start: int, size: int) -> None:
    """The data must follow each other without gap or overlap and end with the file, as safetensors itself demands."""
    position = data_start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.bytes)):
        if tensor.start != position:
            what = "overlaps the tensor before it" if tensor.start < position else "leaves a gap before it"
            raise FormatError(
                f"{path}: {tensor.name!r} {what}: it starts at byte {tensor.start:,}, not at {position:,}", _REPAIR
            )
        position += tensor.bytes
    if position != size:
        what = "is truncated" if position > size else "has bytes that no tensor owns"
        raise FormatError(f"{path} {what}: its header describes {position:,} bytes, it has {size:,}", _REPAIR)
