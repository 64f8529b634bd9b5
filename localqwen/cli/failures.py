"""Print errors on stderr: `Error: …`, a blank line, `hint: …`. Our errors, click's and bugs have the same format."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType

import click

from localqwen.errors import LocalqwenError, UsageError


def report(message: str, hint: str = "") -> None:
    """Write an error and its hint to stderr."""
    sys.stderr.write(f"Error: {message}\n")
    if hint:
        sys.stderr.write(f"\nhint: {hint}\n")
    sys.stderr.flush()


def report_error(error: LocalqwenError) -> int:
    """Write a LocalqwenError and return its exit code."""
    report(error.message, error.hint or ("localqwen --help" if isinstance(error, UsageError) else ""))
    return error.exit_code


def report_click(error: click.ClickException) -> int:
    """Write an error of click in our format and return its exit code."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            sys.stderr.write(error.format_message() + "\n")
        case click.NoSuchOption():
            report(f"there is no option {error.option_name}{_of(error.ctx)}", _nearest(error.possibilities, error.ctx))
        case click.MissingParameter() if error.param is not None:
            report(f"{_name(error.param)} is missing", _help(error.ctx))
        case click.BadParameter() if error.param is not None:
            report(f"{_name(error.param)}: {_sentence(error.message)}", _help(error.ctx))
        case click.UsageError():
            report(_sentence(error.format_message()), _help(error.ctx))
        case _:
            report(_sentence(error.format_message()))
    return error.exit_code


def _name(parameter: click.Parameter) -> str:
    return parameter.human_readable_name if isinstance(parameter, click.Argument) else " / ".join(parameter.opts)


def _sentence(text: str) -> str:
    """Return the message without its full stop: click's messages end with one, ours do not."""
    return text.rstrip().removesuffix(".")


def _of(context: click.Context | None) -> str:
    return f" of {context.command_path}" if context else ""


def _help(context: click.Context | None) -> str:
    return f"{context.command_path if context else 'localqwen'} --help"


def _nearest(names: Sequence[str] | None, context: click.Context | None) -> str:
    return f"did you mean {names[0]}?" if names else _help(context)


def report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report an unexpected exception (`sys.excepthook`) in one line; with LOCALQWEN_DEBUG=1 print its traceback."""
    if os.environ.get("LOCALQWEN_DEBUG"):
        sys.__excepthook__(kind, error, trace)
        return
    report(f"unexpected {kind.__name__}: {error}", "set LOCALQWEN_DEBUG=1 and run it again to see where it happened")
