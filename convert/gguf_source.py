"""An existing GGUF file as a source of tensors. Knows nothing of quantizations.

All parts of a split file are one source.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from convert.quants import TYPES
from localqwen.errors import CheckpointError
from localqwen.formats import gguf_parts
from localqwen.formats.gguf import GgufFile
from localqwen.formats.gguf_reader import GgufTensor, Value
from localqwen.formats.tensors import SourceTensor

_REPAIR = "download or convert it again"
#: Metadata that say how a file is cut and laid out; a file that is made from it is laid out anew.
_LAYOUT = ("split.", "general.alignment")


class GgufSource:
    """A GGUF model, all its parts. Use with `with`; raises CheckpointError.

    `tensors` are what can be read: matrices by name, stacks of experts as `name[0]`, `name[1]`, …
    """

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self._parts: list[GgufFile] = []
        self.tensors: dict[str, SourceTensor] = {}
        self._home: dict[str, GgufFile] = {}
        self.stored: dict[str, GgufTensor] = {}
        try:
            for file in _files(path):
                self._parts.append(GgufFile(file))
                self._add(self._parts[-1])
            self._check_whole()
        except BaseException:
            self.close()
            raise

    @property
    def entries(self) -> dict[str, bytes]:
        """The metadata as they stand in the first part, without those that say how its files are laid out."""
        return {key: entry for key, entry in self._parts[0].entries.items() if not key.startswith(_LAYOUT)}

    @property
    def values(self) -> dict[str, Value]:
        return self._parts[0].values

    @property
    def data_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.stored.values())

    @property
    def weight_files(self) -> list[Path]:
        return [part.path for part in self._parts]

    def files(self, names: Iterable[str]) -> list[Path]:
        return self.weight_files

    def file_of(self, name: str) -> GgufFile:
        return self._home[name]

    def sources(self, tensor: GgufTensor) -> tuple[str, ...]:
        """The names under which `tensors` has it: one, or one per expert."""
        if len(tensor.shape) < 3:
            return (tensor.name,)
        return tuple(f"{tensor.name}[{expert}]" for expert in range(tensor.shape[0]))

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def __enter__(self) -> GgufSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, part: GgufFile) -> None:
        for tensor in part.tensors.values():
            if tensor.name in self.stored:
                raise CheckpointError(f"{part.path} has {tensor.name} once more", _REPAIR)
            if tensor.type.name.lower() not in TYPES:
                raise CheckpointError(
                    f"{part.path}: {tensor.name!r} has the type {tensor.type.name}; converted are {', '.join(TYPES)}",
                    "convert the official checkpoint instead",
                )
            self.stored[tensor.name] = tensor
            names = self.sources(tensor)
            size = tensor.bytes // len(names)
            for number, name in enumerate(names):
                start = tensor.start + number * size
                self.tensors[name] = SourceTensor(name, tensor.type.name, tensor.shape[-2:], start, size)
                self._home[name] = part

    def _check_whole(self) -> None:
        """A part that says how many tensors the whole has, and one that is alone but should not be."""
        first = self._parts[0]
        count, tensors = first.values.get("split.count", 1), first.values.get("split.tensors.count")
        if count not in (len(self._parts), 0):
            raise CheckpointError(f"{first.path} is one of {count} parts, and not named so", "restore its name")
        if tensors is not None and tensors != len(self.stored):
            raise CheckpointError(f"{first.path} should have {tensors} tensors, not {len(self.stored)}", _REPAIR)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a GGUF file", "name the file, or the first of its parts")
    return gguf_parts.complete(path)
