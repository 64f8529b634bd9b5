"""What a model's files say of it without an engine: how many weights, in which form, under which chat template."""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localqwen.errors import ModelNotFound, Unsupported
from localqwen.models import cached, checkpoint_header, gguf_header

#: What stands beside quantised weights, by the end of its name: of MLX, AWQ and GPTQ, FP8.
_BESIDE = ("scales", "biases", "qzeros", "g_idx", "weight_scale_inv")
_LONGEST_HEADER = 100 << 20  # safetensors' own limit
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Card:
    """`form` is "gguf" or "safetensors"; `quant` as its makers write it ("Q4_K_M", "4bit"), "" where that is not said;
    `info` has GGUF's keys, lists left out; `modified` is seconds since 1970."""

    form: str
    bytes: int
    modified: float
    parameters: int
    quant: str
    template: str
    info: Mapping[str, Any]


def of(path: Path) -> Card:
    """Of a GGUF file or a checkpoint folder. Raises ModelNotFound, Unsupported."""
    place = path.absolute()  # a link into a hub's cache keeps its name, which says the quantisation
    if not place.exists():
        raise ModelNotFound(f"there is nothing at {path}", "check the path")
    return _read(place, place.stat().st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _read(path: Path, changed: int) -> Card:
    """`changed` is in nanoseconds: another file of the same name is read anew."""
    return _of_folder(path, changed / 1e9) if path.is_dir() else _of_gguf(path, changed / 1e9)


def _of_gguf(path: Path, modified: float) -> Card:
    entries = {key: value for key, value in gguf_header.metadata(path).items() if value is not None}
    template = str(entries.pop("tokenizer.chat_template", ""))
    count = gguf_header.parameters(path)
    info = {**entries, "general.parameter_count": count}
    size = sum(part.stat().st_size for part in cached.siblings(path))
    return Card("gguf", size, modified, count, cached.quant_of(path), template, info)


def _of_folder(folder: Path, modified: float) -> Card:
    header, config = checkpoint_header.read(folder), checkpoint_header.config_of(folder)
    name = header.architecture
    count = sum(_weights(folder, config))
    info = {
        "general.architecture": name,
        "general.name": header.name,
        "general.parameter_count": count,
        f"{name}.context_length": header.context_length,
        f"{name}.block_count": header.block_count,
        f"{name}.embedding_length": header.width,
        f"{name}.attention.head_count": header.heads,
        f"{name}.attention.head_count_kv": header.kv_heads,
        f"{name}.attention.key_length": header.head_length,
    }
    return Card("safetensors", header.bytes, modified, count, _quant(config), _template(folder), info)


def _quant(config: Mapping[str, Any]) -> str:
    quantization = _quantization(config)
    if "bits" in quantization:
        return f"{quantization['bits']}bit"
    if "quant_method" in quantization:
        return str(quantization["quant_method"]).upper()
    return _DTYPES.get(str(config.get("torch_dtype") or config.get("dtype")), "")


def _quantization(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found = config.get("quantization") or config.get("quantization_config")
    return found if isinstance(found, dict) else {}


def _weights(folder: Path, config: Mapping[str, Any]) -> Iterator[int]:
    """How many each tensor holds. Several small ones are packed into an integer of 32 bits."""
    quantization = _quantization(config)
    for name, dtype, shape in _tensors(folder):
        module, _, kind = name.rpartition(".")
        if kind in _BESIDE or (module == "lm_head" and config.get("tie_word_embeddings")):
            continue  # the official 0.6B holds its output layer twice
        own = quantization.get(module)
        bits = (own if isinstance(own, dict) else quantization).get("bits") if dtype in ("U32", "I32") else None
        yield math.prod(shape) * 32 // bits if bits else math.prod(shape)


def _tensors(folder: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, type and shape of all, from the headers of the safetensors files."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(min(length, _LONGEST_HEADER)))
            for name, tensor in header.items():
                if name != "__metadata__":
                    yield name, tensor["dtype"], tensor["shape"]
        except (ValueError, struct.error, KeyError, TypeError, AttributeError) as exc:
            raise Unsupported(f"{file} is not a whole safetensors file: {exc}", "download it again") from exc


def _template(folder: Path) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    settings = folder / "tokenizer_config.json"
    try:
        found = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    except ValueError as exc:
        raise Unsupported(f"{settings} is not JSON: {exc}", "download it again") from exc
    template = found.get("chat_template") if isinstance(found, dict) else None
    if isinstance(template, list):  # several, by name
        template = next((each.get("template") for each in template if each.get("name") == "default"), None)
    return template if isinstance(template, str) else ""
