"""What a model's files say of it without an engine: its metadata, how many weights it has, its chat template."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localqwen.errors import FormatError, ModelNotFound
from localqwen.formats import gguf_parts, json_file, model_header, qwen3_config
from localqwen.formats.gguf import GgufFile
from localqwen.formats.qwen3_config import Qwen3Config
from localqwen.models import weight_count
from localqwen.models.weight_count import WeightCount


@dataclass(frozen=True)
class ModelMetadata:
    """What a model's files say: `form` is "gguf" or "safetensors", `modified` seconds since 1970.

    `quant` is written as its makers do ("Q4_K_M", "4bit"), "" where that is not said. `info` has GGUF's keys, lists
    left out.
    """

    form: str
    bytes: int
    modified: float
    count: WeightCount
    quant: str
    template: str
    info: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        return self.count.parameters


def of(path: Path) -> ModelMetadata:
    """Read a GGUF file or a checkpoint folder. Raises ModelNotFound, FormatError."""
    place = path.absolute()  # a link into a hub's cache keeps its name, which says the quantization
    try:
        return _read(place, place.stat().st_mtime_ns)
    except OSError as exc:
        raise ModelNotFound(f"there is nothing at {path} that can be read: {exc.strerror}", "check the path") from exc


@functools.lru_cache(maxsize=256)
def _read(path: Path, changed: int) -> ModelMetadata:
    """`changed` is in nanoseconds: another file of the same name is read anew."""
    return _of_folder(path, changed / 1e9) if path.is_dir() else _of_gguf(path, changed / 1e9)


def _of_gguf(path: Path, modified: float) -> ModelMetadata:
    parts = [_header(part) for part in gguf_parts.complete(path)]
    count = weight_count.of_gguf(parts)
    info: dict[str, Any] = {**parts[0].values, "general.parameter_count": count.parameters}
    template = str(info.pop("tokenizer.chat_template", ""))
    size = sum(part.path.stat().st_size for part in parts)
    return ModelMetadata("gguf", size, modified, count, gguf_parts.quant_of(path), template, info)


def _header(path: Path) -> GgufFile:
    file = GgufFile(path)
    file.close()
    return file


def _of_folder(folder: Path, modified: float) -> ModelMetadata:
    header, config = model_header.read(folder), qwen3_config.read(folder)
    name = header.architecture
    count = weight_count.of_folder(folder, config)
    info = {
        "general.architecture": name,
        "general.name": header.name,
        "general.parameter_count": count.parameters,
        f"{name}.context_length": header.context_length,
        f"{name}.block_count": header.block_count,
        f"{name}.embedding_length": header.width,
        f"{name}.attention.head_count": header.heads,
        f"{name}.attention.head_count_kv": header.kv_heads,
        f"{name}.attention.key_length": header.head_length,
    }
    return ModelMetadata("safetensors", header.bytes, modified, count, _quant(config), _template(folder), info)


def _quant(config: Qwen3Config) -> str:
    if "bits" in config.quantization:
        return f"{config.quantization['bits']}bit"
    return str(config.quantization.get("quant_method", config.dtype)).upper()


def _template(folder: Path) -> str:
    """Return the chat template. A file of its own wins over tokenizer_config.json, as in transformers."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise FormatError(f"{file} cannot be read: {exc}", "download this file again") from exc
    settings = folder / "tokenizer_config.json"
    template = json_file.read_object(settings).get("chat_template") if settings.is_file() else None
    if isinstance(template, list):  # several, by name
        named = [each for each in template if isinstance(each, dict)]
        template = next((each.get("template") for each in named if each.get("name") == "default"), None)
    return template if isinstance(template, str) else ""
