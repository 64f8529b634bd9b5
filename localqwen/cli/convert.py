"""`localqwen convert`: an official checkpoint folder becomes a quantised GGUF file."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.options import json_option
from localqwen.cli.progress import conversion_bar
from localqwen.cli.sizes import readable_bytes


def _complete_quant(context: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
    from localqwen.models import provide

    return [CompletionItem(name) for name in provide.converter().QUANTIZATIONS if name.startswith(typed)]


@click.command("convert", cls=ConfiguredCommand)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--quant",
    default="q8_0",
    show_default=True,
    metavar="NAME",
    shell_complete=_complete_quant,
    help="q8_0, q4_k_m, bf16, f16, …",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Default: <folder>-<QUANT>.gguf, here.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@json_option
def command(source: Path, quant: str, out: Path | None, force: bool, as_json: bool) -> None:
    """Turn SOURCE, a folder with an official Qwen3 checkpoint, into one GGUF file that runs here."""
    from localqwen.models import provide

    source = source.expanduser()
    target = out.expanduser() if out else Path(f"{source.resolve().name}-{quant.upper()}.gguf")
    with conversion_bar(f"{source.resolve().name} to {quant}") as progress:
        report = provide.converter().convert(source, target, quant=quant, force=force, progress=progress)
    if as_json:
        sys.stdout.write(json.dumps({**asdict(report), "path": str(report.path)}, ensure_ascii=False) + "\n")
        return
    size, took = readable_bytes(report.bytes), f"{report.seconds:.1f} s"
    sys.stdout.write(f"{report.path}: {report.tensors} tensors, {report.quant}, {size}, in {took}\n")
