"""`localqwen imatrix`: measure on a text which columns of a model matter, for `convert --imatrix`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.model_completion import complete_names
from localqwen.cli.options import json_option


@click.command("imatrix", cls=ConfiguredCommand)
@click.argument("model", shell_complete=complete_names)
@click.option("--text", required=True, type=click.Path(path_type=Path), metavar="FILE", help="Text to measure on.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Default, here: <model>.imatrix.gguf.")
@click.option(
    "--chunks", type=click.IntRange(min=1), metavar="N", help="Use at most N chunks of 512 tokens of the text."
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.")
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
@json_option
def command(
    model: str, text: Path, out: Path | None, chunks: int | None, threads: int | None, force: bool, as_json: bool
) -> None:
    """Measure on a text which columns of MODEL's matrices matter, for `localqwen convert --imatrix`.

    Use a model in 16 or 8 bit, and a text like those that it will read: 50,000 tokens are enough.
    """
    from localqwen.engines import selection
    from localqwen.models import converted

    converted.converter()
    from convert.imatrix import activations

    path = selection.resolve(model, "llama.cpp").path()
    target = out or Path(f"{path.stem}.imatrix.gguf")
    report = _report if sys.stderr.isatty() else None
    read, matrices = activations.measure(
        path, text, target, force=force, chunks=chunks, threads=threads, progress=report
    )  # fmt: skip
    if as_json:
        fields = {"path": str(target), "chunks": read, "tokens": read * activations.CHUNK, "matrices": matrices}
        sys.stdout.write(json.dumps(fields, ensure_ascii=False) + "\n")
        return
    sys.stdout.write(f"{target}: {matrices} matrices, over {read} chunks of {activations.CHUNK} tokens\n")


def _report(done: int, total: int) -> None:
    sys.stderr.write(f"\rchunk {done} of {total}" + ("\n" if done == total else ""))
    sys.stderr.flush()
