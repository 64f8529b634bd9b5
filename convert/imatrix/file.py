"""Files of importance matrices: how strongly each column of a matrix was used while a model read a text.

Both of llama.cpp's formats are read (common/imatrix-loader.cpp, tools/quantize): a GGUF file with sums of squares and
counts for each tensor, which is also written, and the older .dat file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.gguf.head import Metadata, StoredTensor, entries, head, padding
from convert.imatrix.collector import Sums
from convert.output import file as output_file
from localqwen.errors import CheckpointError, ConversionError
from localqwen.formats.dtypes import F32
from localqwen.formats.gguf import GgufFile
from localqwen.formats.gguf_reader import MAGIC
from localqwen.formats.tensors import SourceTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_BYTES = 1_000_000_000
_MAX_TEXT = 127  # llama.cpp cuts the texts that it writes into the metadata
_HINT = "make it with llama-imatrix, from the same model"


@dataclass(frozen=True)
class Importance:
    """An importance matrix: the name of its `file`, and of the text (`dataset`) with its number of `chunks`.

    `values` are by the tensor's GGUF name: one number per column; for a stack of experts, the columns of each in turn.
    """

    values: Mapping[str, NDArray[np.float32]] = field(repr=False)
    file: str
    dataset: str = ""
    chunks: int = 0

    def of(self, tensor: StoredTensor) -> list[NDArray[np.float32]] | None:
        """Return one array per expert, or one, of float32 per column; None if all columns of `tensor` count alike.

        That is so for a tensor that the file does not have. Raise ConversionError if the file is another model's.
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
        """The keys that `llama-quantize` adds to a file that an importance matrix was used for."""
        result: Metadata = {"quantize.imatrix.file": self.file[:_MAX_TEXT]}
        if self.dataset:
            result["quantize.imatrix.dataset"] = self.dataset[:_MAX_TEXT]
        result["quantize.imatrix.entries_count"] = len(self.values)
        if self.chunks > 0:
            result["quantize.imatrix.chunks_count"] = self.chunks
        return result


def read(path: Path) -> Importance:
    """Read an importance matrix. Raise ConversionError if the file is none, or has values that are not finite."""
    import numpy as np

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConversionError(f"{path} is too large for an importance matrix", _HINT)
        with path.open("rb") as file:
            found = _read_gguf(path) if file.read(4) == MAGIC else _read_old(path, path.read_bytes())
    except FileNotFoundError as exc:
        raise ConversionError(f"{path} does not exist", "localqwen imatrix MODEL --text FILE makes one") from exc
    except (OSError, ValueError, struct.error, KeyError, CheckpointError) as exc:
        raise ConversionError(f"{path} is not an importance matrix: {exc}", _HINT) from exc
    for name, values in found.values.items():
        if not np.isfinite(values).all():
            raise ConversionError(f"{path} holds numbers for {name} that are NaN or infinite", _HINT)
    return found


def write(out: Path, sums: Mapping[str, Sums], dataset: str, chunks: int, chunk_size: int, *, force: bool) -> None:
    """Write the importance matrix of a text, `dataset`, in `chunks` chunks of `chunk_size` tokens, as a GGUF file.

    Raise ConversionError for sums that are not finite, and OutputError.
    """
    import numpy as np

    keys = entries(
        {
            "general.type": "imatrix",
            "imatrix.datasets": [dataset],
            "imatrix.chunk_count": chunks,
            "imatrix.chunk_size": chunk_size,
        }
    )
    arrays: dict[str, NDArray[Any]] = {}
    for name, found in sorted(sums.items()):
        arrays[f"{name}.in_sum2"] = found.squares.astype(np.float32)
        arrays[f"{name}.counts"] = found.rows.astype(np.float32)[:, None]
        if not np.isfinite(arrays[f"{name}.in_sum2"]).all():
            raise ConversionError(f"the inputs of {name} are not finite", "check the model: localqwen verify")
    begin = head(keys, [StoredTensor(name, array.shape, F32) for name, array in arrays.items()])
    size = len(begin) + sum(array.nbytes + padding(array.nbytes) for array in arrays.values())
    with output_file.writing(out, size=size, force=force) as file:
        output_file.write(file, memoryview(begin))
        for array in arrays.values():
            output_file.write(file, memoryview(array.tobytes() + bytes(padding(array.nbytes))))


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
    """Return the mean square of each column, expert by expert; 1 for all columns of an expert that read nothing."""
    import numpy as np

    if not counts.size or sums.size % counts.size:
        raise ValueError(f"{sums.size} sums do not fit {counts.size} counts")
    rows, times = sums.reshape(counts.size, -1), np.rint(counts).astype(np.float32)[:, None]
    mean: NDArray[Any] = np.divide(rows, times, out=np.ones_like(rows), where=times > 0)
    return mean.reshape(-1)


def _first_text(entry: bytes) -> str:
    """Return the first text of a GGUF entry (key, type, values) that is a list of texts; "" if it is not."""
    if not entry:
        return ""
    (key,) = struct.unpack_from("<Q", entry)
    kind, count, length = struct.unpack_from("<IQQ", entry, 8 + key + 4) if len(entry) >= 32 + key else (0, 0, 0)
    begin = 8 + key + 4 + 20
    return entry[begin : begin + length].decode(errors="replace") if kind == 8 and count else ""


def _read_old(path: Path, data: bytes) -> Importance:
    """Parse the .dat format: a count, then name, calls and sums of each tensor, then perhaps chunks and dataset."""
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
