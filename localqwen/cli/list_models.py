"""`localqwen list`: the models on disk, or all known names."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.format import aligned, readable_bytes
from localqwen.cli.options import json_option
from localqwen.models import inventory, set_aside
from localqwen.models.local_files import LocalFile

if TYPE_CHECKING:
    from localqwen.models.catalogue import Row


@click.command("list", cls=ConfiguredCommand)
@click.option("--all", "everything", is_flag=True, help="All models that can be pulled, with size and memory.")
@json_option
def command(everything: bool, as_json: bool) -> None:
    """Show the models on disk, the largest first. `demo` is built in and needs no files."""
    if everything:
        _list_all(as_json)
        return
    files, aside = inventory.on_disk(), set_aside.reasons()
    if as_json:
        entries = [_entry(file) | _aside(file, aside) for file in files]
        sys.stdout.write(json.dumps(entries, ensure_ascii=False) + "\n")
    elif files:
        sys.stdout.write(table(files) + "\n")
        for name, reason in aside.items():
            sys.stderr.write(f"{name} is set aside by a running server: {reason}\n")
    else:
        sys.stderr.write("no model is on disk except the built-in demo: see localqwen recommend, localqwen pull\n")


def table(files: list[LocalFile]) -> str:
    """Return the table of models on disk."""
    head = ("NAME", "ENGINE", "QUANT", "SIZE", "LAST USED", "PATH")
    return aligned([head, *(_row(file) for file in files)])


def _row(file: LocalFile) -> tuple[str, ...]:
    day = time.strftime("%Y-%m-%d", time.localtime(file.used or file.modified))
    return (file.shown, file.engine, file.quant or "-", readable_bytes(file.bytes), day, str(file.path))


def _entry(file: LocalFile) -> dict[str, Any]:
    return {
        "name": file.shown,
        "path": str(file.path),
        "bytes": file.bytes,
        "quant": file.quant,
        "engine": file.engine,
        "modified": file.modified,
        "used": file.used,
    }


def _aside(file: LocalFile, aside: Mapping[str, str]) -> dict[str, str]:
    return {"set_aside": aside[file.shown]} if file.shown in aside else {}


def _list_all(as_json: bool) -> None:
    from localqwen.machine import this_machine
    from localqwen.models import catalogue

    rows = catalogue.rows(this_machine())
    if as_json:
        sys.stdout.write(json.dumps([row.as_json() for row in rows], ensure_ascii=False) + "\n")
        return
    head = ("NAME", "QUANT", "DOWNLOAD", "MEMORY AT 4K", "FITS HERE", "NOTE")
    lines = [(row.name, row.quant, readable_bytes(row.download_bytes), *_fit(row), _note(row)) for row in rows]
    sys.stdout.write(aligned([head, *lines]) + "\n")


def _note(row: Row) -> str:
    return "" if row.official else "converted on this machine"


def _fit(row: Row) -> tuple[str, str]:
    return readable_bytes(row.memory_bytes), "yes" if row.fits else "no"
