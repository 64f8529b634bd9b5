"""What one model is, for `localqwen show`: from its entry, and from its file where it is here. Loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from localqwen.formats import model_header, yarn
from localqwen.formats.model_header import ModelHeader
from localqwen.models import digests, fit
from localqwen.models.local_files import LocalFile
from localqwen.models.names import Named
from localqwen.models.registry import Model
from localqwen.models.resolve import LLAMA_CPP, Choice, ReadableBy, resolve

_CONTEXTS = (4096, 16384, 32768)


def describe(name: str) -> dict[str, Any]:
    """Return what a model is. Sizes are in bytes, lengths in tokens.

    A plain checkpoint folder is converted first, as llama.cpp would run it. Raise ModelNotFound, ConversionError.
    """
    model = resolve(name, _format_reader)
    if isinstance(model.reference, Named) and not model.is_built_in:
        return _of_entry(model.reference, None if model.conversion else model.files)
    return _of_file(model.display, model.path(), model.entry)


def _format_reader(engine: str | None, files: ReadableBy | None) -> Choice:
    """The engine whose format is described; none needs to be installed."""
    return Choice(files.engine if files and files.alone else LLAMA_CPP, "")


def _of_entry(named: Named, found: LocalFile | None) -> dict[str, Any]:
    model, quant = named.model, named.quant
    return {
        "name": named.text,
        "description": model.description,
        "thinking": model.thinking,
        "sampling": {mode: dict(values) for mode, values in model.sampling.items()},
        "licence": model.licence,
        "parameters": model.parameters,
        "active_parameters": model.active if model.mixture else None,
        "layers": model.layers,
        "kv_heads": model.kv_heads,
        "head_length": model.head_dim,
        "context_length": model.longest,
        "native_context": model.native,
        "yarn_context": model.yarn or None,
        "quantisation": quant,
        "quantisations": [*model.quants, *(f"{bits} (MLX)" for bits in model.mlx)],
        "repository": _repository(named),
        "official_file": quant in model.gguf or named.mlx,
        "here": found is not None,
        "files": [_file(path) for path in found.parts] if found else [],
        "template": _template(found),
        "bytes": found.bytes if found else (model.mlx[quant].bytes if named.mlx else model.gguf_bytes(quant)),
        "download_bytes": model.mlx[quant].bytes if named.mlx else model.download_bytes(quant),
        "memory": _memory(model, quant) if not named.mlx else {},
    }


def _repository(named: Named) -> str | None:
    model = named.model
    if named.mlx:
        return model.mlx[named.quant].repo
    return model.gguf_repo if named.quant in model.gguf else model.weights.repo if model.weights else None


def _memory(model: Model, quant: str) -> dict[str, int]:
    contexts = sorted({min(context, model.longest) for context in (*_CONTEXTS, model.longest)} | {model.yarn} - {0})
    return {str(context): fit.model_need(model, quant, context).total for context in contexts}


def _file(path: Path) -> dict[str, Any]:
    return {"path": str(path), "bytes": path.stat().st_size, "digest": digests.declared(path) or None}


def _template(found: LocalFile | None) -> str | None:
    """Where the chat template comes from, if the file is here."""
    if found is None or found.engine == "mlx":
        return None
    return "in the official file" if digests.declared(found.path) else "from tokenizer_config.json, by conversion"


def _of_file(name: str, path: Path, model: Model | None) -> dict[str, Any]:
    header = model_header.read(path)
    return {
        "name": name,
        "description": model.description if model else header.name,
        "thinking": model.thinking if model else None,
        "licence": model.licence if model else None,
        "architecture": header.architecture,
        "layers": header.block_count,
        "kv_heads": header.kv_heads,
        "head_length": header.head_length,
        "context_length": header.context_length,
        "yarn_context": _yarn_context(header),
        "rope_scaling": header.scaling.label if header.scaling else None,
        "path": str(path),
        "bytes": header.bytes,
        "memory": _memory_of_file(header),
    }


def _memory_of_file(header: ModelHeader) -> dict[str, int]:
    longest = header.context_length
    contexts = sorted({min(context, longest) for context in (*_CONTEXTS, longest)} | {_yarn_context(header) or longest})
    return {str(context): fit.needed_bytes(header, context) for context in contexts}


def _yarn_context(header: ModelHeader) -> int | None:
    """The longest context that YaRN gives beyond what the file says."""
    longest = yarn.reach(header.context_length, header.scaling)
    return longest if longest > header.context_length else None
