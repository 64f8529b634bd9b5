"""Importance matrices: how strongly each column of a matrix was used while a text was read.

Read in both of llama.cpp's formats (common/imatrix-loader.cpp, tools/quantize): a GGUF file with sums of squares and
counts per tensor, and the older .dat file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.gguf_file import Metadata, StoredTensor
from localqwen.errors import CheckpointError, ConversionError
from localqwen.formats.gguf import GgufFile
from localqwen.formats.gguf_reader import MAGIC
from localqwen.formats.tensors import SourceTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_BYTES = 1_000_000_000
_MAX_TEXT = 127  # llama.cpp cuts the texts that it notes in the file
_HINT = "make it with llama-imatrix, from the same model"


@dataclass(frozen=True)
class Importance:
    """`values` by the tensor's GGUF name: one number per column, of a stack the columns of every expert in turn."""

    values: Mapping[str, NDArray[np.float32]] = field(repr=False)
    file: str
    dataset: str = ""
    chunks: int = 0

    def of(self, tensor: StoredTensor) -> list[NDArray[np.float32]] | None:
        """One array per expert, or one. None for what the matrix does not know; then all columns count alike.

        Raises ConversionError where its size is another model's.
        """
        import numpy as np

        values = self.values.get(tensor.name)
        experts = tensor.shape[0] if len(tensor.shape) > 2 else 1
        if values is None or not tensor.type.quantized:
            return None
        if values.size != experts * tensor.shape[-1]:
            if tensor.name == "token_embd.weight":  # it is looked up, not multiplied: llama.cpp passes over it, too
                return None
            raise ConversionError(
                f"{self.file} has {values.size:,} numbers for {tensor.name}, "
                f"the model {experts * tensor.shape[-1]:,} columns",
                _HINT,
            )
        return [np.ascontiguousarray(row) for row in values.reshape(experts, -1)]

    @property
    def metadata(self) -> Metadata:
        """What `llama-quantize` notes of it in the file."""
        result: Metadata = {"quantize.imatrix.file": self.file[:_MAX_TEXT]}
        if self.dataset:
            result["quantize.imatrix.dataset"] = self.dataset[:_MAX_TEXT]
        result["quantize.imatrix.entries_count"] = len(self.values)
        if self.chunks > 0:
            result["quantize.imatrix.chunks_count"] = self.chunks
        return result


def read(path: Path) -> Importance:
    """Raises ConversionError for a file that is no importance matrix, or holds what is no number."""
    import numpy as np

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConversionError(f"{path} is too large for an importance matrix", _HINT)
        with path.open("rb") as file:
            found = _read_gguf(path) if file.read(4) == MAGIC else _read_old(path, path.read_bytes())
    except FileNotFoundError as exc:
        raise ConversionError(f"{path} does not exist", "localqwen imatrix MODEL --text FILE makes one") from exc
    except (OSError, ValueError, struct.error, KeyError, CheckpointError) as exc:
        raise ConversionError(f"{path} is no importance matrix: {exc}", _HINT) from exc
    for name, values in found.values.items():
        if not np.isfinite(values).all():
            raise ConversionError(f"{path} holds numbers for {name} that are NaN or infinite", _HINT)
    return found


def _read_gguf(path: Path) -> Importance:
    part = GgufFile(path)
    try:
        names = [name.removesuffix(_SUMS) for name in part.tensors if name.endswith(_SUMS)]
        if not names or "imatrix.chunk_count" not in part.values:
            raise ValueError("it has no sums of squares")
        values = {name: _mean(_numbers(part, name + _SUMS), _numbers(part, name + _COUNTS)) for name in names}
        dataset = _first_text(part.entries.get("imatrix.datasets", b""))
        return Importance(dict(sorted(values.items())), path.name, dataset, int(part.values["imatrix.chunk_count"]))
    finally:
        part.close()


def _numbers(part: GgufFile, name: str) -> NDArray[Any]:
    tensor = part.tensors[name]
    if tensor.type.name != "F32":
        raise ValueError(f"{name} is {tensor.type.name}, not F32")
    whole = SourceTensor(name, "F32", (1, tensor.bytes // 4), tensor.start, tensor.bytes)
    numbers: NDArray[Any] = part.rows(whole, 0, 1)[0]
    return numbers.copy()


def _mean(sums: NDArray[Any], counts: NDArray[Any]) -> NDArray[Any]:
    """Per expert; one that the text never reached counts all columns alike."""
    import numpy as np

    if not counts.size or sums.size % counts.size:
        raise ValueError(f"{sums.size} sums do not fit {counts.size} counts")
    rows, times = sums.reshape(counts.size, -1), np.rint(counts).astype(np.float32)[:, None]
    mean: NDArray[Any] = np.divide(rows, times, out=np.ones_like(rows), where=times > 0)
    return mean.reshape(-1)


def _first_text(entry: bytes) -> str:
    """Of a list of texts, as it stands in a GGUF file behind its key."""
    if not entry:
        return ""
    (key,) = struct.unpack_from("<Q", entry)
    kind, count, length = struct.unpack_from("<IQQ", entry, 8 + key + 4) if len(entry) >= 32 + key else (0, 0, 0)
    begin = 8 + key + 4 + 20
    return entry[begin : begin + length].decode(errors="replace") if kind == 8 and count else ""


def _read_old(path: Path, data: bytes) -> Importance:
    """A count, then name, calls and sums of each tensor; behind them chunks and the text's name, if at all."""
    import numpy as np

    (count,), at = struct.unpack_from("<i", data), 4
    values: dict[str, NDArray[Any]] = {}
    if not 0 < count <= len(data):
        raise ValueError(f"a count of {count:,} tensors")
    for _ in range(count):
        name, at = _old_text(data, at)
        calls, size = struct.unpack_from("<ii", data, at)
        at += 8
        if not 0 < size <= (len(data) - at) // 4:
            raise ValueError(f"{name} has {size:,} numbers")
        sums = np.frombuffer(data, "<f4", size, at)
        values[name] = sums / np.float32(calls) if calls > 0 else sums.copy()
        at += 4 * size
    chunks, dataset = 0, ""
    if len(data) - at >= 8:
        (chunks,) = struct.unpack_from("<i", data, at)
        dataset, at = _old_text(data, at + 4)
    return Importance(values, path.name, dataset, chunks)


def _old_text(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<i", data, at)
    if not 0 <= length <= len(data) - at - 4:
        raise ValueError(f"a text of {length:,} bytes")
    return data[at + 4 : at + 4 + length].decode(), at + 4 + length
