"""The REPL's slash commands: a table of name, argument, help and handler."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from localqwen.chat.messages import Overrides
from localqwen.chat.session import Session
from localqwen.cli import named_sessions
from localqwen.cli.console import stats_line
from localqwen.cli.options import Settings
from localqwen.engines.engine import SAMPLING_RANGES
from localqwen.errors import Unsupported, UsageError

if TYPE_CHECKING:
    from localqwen.cli.repl.loop import Repl


@dataclass(frozen=True)
class Command:
    """One slash command. `handler` takes the REPL and the text after the name, and returns False to leave."""

    name: str
    argument: str
    help: str
    handler: Callable[[Repl, str], bool | None]


def execute(repl: Repl, line: str) -> bool:
    """Run a command and return whether the conversation continues. Raise UsageError if the command is unknown; the
    model gets nothing then."""
    name, _, argument = line.strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}? " if near else "/help lists the commands. "
        raise UsageError(f"there is no command {name}", f"{hint}A message that begins with / needs a space before it")
    argument = argument.strip()
    if argument and not command.argument:
        raise UsageError(f"{name} takes no argument", f"type {name}")
    return command.handler(repl, argument) is not False


def _think(repl: Repl, _: str) -> None:
    if repl.model.thinking_mode == "never":
        raise Unsupported(f"{repl.model.name} cannot think", "use a model that can: localqwen list")
    repl.change(think=True, **({"budget": None} if repl.settings.budget == 0 else {}))
    repl.printer.note("thinking is on")


def _no_think(repl: Repl, _: str) -> None:
    if repl.model.thinking_mode == "always":
        raise Unsupported(f"{repl.model.name} always thinks", "/budget 256 limits it, /set hide_thinking on hides it")
    repl.change(think=False)
    repl.printer.note("thinking is off")


def _budget(repl: Repl, argument: str) -> None:
    if argument:
        repl.change(budget=None if argument in ("off", "none") else _whole_number("/budget", argument, 0))
    budget = repl.settings.budget
    repl.printer.note("no thinking budget" if budget is None else f"at most {budget} tokens of thinking")


def _system(repl: Repl, argument: str) -> None:
    if argument:
        repl.session.set_system("" if argument in ('""', "''") else argument)
    repl.printer.note(f"system prompt: {repl.session.conversation.system or '(none)'}")


def _stats(repl: Repl, argument: str) -> None:
    if argument:
        repl.change(stats=_on_off("/stats", argument))
        repl.printer.note(f"statistics after each answer: {argument}")
    elif repl.last is None:
        repl.printer.note("no answer yet")
    else:
        repl.printer.note(stats_line(repl.last, repl.model))


def _whole_number(name: str, text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise UsageError(f"{name} is {text!r}, it must be a whole number from {low}", "/help lists the commands")
    return value


def _sampling(name: str, text: str) -> Any:
    bounds = SAMPLING_RANGES[name]
    try:
        value = int(text) if bounds.whole else float(text)
    except ValueError:
        value = math.nan
    if value not in bounds:
        raise UsageError(f"{name} is {text!r}, it must be {bounds}", f"/set {name} default")
    return value


def _on_off(name: str, text: str) -> bool:
    if text not in ("on", "off"):
        raise UsageError(f"{name} is {text!r}, it must be on or off", f"{name} on")
    return text == "on"


#: NAME of /set -> the function that turns its text into a value.
_SETTABLE: dict[str, Callable[[str, str], Any]] = {
    **dict.fromkeys(SAMPLING_RANGES, _sampling),
    "seed": lambda name, text: _whole_number(name, text, 0),
    "max_tokens": lambda name, text: _whole_number(name, text, 1),
    "hide_thinking": _on_off,
    "stop": lambda name, text: (text.strip('"'),),
}


def _set(repl: Repl, argument: str) -> None:
    name, _, text = argument.partition(" ")
    if not name:
        for line in _effective(repl):
            repl.printer.note(line)
        return
    name = name.replace("-", "_")
    if name not in _SETTABLE:
        near = get_close_matches(name, _SETTABLE, 1)
        raise UsageError(
            f"there is no setting {name}", f"did you mean {near[0]}?" if near else f"possible: {', '.join(_SETTABLE)}"
        )
    if not text.strip():
        raise UsageError(f"/set {name} needs a value", f"/set {name} default uses the model's own")
    wanted = getattr(Settings(), name) if text.strip() == "default" else _SETTABLE[name](name, text.strip())
    repl.change(**{name: wanted})
    repl.printer.note(f"{name}: {text.strip()}")


def _effective(repl: Repl) -> list[str]:
    """Return every setting with the value for the next answer; a star marks what the user chose."""
    preset = dict(repl.model.preset(repl.request()))
    lines = []
    for name in _SETTABLE:
        chosen = getattr(repl.settings, name)
        mark = "*" if chosen != getattr(Settings(), name) else " "
        value = preset.get(name, chosen) if name in _SAMPLING else chosen
        lines.append(f"{mark} {name:<18} {_shown(value)}")
    return lines


_SAMPLING = frozenset(field.name for field in fields(Overrides))


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else f"{value:g}"


def _save(repl: Repl, name: str) -> None:
    if not name:
        raise UsageError("/save needs a name", "e.g. /save holidays")
    named_sessions.save(repl.session, name)
    repl.printer.note(f"saved as {name}; /resume {name} continues it")


def _resume(repl: Repl, name: str) -> None:
    folder = repl.session.path.parent
    if not name:
        _list_saved(repl)
        return
    path = named_sessions.find(name, folder)
    if path == repl.session.path:
        repl.printer.note(f"{name} is this conversation")
        return
    resumed = Session.resume(path)
    repl.session.close()
    repl.session = resumed
    repl.settings = repl.settings.changed_by(resumed.conversation.settings)
    repl.printer.note(resumed_line(resumed))


def resumed_line(session: Session) -> str:
    """Return what a user wants to know about a resumed conversation."""
    conversation = session.conversation
    count = len(conversation.messages)
    text = f"{conversation.name or 'the conversation'} continues: {count} message{'' if count == 1 else 's'}"
    if conversation.unanswered:
        text += "; the last question has no answer, /retry asks it again"
    return text


def _list_saved(repl: Repl) -> None:
    listing = named_sessions.listing(repl.session.path.parent)
    if not listing:
        repl.printer.note("nothing is saved; /save NAME saves this conversation")
    for entry in listing:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.modified))
        repl.printer.note(f"{entry.name:<20} {day}  {entry.messages:>3} messages  {entry.model}")


def _retry(repl: Repl, _: str) -> None:
    repl.ask_again()


def _undo(repl: Repl, _: str) -> None:
    question = repl.session.undo()
    if question is None:
        raise UsageError("there is nothing to undo", "/clear removes the whole conversation")
    repl.printer.note(f"undone: {shorten(question, 60, placeholder='…')}")


def _clear(repl: Repl, _: str) -> None:
    repl.session.clear()
    repl.printer.note("the conversation is empty; the system prompt and the settings stay")


def _help(repl: Repl, _: str) -> None:
    for command in COMMANDS.values():
        repl.printer.note(f"{command.name + ' ' + command.argument:<20} {command.help}")
    repl.printer.note('""" begins and ends a text of several lines; Alt-Enter is a line break')
    repl.printer.note("Ctrl-C stops an answer and keeps its beginning; Ctrl-D leaves")


def _bye(repl: Repl, _: str) -> bool:
    return False


COMMANDS = {
    command.name: command
    for command in (
        Command("/think", "", "think in the next turns", _think),
        Command("/no_think", "", "answer directly in the next turns", _no_think),
        Command("/budget", "N|off", "at most N tokens of thinking", _budget),
        Command("/system", "TEXT", 'set the system prompt; "" removes it', _system),
        Command("/set", "NAME VALUE", "change a setting; alone, list them", _set),
        Command("/stats", "on|off", "show tokens and speeds of the last answer, or of each", _stats),
        Command("/save", "NAME", "give this conversation a name", _save),
        Command("/resume", "NAME", "continue a saved conversation; alone, list them", _resume),
        Command("/retry", "", "answer the last question again", _retry),
        Command("/undo", "", "remove the last question and its answer", _undo),
        Command("/clear", "", "remove the whole conversation", _clear),
        Command("/help", "", "show this list", _help),
        Command("/bye", "", "leave", _bye),
    )
}
