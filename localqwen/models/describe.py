"""What one model is, for `localqwen show`: from its file's header and, if it has one, its entry."""

from __future__ import annotations

from typing import Any

from localqwen.models import fit, gguf_header, provide, registry


def describe(name: str) -> dict[str, Any]:
    """Sizes in bytes, lengths in tokens. A checkpoint folder is converted first, as running it would do."""
    path = provide.provide(name)
    header = gguf_header.read(path)
    model = registry.lookup(name)
    return {
        "name": registry.display_name(name),
        "description": model.description if model else header.name,
        "thinking": model.thinking if model else None,
        "licence": model.licence if model else None,
        "architecture": header.architecture,
        "layers": header.block_count,
        "kv_heads": header.kv_heads,
        "head_length": header.head_length,
        "context_length": header.context_length,
        "path": str(path),
        "bytes": header.bytes,
        "memory": {str(context): fit.needed_bytes(header, context) for context in _contexts(header.context_length)},
    }


def _contexts(longest: int) -> list[int]:
    return sorted({min(context, longest) for context in (4096, 16384, 32768, longest)})
