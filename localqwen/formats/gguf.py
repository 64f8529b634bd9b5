"""GGUF files: what their headers say, and their tensors by memory map. Knows nothing of Qwen3."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from localqwen.errors import FormatError
from localqwen.formats.gguf_reader import ALIGNMENT, GgufTensor, HeaderReader, Value
from localqwen.formats.tensors import MappedFile

_REPAIR = "download or convert it again"
_Result = TypeVar("_Result")


class GgufFile(MappedFile):
    """An open file, one part of a split model: `values` by key, lists left out, and `tensors` by name.

    The whole header is checked. Raises FormatError.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, _REPAIR)
        self.values: dict[str, Value] = {}
        self.tensors: dict[str, GgufTensor] = {}
        self._spans: dict[str, slice] = {}
        try:
            checked(path, self._read_header)
        except FormatError:
            self.close()
            raise

    @property
    def entries(self) -> dict[str, bytes]:
        """A copy of each key with its value, as they stand in the file; lists too."""
        return {key: self._map[span] for key, span in self._spans.items()}

    def _read_header(self) -> None:
        reader = HeaderReader(self._map)
        for key, value, begin, end in reader.entries():
            self._spans[key] = slice(begin, end)
            if value is not None:
                self.values[key] = value
        tensors = reader.tensors(self.values.get("general.alignment", ALIGNMENT))
        self.tensors = {tensor.name: tensor for tensor in tensors}


def first_values(path: Path, needed: Collection[str]) -> dict[str, Value]:
    """Return the values that stand before the tokenizer's, by key without the architecture's prefix.

    Reading stops at the first key of the tokenizer, whose lists are long, if all of `needed` are known then, else at
    the end of the entries. Raises FormatError.
    """
    found: dict[str, Value] = {}

    def read(data: mmap.mmap) -> None:
        for key, value, _, _ in HeaderReader(data).entries():
            if key.startswith("tokenizer.") and all(name in found for name in needed):
                return
            if value is not None:
                found[key.removeprefix(f"{found.get('general.architecture', '')}.")] = value

    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            checked(path, lambda: read(data))
    except (OSError, ValueError) as exc:  # an empty file cannot be mapped
        raise FormatError(f"{path} is not a whole GGUF file: {exc}", _REPAIR) from exc
    return found


def checked(path: Path, read: Callable[[], _Result]) -> _Result:
    """Return what `read` gives. Raises FormatError for what is wrong with the header of the file `path`."""
    try:
        return read()
    except struct.error as exc:
        raise FormatError(f"{path} is not a whole GGUF file: it ends inside its header", _REPAIR) from exc
    except ValueError as exc:
        raise FormatError(f"{path} is not a whole GGUF file: {exc}", _REPAIR) from exc
