"""The shape of a model, read without an engine: from the header of a GGUF file, or from a folder's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localqwen.errors import ModelNotFound
from localqwen.formats import gguf, gguf_parts, qwen3_config
from localqwen.formats.gguf_reader import Value
from localqwen.formats.yarn import Scaling

_NEEDED = ("context_length", "block_count", "embedding_length", "attention.head_count")
#: What must be a count where the file says it.
_COUNTS = (
    *_NEEDED, "attention.head_count_kv", "attention.key_length", "rope.scaling.original_context_length",
)  # fmt: skip
#: The largest count; llama.cpp reads them into 32 bits.
_MOST = 2**31 - 1
_TEXTS = ("general.name", "general.architecture", "rope.scaling.type")


@dataclass(frozen=True)
class ModelHeader:
    """What shapes a model, the same whether it is a GGUF file or a folder. Lengths are tokens, widths are elements.

    `path` is what an engine opens; `bytes` are those of all its files of weights, all parts of a split one together. A
    dense model has 0 `experts`. `feed_forward` and the numbers of experts are 0 where the file does not say one number.
    """

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
        """What shapes the weights, by GGUF's keys without the architecture."""
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
        """The bytes of keys and values in 16 bit."""
        return self.kv_elements_per_token * 2


def read(path: Path) -> ModelHeader:
    """Read the header of a GGUF file or a checkpoint folder, without its vocabulary.

    Raises ModelNotFound where there is none, FormatError where it is damaged or, of a folder, no Qwen3.
    """
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise ModelNotFound(f"there is no file {path}", "check the path")
    values = gguf.first_values(path, _NEEDED)
    size = sum(part.stat().st_size for part in gguf_parts.present(path))
    return gguf.checked(path, lambda: _of_values(path, size, values))


def _of_folder(folder: Path) -> ModelHeader:
    if not (folder / qwen3_config.FILE).is_file():
        raise ModelNotFound(f"there is no {qwen3_config.FILE} in {folder}", "name the folder of a checkpoint")
    config = qwen3_config.read(folder)
    return ModelHeader(
        path=folder,
        bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        name=folder.name,
        architecture=config.gguf_architecture,
        context_length=config.context,
        block_count=config.layers,
        kv_heads=config.kv_heads,
        head_length=config.head_size,
        width=config.hidden,
        heads=config.heads,
        scaling=config.scaling,
        feed_forward=config.feed_forward,
        experts=config.experts,
        expert_feed_forward=config.expert_feed_forward,
    )


def _of_values(path: Path, size: int, values: Mapping[str, Value]) -> ModelHeader:
    _check(values)
    numbers = {key: value for key, value in values.items() if type(value) is int}
    heads, width = numbers["attention.head_count"], numbers["embedding_length"]
    return ModelHeader(
        path=path,
        bytes=size,
        name=str(values.get("general.name", path.stem)),
        architecture=str(values["general.architecture"]),
        context_length=numbers["context_length"],
        block_count=numbers["block_count"],
        kv_heads=numbers.get("attention.head_count_kv", heads),
        head_length=numbers.get("attention.key_length", width // heads),
        width=width,
        heads=heads,
        scaling=_scaling(values, numbers.get("rope.scaling.original_context_length", 0)),
        feed_forward=numbers.get("feed_forward_length", 0),
        experts=numbers.get("expert_count", 0),
        expert_feed_forward=numbers.get("expert_feed_forward_length", 0),
    )


def _check(values: Mapping[str, Value]) -> None:
    """Raise ValueError for a value of another kind than the key has."""
    for key in _COUNTS:
        if key in values and (type(values[key]) is not int or not 1 <= int(values[key]) <= _MOST):
            raise ValueError(f"its {key} is {values[key]!r}")
    if not all(isinstance(values.get(key, ""), str) for key in _TEXTS):
        raise ValueError("its name, its architecture or its rope.scaling.type is no text")
    factor = values.get("rope.scaling.factor", 1.0)
    if type(factor) is not float or not 0 < factor < _MOST:
        raise ValueError(f"its rope.scaling.factor is {factor!r}")
    if missing := sorted({*_NEEDED, "general.architecture"} - values.keys()):
        raise ValueError(f"its header lacks {', '.join(missing)}")


def _scaling(values: Mapping[str, Value], original: int) -> Scaling | None:
    kind = str(values.get("rope.scaling.type", "none"))
    return None if kind == "none" else Scaling(float(values.get("rope.scaling.factor", 1.0)), original, kind)
