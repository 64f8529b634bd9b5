"""`localqwen bench`: what models do here, measured; and what was measured before: list, show, compare, plot."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from localqwen.cli import INTERRUPTED, bench_history
from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.progress import counting_bar
from localqwen.cli.sizes import aligned
from localqwen.errors import UsageError

if TYPE_CHECKING:
    from localqwen.bench.history import Benchmark, Log
    from localqwen.bench.runner import Plan

#: What follows `bench` and is no model. A model of such a name is reached by its path: `./list`.
SUBCOMMANDS = {
    "list": (bench_history.list_runs, "Show the runs that were saved."),
    "show": (bench_history.show, "Show a saved run."),
    "compare": (bench_history.compare, "Say which of two runs is faster, if the noise allows."),
    "plot": (bench_history.plot, "Draw charts and an HTML report."),
}


class BenchCommand(ConfiguredCommand):
    """Takes models, or the name of a subcommand and what belongs to that."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args and args[0] in SUBCOMMANDS:
            subcommand = SUBCOMMANDS[args[0]][0]
            return subcommand.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("What was measured before"):
            formatter.write_dl([(f"{ctx.command_path} {name}", line) for name, (_, line) in SUBCOMMANDS.items()])


class Numbers(click.ParamType[list[int]]):
    """`128,512,2048`: whole numbers from `least` on, in the order in which they are given, none twice."""

    name = "text"

    def __init__(self, least: int = 0) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) >= self.least for part in parts):
            self.fail(f"{value!r} is no list of whole numbers from {self.least} on, like 128,512", param, ctx)
        return list(dict.fromkeys(map(int, parts)))


@click.command("bench", cls=BenchCommand)
@click.argument("models", nargs=-1)
@click.option("--prompt", type=Numbers(), default="128,512,2048", show_default=True, metavar="N,…", help="Prefill.")
@click.option("--generate", type=click.IntRange(min=0), default=128, show_default=True, metavar="N", help="Decode.")
@click.option("--depth", type=Numbers(), default="0", show_default=True, metavar="N,…", help="Tokens before that.")
@click.option("--batch", type=Numbers(1), default="1", show_default=True, metavar="N,…", help="Answers at once.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Of each test.")
@click.option("--threads", type=Numbers(1), metavar="N,…", help="CPU threads; several are compared.")
@click.option("--engine", metavar="NAME,…", help="Engine, or several, instead of the one for this machine.")
@click.option("--json", "form", flag_value="json", help="One JSON object on stdout.")
@click.option("--csv", "form", flag_value="csv", help="A line per metric, for spreadsheets.")
@click.option("--markdown", "form", flag_value="markdown", help="Tables for a README.")
@click.option("--llama-bench", is_flag=True, help="With --json: the keys of llama.cpp's llama-bench.")
@click.option("--save/--no-save", default=True, help="Keep the run (default), or do not.")
@click.option("--force", is_flag=True, help="Load models even if they do not fit the memory.")
@click.option("--yes", "-y", is_flag=True, help="Pull models that are not here without asking.")
def command(
    models: tuple[str, ...],
    prompt: list[int],
    generate: int,
    depth: list[int],
    batch: list[int],
    repeats: int,
    threads: list[int] | None,
    engine: str | None,
    form: str | None,
    llama_bench: bool,
    save: bool,
    force: bool,
    yes: bool,
) -> int:
    """Measure MODELS: names, .gguf files or checkpoint folders.

    \b
    localqwen bench demo                                  prefill and decode
    localqwen bench a.gguf b.gguf --depth 0,4096          two files, taking turns
    """
    from localqwen.bench.runner import Plan
    from localqwen.bench.speed import tests

    if not models:
        raise UsageError(
            "there is no model to measure", "localqwen bench demo; to see earlier runs: localqwen bench list"
        )
    plan = Plan(
        models=models,
        tests=tests(prompt, generate, depth, batch),
        repeats=repeats,
        engines=[name.strip() for name in engine.split(",")] if engine else [None],
        threads=threads or [None],
        force=force,
    )
    return measure(plan, save=save, yes=yes, show=lambda run: show(run, form, llama_bench=llama_bench))


def measure(plan: Plan, *, save: bool, yes: bool, show: Callable[[Benchmark], None]) -> int:
    """Measure and show; after Ctrl-C show what there is. Gives the exit code."""
    from dataclasses import replace

    from localqwen.bench import history, runner
    from localqwen.cli import getting

    for name in dict.fromkeys(plan.models):
        getting.ensure(name, yes=yes, force=plan.force)
    run = runner.begin(runner.settings_of(plan), held=plan.limits.text)
    with history.Log(run, history.folder() if save else None) as log:
        with counting_bar() as tell:
            running = runner.Runner(plan, run, log, tell)
            stopped = _measured(running)
        if not stopped:
            log.end()
        done = replace(running.run, complete=not stopped)
    show(done)
    _tell_end(done, log, save=save)
    return INTERRUPTED if stopped else 0


def _measured(running: Any) -> bool:
    """Whether a person stopped it."""
    try:
        running.measure()
    except KeyboardInterrupt:
        return True
    return False


def _tell_end(run: Benchmark, log: Log, *, save: bool) -> None:
    if log.failure is not None:
        sys.stderr.write(f"warning: the run is not saved: {log.failure.message}\n")
    elif save:
        sys.stderr.write(f"saved as {run.id}: localqwen bench show {run.id}\n")


def show(run: Benchmark, form: str | None, *, llama_bench: bool = False) -> None:
    """The report on stdout, in the form that was asked for."""
    from localqwen.bench import tables

    match form:
        case "json":
            sys.stdout.write(json.dumps(_object(run, llama_bench), ensure_ascii=False, indent=1) + "\n")
        case "csv":
            csv.writer(sys.stdout, lineterminator="\n").writerows(tables.csv_rows(run))
        case "markdown":
            sys.stdout.write(page(run, tables.markdown) + "\n")
        case _:
            sys.stdout.write(page(run, aligned) + "\n")


def _object(run: Benchmark, llama_bench: bool) -> Any:
    from localqwen.bench import llama_bench as foreign
    from localqwen.bench import tables

    return foreign.tests(run) if llama_bench else tables.as_json(run)


def page(run: Benchmark, form: Callable[[Sequence[tuple[str, ...]]], str]) -> str:
    from localqwen.bench import tables

    parts = [tables.title(run), tables.state(run), *run.notes]
    blocks = ["\n".join(part for part in parts if part)]
    blocks += [form(lines) for lines in tables.all_tables(run) if lines]
    return "\n\n".join(blocks)
