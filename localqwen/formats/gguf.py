"""GGUF files: what their headers say, and their tensors by memory map. Knows nothing of Qwen3."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

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
            with opened(path) as file:
                self._read_header(file)
        except FormatError:
            self.close()
            raise

    @property
    def entries(self) -> dict[str, bytes]:
        """A copy of each key with its value, as they stand in the file; lists too."""
        return {key: self._map[span] for key, span in self._spans.items()}

    def _read_header(self, file: BinaryIO) -> None:
        reader = HeaderReader(file)
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
    with opened(path) as file:
        for key, value, _, _ in HeaderReader(file).entries():
            if key.startswith("tokenizer.") and all(name in found for name in needed):
                break
            if value is not None:
                found[key.removeprefix(f"{found.get('general.architecture', '')}.")] = value
    return found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for its header. Raises FormatError for what is wrong with the header inside the block."""
    try:
        with path.open("rb") as file:
            yield file
    except (OSError, ValueError) as exc:
        raise FormatError(f"{path} is not a whole GGUF file: {exc}", _REPAIR) from exc


def checked(path: Path, read: Callable[[], _Result]) -> _Result:
    """Return what `read` gives. Raises FormatError for what is wrong with the header of the file `path`."""
    try:
        return read()
    except ValueError as exc:
        raise FormatError(f"{path} is not a whole GGUF file: {exc}", _REPAIR) from exc
