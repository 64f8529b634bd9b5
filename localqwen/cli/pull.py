"""`localqwen pull`: download models by name from a hub; a model is complete or does not exist."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localqwen.cli import ensure_model
from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.format import readable_bytes
from localqwen.cli.model_completion import complete_names
from localqwen.cli.options import json_option
from localqwen.models.names import Named

if TYPE_CHECKING:
    from localqwen.models.names import Reference


@click.command("pull", cls=ConfiguredCommand)
@click.argument("names", nargs=-1, required=True, metavar="NAME…", shell_complete=complete_names)
@click.option("--engine", metavar="[gguf|mlx]", help="Files for llama.cpp (gguf) or MLX; default: for this machine.")
@click.option("--quant", metavar="Q", help="Quantization: q4_k_m, q8_0, … (localqwen show NAME).")
@click.option("--source", type=click.Choice(["hf", "modelscope"]), help="Hub to download from.")
@click.option("--revision", metavar="R", help="Branch, tag or commit of the repository.")
@json_option
def command(
    names: tuple[str, ...],
    engine: str | None,
    quant: str | None,
    source: str | None,
    revision: str | None,
    as_json: bool,
) -> None:
    """Download each NAME: qwen3:4b, qwen3:4b-q8_0, hf:owner/repo:q4_k_m (all names: localqwen list --all).

    The sha256 of every file is checked before the file gets its name. A pull that was stopped resumes where it was.
    """
    wanted = [_resolved(name, engine, quant) for name in names]  # an unknown name fails before any download
    results = [_pull(reference, source, revision) for reference in wanted]
    if as_json:
        sys.stdout.write(json.dumps(results, ensure_ascii=False) + "\n")


def _resolved(name: str, engine: str | None, quant: str | None) -> Reference:
    """Return the reference of a name. Without a quantization it means the files of the engine that runs on this
    machine."""
    from localqwen.engines import selection
    from localqwen.models import names, pull, resolve

    reference = names.parse(name)
    if engine is None and quant is None and selection.best_installed() == "mlx":
        return resolve.for_engine(reference, "mlx")
    return pull.wanted(reference, engine=engine, quant=quant)


def _pull(reference: Reference, source: Any, revision: str | None) -> dict[str, Any]:
    from localqwen.models import pull

    if isinstance(reference, Named) and reference.why:
        sys.stderr.write(f"{reference.model.family} is {reference.text}: {reference.why}\n")
    planned = pull.plan_or_present(reference, source=source, revision=revision)
    if isinstance(planned, Path):
        sys.stderr.write(f"{reference.text} is on disk; the hub could not be reached for a newer version\n")
        return {"name": reference.text, "path": str(planned), "transferred_bytes": 0, "checked": False}
    sys.stderr.write(f"{reference.text}: {ensure_model.announcement(planned)}\n")
    path = ensure_model.show_pull(planned)
    sys.stderr.write(f"{reference.text} is complete: {readable_bytes(planned.total_bytes)}\n")
    return {
        "name": reference.text,
        "path": str(path),
        "quant": planned.quant,
        "source": planned.source,
        "repository": planned.listing.repo,
        "commit": planned.listing.commit,
        "files": [{"path": file.path, "bytes": file.bytes, "digest": file.digest} for file in planned.files],
        "transferred_bytes": planned.missing_bytes,
        "converted": planned.convert,
        "checked": True,
    }
