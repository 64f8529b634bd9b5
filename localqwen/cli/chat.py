"""`localqwen chat`: choose the model and the conversation, then start the REPL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TextIO

import click

from localqwen.chat import session as sessions
from localqwen.chat.session import Session
from localqwen.cli import config, named_sessions
from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.console import Channel, Printer, is_terminal
from localqwen.cli.loading import Loading, loading_options
from localqwen.cli.options import Settings, answer_options
from localqwen.cli.repl import commands as repl_commands
from localqwen.cli.repl.keys import Keys, NoKeys, TerminalKeys, terminal_kept
from localqwen.cli.repl.loop import Repl
from localqwen.cli.repl.reader import LineReader, Reader
from localqwen.errors import ConfigError, ModelNotFound, SessionError, UsageError
from localqwen.machine import posix
from localqwen.models import inventory, names, store
from localqwen.models.resolve import ResolvedModel

GET_A_MODEL = "a real one: localqwen chat path/to/model.gguf"


@dataclass(frozen=True)
class Choice:
    """A model, and the reason for it in words; "" if the user named it."""

    model: ResolvedModel
    reason: str = ""


@click.command("chat", cls=ConfiguredCommand)
@click.argument("model", required=False)
@click.option("--continue", "goes_on", is_flag=True, help="Continue the last conversation.")
@click.option("--system", default="", metavar="TEXT", help="System prompt.")
@click.option("--no-prepare", is_flag=True, help="Do not prefill the next turn while you type.")
@answer_options
@loading_options
def command(
    model: str | None, goes_on: bool, system: str, no_prepare: bool, settings: Settings, loading: Loading
) -> int:
    """Talk with MODEL: `demo`, a .gguf file or a checkpoint folder.

    Without MODEL: the model of the last conversation, else `model` of the config file, else the largest on disk that
    fits, else `demo`. Type /help in the conversation for its commands.
    """
    folder = store.conversations_dir()
    last = _last(folder)
    if goes_on and last is None:
        raise SessionError("there is no conversation to continue", "start one: localqwen chat")
    choice = choose(model, last, largest, loading)
    choice = replace(choice, model=loading.ensure(choice.model))  # before a conversation begins
    session = _session(choice, last if goes_on else None, folder, system)
    with session:
        if choice.reason:
            sys.stderr.write(f"{choice.reason}\n")
        session.set_settings(_given())
        changed = settings.changed_by(session.conversation.settings)
        return _talk(choice, session, changed, loading, prefill_ahead=not no_prepare)


def choose(named: str | None, last: Path | None, largest: Callable[[], str | None], loading: Loading) -> Choice:
    """Return the model of the command line, the last conversation, the configuration, the disk, or the built-in one.

    Raise what resolving its name raises.
    """
    if named:
        return Choice(loading.resolve(named))
    used = _available(sessions.read(last).model, loading) if last else None
    if used is not None:
        return _chosen(used, "the model of the last conversation")
    configured = config.default_model()
    if configured:
        why = f"the configured model ({store.config_file().name} or LOCALQWEN_MODEL)"
        return _chosen(loading.resolve(configured), why)
    on_disk = largest()
    if on_disk:
        return _chosen(loading.resolve(on_disk), "the largest model on disk that fits")
    return _chosen(loading.resolve("demo"), "no other model is on disk")


def _chosen(model: ResolvedModel, why: str) -> Choice:
    reason = f"using {model.display}: {why}"
    if model.is_built_in:
        reason += f". It is a toy that adds, subtracts, counts letters, greets and calls a tool; {GET_A_MODEL}"
    return Choice(model, reason)


def _available(name: str, loading: Loading) -> ResolvedModel | None:
    """Return the model of a conversation, or None if it is not on disk any more."""
    try:
        reference = names.parse(name)
    except ConfigError:  # a broken models.toml says nothing about the name
        raise
    except (ModelNotFound, UsageError):
        return None
    model = loading.resolve(reference)
    return model if model.files is not None else None


def largest() -> str | None:
    """Return the name or path of the largest model on disk that fits and that an installed engine loads, or None."""
    from localqwen.engines import selection
    from localqwen.machine import this_machine
    from localqwen.models import fit

    installed = selection.installed()
    files = [file for file in inventory.on_disk() if installed.get(file.engine)]
    found = fit.largest_that_fits(files, this_machine())
    return found.typed if found else None


def _last(folder: Path) -> Path | None:
    """Return the last conversation if it can be read. A damaged one only brings a warning, so a new one can start."""
    path = named_sessions.latest(folder)
    if path is None:
        return None
    try:
        sessions.read(path)
    except SessionError as error:
        sys.stderr.write(f"warning: {error.message}\n")
        return None
    return path


def _session(choice: Choice, goes_on_with: Path | None, folder: Path, system: str) -> Session:
    model = choice.model.name
    if goes_on_with is None:
        return Session.new(model, folder, system=system)
    session = Session.resume(goes_on_with)
    if session.conversation.model != model:
        session.set_model(model)
    if system:
        session.set_system(system)
    return session


def _given() -> dict[str, Any]:
    """Return the flags that were typed; they win over the settings of a resumed conversation."""
    context = click.get_current_context()
    line = click.core.ParameterSource.COMMANDLINE
    names = [field.name for field in fields(Settings)]
    return {name: context.params[name] for name in names if context.get_parameter_source(name) is line}


def _talk(choice: Choice, session: Session, settings: Settings, loading: Loading, *, prefill_ahead: bool) -> int:
    model = loading.open(choice.model)
    try:
        file = sys.stdin.fileno() if _interactive(sys.stdin, (sys.stdout, sys.stderr)) else None
        with terminal_kept(file):
            reader, keys = _keyboard(file) if file is not None else (LineReader(sys.stdin), NoKeys())
            printer = Printer(Channel(sys.stdout), Channel(sys.stderr), thinking_hint=keys.hint)
            repl = Repl(model, session, reader, printer, settings, keys, prefill_ahead=prefill_ahead)
            if session.conversation.messages:
                printer.note(repl_commands.resumed_line(session))
            if reader.interactive:
                printer.note(
                    f"{model.name} · {model.engine_name} · {model.context_length:,} tokens · /help, Ctrl-D leaves"
                )
            try:
                return repl.run()
            finally:
                repl.session.close()
    finally:
        model.close()


def _interactive(stdin: TextIO | None, outputs: Sequence[TextIO]) -> bool:
    return stdin is not None and is_terminal(stdin) and any(is_terminal(stream) for stream in outputs)


def _keyboard(file: int) -> tuple[Reader, Keys]:
    from localqwen.cli.repl.prompt import TerminalReader

    commands = [(command.name, command.help) for command in repl_commands.COMMANDS.values()]
    return TerminalReader(commands, store.conversations_dir() / "history"), (
        TerminalKeys(file) if posix.HAS_SINGLE_KEYS else NoKeys()
    )
