"""Programs that some tests need and pip does not install: how they are found, and what they are called in Debian.

Run as a program, it prints the Debian packages of those that are missing; `.ci/run` installs them.
"""

import os
import shutil
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Program:
    """`commands` are its names on different systems, `package` is Debian's."""

    commands: tuple[str, ...]
    package: str

    def path(self) -> str | None:
        places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])  # where sshd lies
        return next((found for name in self.commands if (found := shutil.which(name, path=places))), None)


#: Not a program, but missing like one: LLAMA_CPP_SOURCE names it.
SOURCE_TREE = "llama.cpp's source tree"
PROGRAMS = {
    "a browser": Program(("chromium", "chromium-browser", "google-chrome"), "chromium"),
    "adb": Program(("adb",), "adb"),
    "sshd": Program(("sshd",), "openssh-server"),
    "bubblewrap": Program(("bwrap",), "bubblewrap"),
    "qemu": Program(("qemu-aarch64", "qemu-aarch64-static"), "qemu-user"),
}


def needed(name: str) -> str:
    """Return the path of a program of the table, or skip the test that calls this and say the program's name."""
    path = PROGRAMS[name].path()
    if path is None:
        pytest.skip(f"needs {name}: {' or '.join(PROGRAMS[name].commands)}")
    return path


if __name__ == "__main__":
    print(*(program.package for program in PROGRAMS.values() if program.path() is None))
