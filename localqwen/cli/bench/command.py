"""`localqwen bench`: the flags of measuring, and the subcommands for what was measured before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from localqwen import units
from localqwen.cli.bench import history, measure
from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.loading import benchmark_options

#: What follows `bench` and is no model. A model of such a name is reached by its path: `./list`.
SUBCOMMANDS = {
    "list": (history.list_runs, "Show the runs that were saved."),
    "show": (history.show, "Show a saved run."),
    "compare": (history.compare, "Say which of two runs is faster, if the noise allows."),
    "plot": (history.plot, "Draw charts and an HTML report."),
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
    """`128,512,2048`, in config.toml also `[128, 512, 2048]` or a single number: whole numbers from `least` on, in the
    order in which they are given, none twice."""

    name = "integers"

    def __init__(self, least: int = 0) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        parts = [str(part) for part in value] if isinstance(value, list) else str(value).split(",")
        parts = [part.strip() for part in parts]
        if not all(part.isdecimal() and int(part) >= self.least for part in parts):
            self.fail(f"{value!r} is no list of whole numbers from {self.least} on, like 128,512", param, ctx)
        return list(dict.fromkeys(map(int, parts)))


class Names(click.ParamType[str]):
    """`phone,car`, in config.toml also `["phone", "car"]`."""

    name = "texts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return ",".join(value) if isinstance(value, list) else str(value)


class Duration(click.ParamType[float]):
    """`90s`, `10m`, `1h30m`, a number of seconds; above 0. In seconds."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        seconds = units.parse_duration(str(value))
        if seconds is None or seconds <= 0:
            self.fail(f"{value!r} is no length of time, like 90s, 10m or 1h", param, ctx)
        return seconds


def _several(flag: str, default: str, help: str, *, least: int = 0) -> Callable[[Any], Any]:
    return click.option(flag, type=Numbers(least), default=default, show_default=True, metavar="N,…", help=help)


@click.command("bench", cls=BenchCommand)
@click.argument("models", nargs=-1)
@_several("--prompt", "128,512,2048", "Raw speed: tokens of prompts.")
@click.option("--generate", type=click.IntRange(min=0), default=128, show_default=True, metavar="N", help="Decoded.")
@_several("--depth", "0", "Tokens that lie before those.")
@_several("--batch", "1", "Answers at once.", least=1)
@click.option("--chat", is_flag=True, help="What a person waits for: a conversation with and without thinking.")
@_several("--budgets", "128,512", "Thinking budgets of --chat.", least=1)
@click.option("--workload", type=Names(), metavar="NAME,…", help="Tasks by name or suite: mlperf-client, tool-loop, …")
@click.option("--sustain", type=Duration(), metavar="TIME", help="Endurance: decode for 10m and watch the heat.")
@click.option("--quality", is_flag=True, help="KL, top-1 and perplexity beside a reference.")
@click.option("--reference", metavar="MODEL", help="Of --quality; default: the largest of MODELS.")
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="Of --quality; default: a text of ours.")
@click.option("--profile", metavar="NAME", help="phone, car, laptop or your own: a workload with limits.")
@click.option("--hold", is_flag=True, help="Hold the process to the profile's processors and memory (Linux).")
@click.option("--url", metavar="URL", help="Measure an OpenAI-compatible server: http://host:port/v1.")
@_several("--concurrency", "1", "With --url: conversations at once.", least=1)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Of each test.")
@click.option("--threads", type=Numbers(1), metavar="N,…", help="CPU threads; several are compared.")
@click.option(
    "--engine", type=Names(), metavar="NAME,…", help="Engine, or several, instead of the one for this machine."
)
@click.option("--json", "form", flag_value="json", help="One JSON object on stdout.")
@click.option("--csv", "form", flag_value="csv", help="A line per metric, for spreadsheets.")
@click.option("--markdown", "form", flag_value="markdown", help="Tables for a README.")
@click.option("--llama-bench", is_flag=True, help="As --json, with the keys of llama.cpp's llama-bench.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="DIR", help="Charts and an HTML report into DIR.")
@click.option("--save/--no-save", default=True, help="Keep the run (default), or do not.")
@benchmark_options
@click.pass_context
def command(context: click.Context, /, **flags: Any) -> int:
    """Measure MODELS: names, .gguf files or checkpoint folders.

    \b
    localqwen bench demo                                   raw speed: prefill and decode
    localqwen bench a.gguf b.gguf --depth 0,4096           two files, taking turns
    localqwen bench qwen3:4b --chat --budgets 256,1024     what a person waits for
    localqwen bench qwen3:4b --profile phone --hold        would it do on a phone?

    Raw speed is measured where nothing else is asked for, or one of its flags is given.
    """
    line = ParameterSource.COMMANDLINE
    typed = frozenset(name for name in context.params if context.get_parameter_source(name) is line)
    return measure.run(measure.Asked(typed=typed, **flags))
