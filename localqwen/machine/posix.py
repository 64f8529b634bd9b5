"""What only POSIX systems have, and what Windows does instead: the one module that distinguishes the two.

`resource`, `termios` and `fcntl` are imported here alone, inside the branch that has them; mypy checks each branch for
its platform (`make lint`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from mmap import mmap
from types import FrameType
from typing import Any

#: Whether a terminal can give single keys here. On Windows the keyboard is read line by line only.
HAS_SINGLE_KEYS = sys.platform != "win32"
#: Seconds between two looks at who the parent is.
_LOOK_EVERY = 1.0
#: linux/prctl.h
_PR_SET_PDEATHSIG = 1
#: The errors of a file system without F_FULLFSYNC, such as a network's.
_NO_FULL_SYNC = {errno.ENOTSUP, errno.EINVAL, errno.ENOTTY}


# Files


def sync_file(file: int) -> None:
    """Make what was written to the descriptor `file` survive a power cut. Raise OSError if the disk refuses it.

    macOS: `fsync` leaves the data in the drive's own cache; F_FULLFSYNC empties that too (fsync(2) of macOS).
    """
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            return
        except OSError as exc:
            if exc.errno not in _NO_FULL_SYNC:
                raise
    os.fsync(file)


def write_back(file: int) -> None:
    """Bring written data closer to the disk, so that a later `sync_file` waits less; on its own it promises nothing."""
    getattr(os, "fdatasync", os.fsync)(file)


def binary_flags(flags: int) -> int:
    """Return `flags` for `os.open` such that no byte is translated: Windows would write every newline as two bytes."""
    return flags | getattr(os, "O_BINARY", 0)


def lock_file(file: int) -> None:
    """Lock `file` for this process until it is closed. Raise OSError if another process has it.

    Windows: its locks would forbid reading too, so two programs with one file are not prevented there.
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def drop_cached_pages(file: int) -> None:
    """Give back the pages of `file` that the system keeps in memory and nobody uses; only Linux takes such advice."""
    if sys.platform not in ("win32", "darwin"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def forget_pages(mapped: mmap, start: int, length: int) -> None:
    """Give `length` bytes of a mapped file back to the system, from `start`, a multiple of the page size."""
    if sys.platform != "win32":
        from mmap import MADV_DONTNEED

        mapped.madvise(MADV_DONTNEED, start, length)


# This process and its limits


def usable_cpus() -> list[int]:
    """Return the numbers of the logical CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def pin_to_cpus(count: int) -> None:
    """Keep this process and its later threads on the first `count` of its CPUs. Raise OSError if that is refused."""
    if not hasattr(os, "sched_setaffinity"):
        raise OSError(errno.ENOTSUP, "processes cannot be kept on some CPUs here")
    os.sched_setaffinity(0, usable_cpus()[:count])


def address_space_limit() -> int | None:
    """Return the most bytes of address space that this process may be given, None without a limit."""
    if sys.platform == "win32":
        return None
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def limit_address_space(count: int) -> None:
    """Limit the address space of this process to `count` bytes. Raise OSError if that is refused."""
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, "address space cannot be limited here")
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (count, resource.getrlimit(resource.RLIMIT_AS)[1]))


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files to `count`, as far as its hard limit allows; Windows has no such limit.

    A shell's usual limit on macOS is 256.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def open_files_limit() -> int | None:
    """Return the most files that this process may have open, None without a limit."""
    if sys.platform == "win32":
        return None
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def peak_memory() -> int | None:
    """Return the peak of resident memory of this process in bytes, None if the system does not report it."""
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


# Child processes


def apart_from_terminal() -> dict[str, Any]:
    """Return the arguments of Popen for a child that Ctrl-C of this terminal does not reach."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def kill(process: int) -> None:
    """End the child with this process id at once; Windows: terminate it. Do nothing if there is none any more."""
    with contextlib.suppress(ProcessLookupError):
        if sys.platform == "win32":
            os.kill(process, signal.SIGTERM)
        else:
            os.kill(process, signal.SIGKILL)


def was_killed(code: int) -> bool:
    """Return whether a child with exit code `code` was killed by SIGKILL, most often by the system for its memory."""
    return sys.platform != "win32" and code == -signal.SIGKILL


def end_with_parent(parent: int) -> None:
    """End this process when its parent, which has the id `parent`, has ended, however that happens.

    Linux does it by SIGKILL when the thread that started this process ends (PR_SET_PDEATHSIG, prctl(2)). Elsewhere a
    thread looks who the parent is; on Windows that shows nothing, and a child watches its pipe.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
    elif sys.platform != "win32":
        threading.Thread(target=_watch_parent, args=(parent,), name="localqwen-parent", daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)


def forbid_core_files() -> None:
    """Let a crash of this process write no core file: one of a large model would fill the disk."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def offer_as_victim() -> None:
    """Ask Linux to end this process before its parent where memory runs out (proc(5): oom_score_adj)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")


def limit_further_memory(count: int) -> None:
    """Let this process allocate at most `count` bytes more than it has: what asks for more gets no memory. Mapped files
    do not count. Only Linux has such a limit (RLIMIT_DATA, setrlimit(2))."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    present = int(fields["VmData"].split()[0]) << 10
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or present + count < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (present + count, hard))


# Terminals. Windows has none of this: callers look at HAS_SINGLE_KEYS first.

Modes = list[Any] | None


def terminal_modes(file: int) -> Modes:
    """Return the modes for `set_terminal_modes` to restore. Raise termios.error if `file` is not a terminal."""
    if sys.platform == "win32":
        return None
    import termios

    return termios.tcgetattr(file)


def set_terminal_modes(file: int, modes: Modes) -> None:
    """Set the modes of a terminal after its output is shown. Text that was typed and not read yet stays."""
    if sys.platform == "win32" or modes is None:
        return
    import termios

    with contextlib.suppress(termios.error):  # the terminal is gone: the window was closed
        termios.tcsetattr(file, termios.TCSADRAIN, modes)


def give_single_keys(file: int) -> None:
    """Let a terminal give each key as it is pressed, without echo. Ctrl-C and Ctrl-Z keep their meaning."""
    if sys.platform == "win32":
        return
    import termios

    modes = termios.tcgetattr(file)
    modes[3] &= ~(termios.ECHO | termios.ICANON)
    modes[6][termios.VMIN], modes[6][termios.VTIME] = 1, 0
    termios.tcsetattr(file, termios.TCSADRAIN, modes)


def on_suspend(handler: Any) -> Any:
    """Call `handler` for Ctrl-Z from now on, and return the one before."""
    if sys.platform == "win32":
        return None
    return signal.signal(signal.SIGTSTP, handler)


def suspend(handler: Callable[[int, FrameType | None], None]) -> None:
    """Stop this process until the shell continues it, although `handler` is called for Ctrl-Z."""
    if sys.platform == "win32":
        return
    signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)


def in_foreground(file: int) -> bool:
    """Return whether the terminal belongs to this process; after the shell's `bg` it does not."""
    return sys.platform != "win32" and os.tcgetpgrp(file) == os.getpgrp()
