"""The few metadata of a GGUF file that sizes and choices need, read without an engine.

Reads the header only (GGUF specification, version 2 and 3) and stops as soon as it has what it wants.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localqwen.errors import ModelNotFound, Unsupported
from localqwen.formats.yarn import Scaling
from localqwen.models import cached

#: GGUF value types with a fixed size: id -> struct format.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_COUNTS = {"attention.head_count_kv", "attention.key_length", "rope.scaling.original_context_length"}
_WIDTHS = {"feed_forward_length", "expert_count", "expert_feed_forward_length"}
_SCALING = {f"rope.scaling.{part}" for part in ("type", "factor", "original_context_length")}
_TEXTS = ("general.name", "general.architecture", "rope.scaling.type")
_LONGEST_TEXT = 1 << 24
_TOO_MUCH = 1 << 24  # no header has more entries; a larger count means a damaged file


@dataclass(frozen=True)
class GgufHeader:
    """Lengths in tokens, `bytes` of the whole model, all parts of a split one together."""

    path: Path
    bytes: int
    name: str
    architecture: str
    context_length: int
    block_count: int
    kv_heads: int
    head_length: int
    width: int = 0
    heads: int = 0
    scaling: Scaling | None = None
    feed_forward: int = 0
    experts: int = 0
    expert_feed_forward: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """What shapes the weights, by the file's own keys without the architecture."""
        return {
            "block_count": self.block_count,
            "embedding_length": self.width,
            "feed_forward_length": self.feed_forward,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head_length,
            "expert_count": self.experts,
            "expert_feed_forward_length": self.expert_feed_forward,
        }

    @property
    def kv_elements_per_token(self) -> int:
        return self.block_count * self.kv_heads * self.head_length * 2

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values in 16 bit."""
        return self.kv_elements_per_token * 2


def read(path: Path) -> GgufHeader:
    """Raises ModelNotFound without a file, Unsupported where it is not a whole GGUF header."""
    if not path.is_file():
        raise ModelNotFound(f"there is no file {path}", "check the path")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            values = _wanted(_Reader(data))
    except (ValueError, struct.error, KeyError, UnicodeDecodeError) as exc:
        raise _not_whole(path, exc) from exc
    heads = values["attention.head_count"]
    return GgufHeader(
        path=path,
        bytes=sum(part.stat().st_size for part in cached.siblings(path)),
        name=values.get("general.name", path.stem),
        architecture=values["general.architecture"],
        context_length=values["context_length"],
        block_count=values["block_count"],
        kv_heads=values.get("attention.head_count_kv", heads),
        head_length=values.get("attention.key_length", values["embedding_length"] // heads),
        width=values["embedding_length"],
        heads=heads,
        scaling=_scaling(values),
        feed_forward=_width(values, "feed_forward_length"),
        experts=_width(values, "expert_count"),
        expert_feed_forward=_width(values, "expert_feed_forward_length"),
    )


def _width(values: dict[str, Any], key: str) -> int:
    """0 where it is not said, or not for all layers alike."""
    value = values.get(key)
    return value if type(value) is int else 0


def _scaling(values: dict[str, Any]) -> Scaling | None:
    kind = values.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    factor = values.get("rope.scaling.factor", 1.0)
    return Scaling(factor, values.get("rope.scaling.original_context_length", 0), kind)


def parameters(path: Path) -> int:
    """Weights of the whole model, all parts of a split one together. Passes the vocabulary, as `metadata` does."""
    total = 0
    for part in cached.siblings(path):
        try:
            with part.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                total += sum(math.prod(shape) for shape in _Reader(data).shapes())
        except OSError as exc:
            raise ModelNotFound(f"cannot read {part}: {exc.strerror}", "download or convert it again") from exc
        except (ValueError, struct.error, KeyError, UnicodeDecodeError) as exc:
            raise _not_whole(part, exc) from exc
    return total


def metadata(path: Path) -> dict[str, Any]:
    """Every key of the header with its value, None for lists. Takes longer than `read`: it passes the vocabulary."""
    if not path.is_file():
        raise ModelNotFound(f"there is no file {path}", "check the path")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return dict(_Reader(data).entries())
    except (ValueError, struct.error, KeyError, UnicodeDecodeError) as exc:
        raise _not_whole(path, exc) from exc


def _not_whole(path: Path, problem: Exception) -> Unsupported:
    return Unsupported(f"{path} is not a whole GGUF file: {problem}", "download or convert it again")


def _wanted(reader: _Reader) -> dict[str, Any]:
    """Values by key, the architecture's prefix removed. The tokenizer's long arrays come last and are not read."""
    needed = {"context_length", "block_count", "embedding_length", "attention.head_count"}
    optional = {"general.name", "general.architecture", *_COUNTS, *_WIDTHS, *_SCALING}
    found: dict[str, Any] = {}
    for key, value in reader.entries():
        short = key.removeprefix(f"{found.get('general.architecture', '')}.")
        if short in needed | optional:
            found[short] = value
        if key.startswith("tokenizer.") and needed <= found.keys():
            break
    for key in (needed | _COUNTS) & found.keys():
        if type(found[key]) is not int or found[key] < 1:
            raise ValueError(f"its {key} is {found[key]!r}")
    if not all(isinstance(found.get(key, ""), str) for key in _TEXTS):
        raise ValueError("its name or its rope.scaling.type is no text")
    factor = found.get("rope.scaling.factor", 1.0)
    if type(factor) is not float or not 0 < factor < float("inf"):
        raise ValueError(f"its rope.scaling.factor is {factor!r}")
    missing = sorted((needed | {"general.architecture"}) - found.keys())
    if missing:
        raise ValueError(f"its header lacks {', '.join(missing)}")
    return found


class _Reader:
    """Walks the key-value section. Every read is checked against the file's end by struct."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4
        if data[:4] != b"GGUF":
            raise ValueError(f"it begins with {bytes(data[:4])!r}")
        version = self._scalar("I")
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version} is not known")
        self._tensors = self._count()
        self._entries = self._count()

    def entries(self) -> Iterator[tuple[str, Any]]:
        for _ in range(self._entries):
            key = self._string()
            yield key, self._value(self._scalar("I"))

    def shapes(self) -> Iterator[tuple[int, ...]]:
        """Of the tensors, whose list stands behind the entries."""
        for _ in self.entries():
            pass
        for _ in range(self._tensors):
            self._skip_string()
            shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))
            self._scalar("I"), self._scalar("Q")  # type, place
            yield shape

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._skip_array()
        return self._scalar(_SCALARS[kind])

    def _skip_array(self) -> None:
        kind, count = self._scalar("I"), self._count()
        if kind in _SCALARS:
            self._at += struct.calcsize(_SCALARS[kind]) * count
        elif kind == _STRING:
            for _ in range(count):
                self._skip_string()
        else:
            raise ValueError(f"a list of values of type {kind}")

    def _count(self) -> int:
        count: int = self._scalar("Q")
        if count > _TOO_MUCH:
            raise ValueError(f"a count of {count:,} cannot be right")
        return count

    def _string(self) -> str:
        length = self._skip_string()
        if length > _LONGEST_TEXT:
            raise ValueError(f"a text of {length:,} bytes cannot be right")
        return self._data[self._at - length : self._at].decode()

    def _skip_string(self) -> int:
        length: int = self._scalar("Q")
        if length > len(self._data) - self._at:
            raise ValueError("it ends inside a text")
        self._at += length
        return length

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize("<" + code)
        return value
