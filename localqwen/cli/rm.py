"""`localqwen rm`: free the space that a model takes."""

from __future__ import annotations

import json
import sys

import click

from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.format import readable_bytes
from localqwen.cli.model_completion import complete_names
from localqwen.cli.options import json_option


@click.command("rm", cls=ConfiguredCommand)
@click.argument("name", shell_complete=complete_names)
@json_option
def command(name: str, as_json: bool) -> None:
    """Remove the files of NAME, as `localqwen list` shows it. Files that another model needs stay."""
    from localqwen.models import names, remove

    reference = names.parse(name)
    removed = remove.remove(reference)
    if as_json:
        fields = {"name": reference.text, "freed_bytes": removed.freed_bytes}
        lists = {"removed": [str(path) for path in removed.files], "kept": [str(path) for path in removed.kept]}
        sys.stdout.write(json.dumps(fields | lists, ensure_ascii=False) + "\n")
        return
    sys.stdout.write(f"{reference.text} is removed, {readable_bytes(removed.freed_bytes)} are free\n")
    if removed.kept:
        sys.stderr.write(f"kept: {len(removed.kept)} files that another model needs\n")
