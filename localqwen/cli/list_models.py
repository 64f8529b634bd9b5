"""`localqwen list`: the models on disk."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.options import json_option
from localqwen.cli.sizes import aligned, readable_bytes
from localqwen.models import store
from localqwen.models.store import LocalFile


@click.command("list", cls=ConfiguredCommand)
@json_option
def command(as_json: bool) -> None:
    """Show the models on disk, the largest first. `demo` is built in and always there."""
    files = store.on_disk()
    if as_json:
        sys.stdout.write(json.dumps([_entry(file) for file in files], ensure_ascii=False) + "\n")
    elif files:
        sys.stdout.write(table(files) + "\n")
    else:
        sys.stderr.write("no model is on disk but the built-in demo; a .gguf file can be run by its path\n")


def table(files: list[LocalFile]) -> str:
    head = ("NAME", "QUANT", "SIZE", "MODIFIED", "PATH")
    return aligned([head, *(_row(file) for file in files)])


def _row(file: LocalFile) -> tuple[str, ...]:
    day = time.strftime("%Y-%m-%d", time.localtime(file.modified))
    return (file.name, file.quant or "-", readable_bytes(file.bytes), day, str(file.path))


def _entry(file: LocalFile) -> dict[str, Any]:
    return {
        "name": file.name,
        "path": str(file.path),
        "bytes": file.bytes,
        "quant": file.quant,
        "modified": file.modified,
    }
