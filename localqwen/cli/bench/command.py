"""`localqwen bench`: the flags of a measurement, and the subcommands for saved runs."""

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

#: The words after `bench` that are not models. A model with such a name is reached by its path: `./list`.
SUBCOMMANDS = {
    "list": (history.list_runs, "Show the saved runs."),
    "show": (history.show, "Show a saved run."),
    "compare": (history.compare, "Say which of two runs is faster, if the noise allows."),
    "plot": (history.plot, "Draw charts and an HTML report."),
}


class BenchCommand(ConfiguredCommand):
    """A command that takes models, or the name of a subcommand and its arguments."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return the context of the subcommand, if the first argument names one."""
        if args and args[0] in SUBCOMMANDS:
            subcommand = SUBCOMMANDS[args[0]][0]
            return subcommand.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands."""
        with formatter.section("Saved runs"):
            formatter.write_dl([(f"{ctx.command_path} {name}", line) for name, (_, line) in SUBCOMMANDS.items()])


class Numbers(click.ParamType[list[int]]):
    """Whole numbers of at least `least`: `128,512,2048`, in config.toml also `[128, 512, 2048]` or a single number."""

    name = "integers"

    def __init__(self, least: int = 0) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Return the numbers in the order in which they are given, each once."""
        parts = [str(part) for part in value] if isinstance(value, list) else str(value).split(",")
        parts = [part.strip() for part in parts]
        if not all(part.isdecimal() and int(part) >= self.least for part in parts):
            self.fail(f"{value!r} is not a list of whole numbers from {self.least} on, like 128,512", param, ctx)
        return list(dict.fromkeys(map(int, parts)))


class Names(click.ParamType[str]):
    """Names: `phone,car`, in config.toml also `["phone", "car"]`."""

    name = "texts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the names, separated by commas."""
        return ",".join(value) if isinstance(value, list) else str(value)


class Duration(click.ParamType[float]):
    """A length of time above 0: `90s`, `10m`, `1h30m`, or a number of seconds."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        seconds = units.parse_duration(str(value))
        if seconds is None or seconds <= 0:
            self.fail(f"{value!r} is not a length of time, like 90s, 10m or 1h", param, ctx)
        return seconds


def _several(flag: str, default: str, help: str, *, least: int = 0) -> Callable[[Any], Any]:
    return click.option(flag, type=Numbers(least), default=default, show_default=True, metavar="N,…", help=help)


@click.command("bench", cls=BenchCommand)
@click.argument("models", nargs=-1)
@_several("--prompt", "128,512,2048", "Raw speed: tokens of prompts.")
@click.option(
    "--generate",
    type=click.IntRange(min=0),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens to decode.",
)
@_several("--depth", "0", "Tokens in the context before those.")
@_several("--batch", "1", "Answers at once.", least=1)
@click.option("--chat", is_flag=True, help="Measure the waits in a conversation, with and without thinking.")
@_several("--budgets", "128,512", "Thinking budgets of --chat, in tokens.", least=1)
@click.option("--workload", type=Names(), metavar="NAME,…", help="Measure tasks or suites: mlperf-client, tool-loop, …")
@click.option("--sustain", type=Duration(), metavar="TIME", help="Measure endurance: decode for 10m, watch the heat.")
@click.option("--quality", is_flag=True, help="Measure KL divergence, top-1 and perplexity against a reference.")
@click.option("--reference", metavar="MODEL", help="Reference of --quality; default: the largest of MODELS.")
@click.option(
    "--text", type=click.Path(path_type=Path), metavar="FILE", help="Text of --quality; default: a bundled one."
)
@click.option("--profile", metavar="NAME", help="Measure a workload with limits: phone, car, laptop or your own.")
@click.option("--hold", is_flag=True, help="Limit the process to the profile's processors and memory (Linux).")
@click.option("--url", metavar="URL", help="Measure an OpenAI-compatible server: http://host:port/v1.")
@_several("--concurrency", "1", "With --url: conversations at once.", least=1)
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Of each test.")
@click.option("--threads", type=Numbers(1), metavar="N,…", help="CPU threads; several are compared.")
@click.option(
    "--engine", type=Names(), metavar="NAME,…", help="Engine, or several, instead of the default of this machine."
)
@click.option("--json", "form", flag_value="json", help="Write one JSON object to stdout.")
@click.option("--csv", "form", flag_value="csv", help="Write a line per metric, for spreadsheets.")
@click.option("--markdown", "form", flag_value="markdown", help="Write tables for a README.")
@click.option("--llama-bench", is_flag=True, help="Write JSON with the keys of llama.cpp's llama-bench.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="DIR", help="Write charts and an HTML report to DIR.")
@click.option("--save/--no-save", default=True, help="Save the run (default), or do not.")
@benchmark_options
@click.pass_context
def command(context: click.Context, /, **flags: Any) -> int:
    """Measure MODELS: names, .gguf files or checkpoint folders.

    \b
    localqwen bench demo                                   raw speed: prefill and decode
    localqwen bench a.gguf b.gguf --depth 0,4096           two files, taking turns
    localqwen bench qwen3:4b --chat --budgets 256,1024     what a person waits for
    localqwen bench qwen3:4b --profile phone --hold        is it usable on a phone?

    Raw speed is measured if nothing else is requested, or if one of its flags is given.
    """
    line = ParameterSource.COMMANDLINE
    typed = frozenset(name for name in context.params if context.get_parameter_source(name) is line)
    return measure.run(measure.BenchRequest(typed=typed, **flags))
