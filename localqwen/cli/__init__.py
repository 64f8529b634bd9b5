"""The command line. Only click and the errors are imported before the command is known."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import click

from localqwen._version import __version__
from localqwen.cli import failures
from localqwen.errors import LocalqwenError

#: command -> (module under localqwen.cli, line of the overview)
COMMANDS = {
    "chat": ("chat", "Talk with a model."),
    "run": ("run", "Answer one prompt."),
    "serve": ("serve", "Answer the clients of OpenAI, Ollama and Anthropic."),
    "pull": ("pull", "Download models."),
    "list": ("list_models", "Show the models on disk, or all known names."),
    "show": ("show", "Show what a model is and what it needs."),
    "verify": ("verify", "Check every file of a model against the hub's digest."),
    "rm": ("rm", "Remove a model from the disk."),
    "recommend": ("recommend", "Say which model, quantization and context suit a machine."),
    "bench": ("bench.command", "Measure speed, latency and endurance; save and compare."),
    "convert": ("convert.command", "Convert official weights into a GGUF file or an MLX folder."),
    "imatrix": ("imatrix", "Measure which weights matter, for a better quantization."),
    "quality": ("quality", "Measure how far a conversion is from its source."),
    "tune": ("tune", "Find the fastest settings for a model on this machine."),
    "doctor": ("doctor", "Check this machine and its engines."),
    "completion": ("completion", "Print the shell's completion script."),
}
INTERRUPTED = 130
BROKEN_PIPE = 141


class LazyGroup(click.Group):
    """The group of all commands. It imports a command's module only when the command is called; the overview needs
    none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the overview."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"localqwen.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return what click needs to run a command. Raise an error with the nearest name if it is unknown."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(name, COMMANDS, 1)
            hint = f"did you mean localqwen {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
            raise _UnknownCommand(f"there is no command {name!r}", hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the overview without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and return BROKEN_PIPE if the reader of stdout has gone."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader has gone (`| head -1`). The rest of the buffer must not cause an error at exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        return result


class _UnknownCommand(LocalqwenError):
    exit_code = 2


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__, prog_name="localqwen", message="%(prog)s %(version)s")
def cli() -> None:
    """Run Qwen3 on this machine.

    \b
    localqwen chat                      talk with the model on this machine
    localqwen run demo "What is 2+2?"   one answer on stdout
    localqwen COMMAND --help            every flag of a command

    Set the default of any flag in config.toml (localqwen doctor shows its folder) or in a LOCALQWEN_* variable.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. An exception that is raised here is a bug."""
    sys.excepthook = failures.report_bug
    _survive_any_text()
    try:
        result = cli.main(args, prog_name="localqwen", standalone_mode=False)
    except LocalqwenError as error:
        return failures.report_error(error)
    except click.ClickException as error:
        return failures.report_click(error)
    except click.Abort:
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _survive_any_text() -> None:
    """Let a terminal with an old encoding show question marks, so that it does not end an answer in the middle."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
