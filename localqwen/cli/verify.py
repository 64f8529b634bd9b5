"""`localqwen verify`: read every byte of a model again and compare it with what the hub declares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.failures import report
from localqwen.cli.format import aligned, readable_bytes
from localqwen.cli.model_completion import complete_names
from localqwen.cli.options import json_option
from localqwen.cli.progress import byte_bar
from localqwen.models.verify import Verdict


@click.command("verify", cls=ConfiguredCommand)
@click.argument("name", shell_complete=complete_names)
@json_option
def command(name: str, as_json: bool) -> int:
    """Check the files of NAME: their digests against those that the hub declares, and that they can be opened."""
    from localqwen.models import names, verify

    reference = names.parse(name)
    file = verify.files_of(reference)
    with byte_bar(f"checking {reference.text}", file.bytes) as moved:
        verdicts = verify.verify(file, lambda path, done: moved(path.name, done))
    bad = [verdict for verdict in verdicts if verdict.problem]
    if as_json:
        found = {"name": reference.text, "ok": not bad, "files": [_entry(verdict) for verdict in verdicts]}
        sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(aligned([_row(verdict) for verdict in verdicts]) + "\n")
    if not bad:
        return 0
    sys.stdout.flush()
    named = "; ".join(f"{verdict.path.name}: {verdict.problem}" for verdict in bad)
    report(f"{reference.text} is damaged: {named}", f"localqwen pull {reference.text}")
    return 1


def _row(verdict: Verdict) -> tuple[str, ...]:
    proved = "good" if verdict.digest else "opens; no digest is declared for it"
    return (verdict.path.name, readable_bytes(verdict.bytes), verdict.problem or proved)


def _entry(verdict: Verdict) -> dict[str, Any]:
    path: Path = verdict.path
    return {
        "path": str(path),
        "bytes": verdict.bytes,
        "digest": verdict.digest or None,
        "ok": not verdict.problem,
        "problem": verdict.problem or None,
    }
