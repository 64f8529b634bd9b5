"""The command line as on Windows: `python without_posix.py ARGUMENTS…`, or without arguments every module is imported.

The modules that Windows lacks cannot be imported by this project's code (the standard library keeps its own imports),
and `localqwen.machine.posix` believes that it runs on Windows.
"""

import builtins
import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType
from typing import Any

MISSING = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}
_import = builtins.__import__


class Windows(ModuleType):
    """`sys` with another name for the platform."""

    platform = "win32"

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


def windows_import(
    name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
) -> ModuleType:
    importer = (globals or {}).get("__name__", "")
    if importer.startswith(("localqwen", "convert")) and name in MISSING:
        raise ModuleNotFoundError(f"No module named {name!r} on Windows, imported by {importer}", name=name)
    if importer == "localqwen.machine.posix" and name == "sys":
        return Windows("sys")
    return _import(name, globals, locals, fromlist, level)


def import_everything() -> None:
    for package in ("localqwen", "convert"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith(("__main__", "worker_main", "probe_child")):
                importlib.import_module(module.name)


if __name__ == "__main__":
    builtins.__import__ = windows_import
    vars(subprocess).setdefault("CREATE_NEW_PROCESS_GROUP", 0)  # the one value that other systems accept
    if arguments := sys.argv[1:]:
        from localqwen.cli import main

        sys.exit(main(arguments))
    import_everything()
