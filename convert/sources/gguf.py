"""A GGUF file as a source of tensors; all parts of a split file are one source. It knows nothing of quantizations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from convert.gguf.quants import TYPES
from localqwen.errors import CheckpointError
from localqwen.formats import gguf_parts
from localqwen.formats.gguf import GgufFile
from localqwen.formats.gguf_reader import GgufTensor, Value
from localqwen.formats.tensors import SourceTensor

_REPAIR = "download or convert it again"
#: Keys that describe how a file is split and aligned; a file that is converted from it has its own layout.
_LAYOUT = ("split.", "general.alignment")


class GgufSource:
    """An open GGUF model with all its parts: `stored` are its tensors by name. Use with `with`; raises CheckpointError.

    `tensors` are the matrices that can be read: by name, and of a stack of experts as `name[0]`, `name[1]`, …
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
        """The metadata of the first part as bytes by key, without those that describe its layout."""
        return {key: entry for key, entry in self._parts[0].entries.items() if not key.startswith(_LAYOUT)}

    @property
    def values(self) -> dict[str, Value]:
        """The metadata that are not lists, by key."""
        return self._parts[0].values

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(tensor.bytes for tensor in self.stored.values())

    @property
    def weight_files(self) -> list[Path]:
        """The paths of all parts."""
        return [part.path for part in self._parts]

    def files(self, names: Iterable[str]) -> list[Path]:
        """Return all parts; a GGUF file needs no other files."""
        return self.weight_files

    def file_of(self, name: str) -> GgufFile:
        """Return where the rows of a matrix come from."""
        return self._home[name]

    def sources(self, tensor: GgufTensor) -> tuple[str, ...]:
        """Return the names of a tensor's matrices: one, or one per expert."""
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
                raise CheckpointError(f"{part.path} has {tensor.name} twice", _REPAIR)
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
        """Raise CheckpointError for a part under another name, and if tensors are missing."""
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
