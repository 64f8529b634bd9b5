"""`localqwen bench list`, `show`, `compare`, `plot`: saved runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localqwen.cli.format import aligned
from localqwen.cli.options import json_option

if TYPE_CHECKING:
    from localqwen.bench.history import Benchmark


@click.command("list")
@json_option
def list_runs(as_json: bool) -> None:
    """Show the saved runs, the newest first."""
    from localqwen.bench import history

    runs, complaints = history.runs()
    _warn(complaints)
    if as_json:
        sys.stdout.write(json.dumps({"runs": [_entry(run) for run in runs]}, ensure_ascii=False) + "\n")
    elif runs:
        rows = [("RUN", "MODELS", "TESTS", "STATE"), *(_line(run) for run in runs)]
        sys.stdout.write(aligned(rows) + "\n")
    else:
        sys.stderr.write("no run is saved yet; measure one: localqwen bench demo\n")


def _warn(complaints: list[str]) -> None:
    for complaint in complaints:
        sys.stderr.write(f"warning: {complaint}\n")


def _entry(run: Benchmark) -> dict[str, Any]:
    kinds = list(dict.fromkeys(sample.test.kind for sample in run.samples))
    subjects = [subject.label for subject in run.subjects]
    return {"id": run.id, "created": run.created, "subjects": subjects, "kinds": kinds, "complete": run.complete}


def _line(run: Benchmark) -> tuple[str, ...]:
    entry = _entry(run)
    kinds = ", ".join(kind for kind in entry["kinds"] if kind not in ("load", "memory"))
    return run.id, ", ".join(entry["subjects"]), kinds, "" if run.complete else "stopped"


@click.command("show")
@click.argument("run")
@click.option("--json", "form", flag_value="json", help="Write one JSON object to stdout.")
@click.option("--csv", "form", flag_value="csv", help="Write a line per metric, for spreadsheets.")
@click.option("--markdown", "form", flag_value="markdown", help="Write tables for a README.")
@click.option("--llama-bench", is_flag=True, help="Write JSON with the keys of llama.cpp's llama-bench.")
def show(run: str, form: str | None, llama_bench: bool) -> None:
    """Show a saved RUN: an id, the beginning of an id, `last`, `last-1`, or a file."""
    from localqwen.bench import history
    from localqwen.cli.bench import measure

    found, complaints = history.find(run)
    _warn(complaints)
    measure.show(found, measure.form_of(form, llama_bench), llama_bench=llama_bench)


@click.command("compare")
@click.argument("a")
@click.argument("b")
@json_option
def compare(a: str, b: str, as_json: bool) -> None:
    """Show the ratio B / A of each metric, test by test, with the noise; "no difference" if the noise hides it."""
    from localqwen.bench import compare as comparing
    from localqwen.bench import history

    (left, first), (right, second) = history.find(a), history.find(b)
    _warn(first + second)
    lines = comparing.compare(left, right)
    if as_json:
        found = [comparing.as_json(line) for line in lines]
        sys.stdout.write(json.dumps({"a": left.id, "b": right.id, "rows": found}, ensure_ascii=False) + "\n")
        return
    _warn(comparing.warnings(left, right))
    from localqwen.bench import tables

    for name, run in (("A", left), ("B", right)):
        sys.stdout.write(f"{name}  {tables.title(run)}\n")
    sys.stdout.write("\n" + aligned(comparing.table(lines)) + "\n")


@click.command("plot")
@click.argument("runs", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench"), metavar="DIR", help="Default: ./bench")
def plot(runs: tuple[str, ...], out: Path) -> None:
    """Draw charts (PNG) and one self-contained HTML report of RUNS (default: the last one) into DIR."""
    from localqwen.bench import history, report

    found = []
    for wanted in runs or ("last",):
        run, complaints = history.find(wanted)
        _warn(complaints)
        found.append(run)
    for path in report.write(found, out.expanduser()):
        sys.stdout.write(f"{path}\n")
