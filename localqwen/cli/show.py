"""`localqwen show`: show what a model is and what it needs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click

from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.format import aligned, readable_bytes
from localqwen.cli.options import json_option


@click.command("show", cls=ConfiguredCommand)
@click.argument("name")
@json_option
def command(name: str, as_json: bool) -> None:
    """Show what the model NAME is and what it needs: `demo`, a .gguf file or a checkpoint folder."""
    from localqwen.models.describe import describe

    facts = describe(name)
    facts["sampling"] = presets(facts["thinking"], facts.get("sampling") or {})
    if as_json:
        sys.stdout.write(json.dumps(facts, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(page(facts) + "\n")


def presets(thinking: str | None, own: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | int]]:
    """Return the sampling of each mode of a model; none if its file does not tell the modes."""
    from localqwen.chat.sampling import Presets

    of_model = Presets.of(own)
    modes = {"thinking": thinking in ("switch", "always"), "not thinking": thinking in ("switch", "never")}
    return {mode: dict(of_model.of_mode(mode == "thinking").set_values()) for mode, has in modes.items() if has}


def page(facts: Mapping[str, Any]) -> str:
    """Return the facts as lines, in their order, without the unknown ones."""
    rows = [
        (key.replace("_", " "), _shown(key, value)) for key, value in facts.items() if value not in (None, "", {}, [])
    ]
    return aligned(rows)


def _shown(key: str, value: Any) -> str:
    if key == "memory":
        return ", ".join(f"{readable_bytes(size)} at {int(context):,} tokens" for context, size in value.items())
    if key == "sampling":
        return "; ".join(f"{mode}: {_shown('', values)}" for mode, values in value.items())
    if key == "files":
        return ", ".join(f"{file['path']} ({file['digest'] or 'converted on this machine'})" for file in value)
    if key in ("bytes", "download_bytes"):
        return readable_bytes(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if type(value) is int else str(value)
