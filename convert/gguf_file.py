"""The head of a GGUF file as bytes: magic, metadata, tensor table. The data that follow are written elsewhere.

The layout is gguf's own (its GGUFWriter packs it); it is built in memory, some megabytes for a real vocabulary, so
that the size of the whole file is known before the first byte is written.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convert.tensor_types import TensorType
from localqwen.errors import CheckpointError

#: The format's default: every tensor's data start at a multiple of it.
ALIGNMENT = 32


class Int32(int):
    """A number that llama.cpp writes signed; a plain int becomes uint32, a float float32."""


Value = str | bool | int | float | Sequence[str] | Sequence[int]
Metadata = dict[str, Value]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it will stand in the file; `shape` has rows first, and experts before them."""

    name: str
    shape: tuple[int, ...]
    type: TensorType

    @property
    def size(self) -> int:
        """Bytes of data, without padding."""
        return math.prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])


def padding(size: int) -> int:
    return -size % ALIGNMENT


def head(architecture: str, metadata: Metadata, tensors: Sequence[StoredTensor]) -> bytes:
    """Everything before the data of the first tensor, padding included. Raises CheckpointError."""
    try:
        return _head(architecture, metadata, tensors)
    except UnicodeEncodeError as exc:  # JSON can spell half a character, UTF-8 cannot
        raise CheckpointError(
            f"the checkpoint's JSON files hold text that is no Unicode: {exc.reason}", "download them again"
        ) from exc


def _head(architecture: str, metadata: Metadata, tensors: Sequence[StoredTensor]) -> bytes:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(None, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType(tensor.type.number)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size, raw_dtype=kind)
    buffer = io.BytesIO()
    writer.fout = [buffer]  # instead of a path: the writer opens files by itself only
    writer.state = gguf.gguf_writer.WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    buffer.write(bytes(padding(buffer.tell())))
    return buffer.getvalue()


def _add(writer: Any, key: str, value: Value) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case Int32():
            writer.add_int32(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
