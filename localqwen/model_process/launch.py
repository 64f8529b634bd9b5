"""Starting the process of a model: a fresh interpreter, which `ps` shows by the model's name and which inherits nothing
but its pipes and standard error."""

from __future__ import annotations

import os
import sys
from typing import Any

from localqwen.machine import posix

#: A library that aborts must not start a debugger, as ggml does.
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1"}
#: The variable in which a child finds the id of its parent.
PARENT = "LOCALQWEN_PARENT_PID"
#: Seconds after which a thread that parses or prepares megabytes gives up the interpreter if another one wants it. With
#: Python's 5 ms, each call into the engine's library, of which a step has several, would wait for so long.
SWITCH_INTERVAL = 0.0005
#: The longest name in the list of processes.
_LONGEST_NAME = 100


def printable(text: str, most: int) -> str:
    """Return the first `most` characters of a text, a question mark for each that a terminal would not print."""
    return "".join(character if character.isprintable() else "?" for character in text[:most])


def command(module: str, name: str) -> list[str]:
    """Return the command of a child that runs `module`. `name` is what `ps` shows behind it."""
    shown = printable(name, _LONGEST_NAME)
    # -P: a file in the current folder must not be imported in place of a library.
    return [sys.executable, "-P", "-m", module, shown]


def popen_arguments() -> dict[str, Any]:
    """Return the arguments of Popen, or of asyncio's subprocesses, for such a child: Ctrl-C does not reach it, and it
    finds this package where this process found it."""
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": path, PARENT: str(os.getpid())}
    return {"env": environment, **posix.apart_from_terminal()}


def begin_child() -> None:
    """Do what a child does first: bind its life to its parent's, write no core file, and be the one that the system
    ends where memory runs out."""
    posix.end_with_parent(int(os.environ.get(PARENT, os.getppid())))
    posix.forbid_core_files()
    posix.offer_as_victim()
