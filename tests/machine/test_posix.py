"""What macOS and Windows do where Linux does something else: told by the platform's name alone, and tried here."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import without_posix

from localqwen.machine import posix


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that `os.fsync` was called with."""
    found: list[int] = []
    monkeypatch.setattr(os, "fsync", found.append)
    return found


def become_macos(monkeypatch: pytest.MonkeyPatch, control: Callable[[int, int], int]) -> None:
    fcntl = ModuleType("fcntl")
    fcntl.F_FULLFSYNC, fcntl.fcntl = 51, control
    monkeypatch.setitem(sys.modules, "fcntl", fcntl)
    monkeypatch.setattr(sys, "platform", "darwin")


def test_on_macos_the_drive_empties_its_own_cache_too(monkeypatch: pytest.MonkeyPatch, synced: list[int]) -> None:
    asked: list[tuple[int, int]] = []
    become_macos(monkeypatch, lambda *arguments: asked.append(arguments) or 0)
    posix.sync_file(7)
    assert (asked, synced) == ([(7, 51)], [])


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOTTY, errno.EINVAL])
def test_on_macos_a_file_system_that_knows_no_such_thing_syncs_as_it_can(
    monkeypatch: pytest.MonkeyPatch, synced: list[int], number: int
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(number, "refused")

    become_macos(monkeypatch, refuse)
    posix.sync_file(7)
    assert synced == [7]


def test_on_macos_a_disk_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch, synced: list[int]) -> None:
    def fail(*_: int) -> int:
        raise OSError(errno.EIO, "broken")

    become_macos(monkeypatch, fail)
    with pytest.raises(OSError, match="broken"):
        posix.sync_file(7)
    assert synced == []


def test_elsewhere_fsync_is_all_there_is(synced: list[int]) -> None:
    posix.sync_file(7)
    assert synced == [7]


def test_what_is_converted_is_synced_by_this_one_function() -> None:
    """A second way would be one that macOS does not survive a power cut with."""
    root = Path(posix.__file__).parents[2]
    files = [*(root / "localqwen").rglob("*.py"), *(root / "convert").rglob("*.py")]
    assert [file.name for file in files if "fsync" in file.read_text(encoding="utf-8")] == ["posix.py"]


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posix, "sys", without_posix.Windows("sys"))
    for name in without_posix.MISSING:
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises


@pytest.mark.usefixtures("windows")
def test_windows_tells_nothing_of_limits_and_refuses_to_set_them() -> None:
    posix.allow_open_files(1 << 20)
    assert (posix.address_space_limit(), posix.peak_memory()) == (None, None)
    with pytest.raises(OSError, match="address space cannot be limited here"):
        posix.limit_address_space(1 << 30)


@pytest.mark.usefixtures("windows")
def test_windows_has_one_kind_of_terminal_and_of_end(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = posix.terminal_modes(0)
    posix.set_terminal_modes(0, modes)
    posix.give_single_keys(0)
    posix.suspend(lambda *_: None)
    assert (modes, posix.on_suspend(None), posix.in_foreground(0)) == (None, None, False)
    assert not posix.was_killed(-signal.SIGKILL)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    assert posix.apart_from_terminal() == {"creationflags": 512}


@pytest.mark.usefixtures("windows")
def test_on_windows_a_file_is_written_byte_by_byte_and_may_be_opened_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_BINARY", 0x8000, raising=False)
    assert posix.binary_flags(os.O_RDWR) == os.O_RDWR | 0x8000
    with open(tmp_path / "log", "wb") as first, open(tmp_path / "log", "wb") as second:
        posix.lock_file(first.fileno())
        posix.lock_file(second.fileno())


def test_a_locked_file_is_refused_to_others(tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as first, open(tmp_path / "log", "wb") as second:
        posix.lock_file(first.fileno())
        with pytest.raises(BlockingIOError):
            posix.lock_file(second.fileno())


def test_the_limit_of_open_files_is_raised_as_far_as_allowed() -> None:
    code = (
        "import resource; from localqwen.machine import posix; n = resource.RLIMIT_NOFILE\n"
        "resource.setrlimit(n, (100, 300)); posix.allow_open_files(200); print(*resource.getrlimit(n))\n"
        "posix.allow_open_files(150); posix.allow_open_files(1000); print(*resource.getrlimit(n))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["200", "300", "300", "300"]


def run_on_windows(home: Path, *arguments: str, stdin: str = "") -> str:
    environment = os.environ | {"LOCALQWEN_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, without_posix.__file__, *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_can_be_imported_without_what_windows_lacks(tmp_path: Path) -> None:
    assert run_on_windows(tmp_path) == ""


def test_run_and_chat_need_nothing_that_windows_lacks(tmp_path: Path) -> None:
    answer = json.loads(run_on_windows(tmp_path, "run", "demo", "--json", "--threads", "1", "What is 2 + 3?"))
    assert "5" in answer["content"]
    assert "5" in run_on_windows(tmp_path, "chat", "demo", "--threads", "1", stdin="What is 2 + 3?\n")
    (log,) = (tmp_path / "conversations").glob("*.jsonl")
    assert "What is 2 + 3?" in log.read_text(encoding="utf-8")


def test_serve_needs_nothing_that_windows_lacks(tmp_path: Path) -> None:
    environment = os.environ | {"LOCALQWEN_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, without_posix.__file__, "serve", "demo", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        assert "/v1" in server.stderr.readline()
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0


def test_convert_needs_nothing_that_windows_lacks(tmp_path: Path) -> None:
    demo = Path(posix.__file__).parents[1] / "demo"
    run_on_windows(tmp_path, "convert", str(demo), "--quant", "q8_0", "--out", str(tmp_path / "demo.gguf"))
    assert (tmp_path / "demo.gguf").read_bytes()[:4] == b"GGUF"
