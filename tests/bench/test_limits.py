"""Holding a process to limits: by cgroup v2 on a hierarchy of files, and on the real one where this user may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from localqwen import machine
from localqwen.bench.contention import Others
from localqwen.bench.worker import Target, Worker
from localqwen.chat.load_options import LoadOptions
from localqwen.engines import selection
from localqwen.engines.llama_cpp import threads
from localqwen.errors import NotEnoughMemory, Unsupported
from localqwen.machine import cgroup
from localqwen.machine.cgroup import Group, Place
from localqwen.machine.limits import Limits

OWN = "user.slice/app.slice/run-1.scope"


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Groups in the order in which they were removed, with what was written into them. The kernel's files vanish with
    their folder; those of a test must be taken away."""
    found: list[dict[str, str]] = []
    real = os.rmdir

    def rmdir(path: Path) -> None:
        found.append({file.name: file.read_text() for file in path.iterdir()})
        for file in path.iterdir():
            file.unlink()
        real(path)

    monkeypatch.setattr(cgroup.os, "rmdir", rmdir)
    return found


def system(root: Path, controllers: str, mount: str = "/ /sys/fs/cgroup") -> Path:
    """A root like that of a system whose process is in OWN, and the folder above that group."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"4:memory:/\n0::/{OWN}\n")
    (root / "proc/self/mountinfo").write_text(
        f"30 25 0:27 / /dev/shm rw - tmpfs tmpfs rw\n41 31 0:38 {mount} rw,relatime shared:3 - cgroup2 cgroup2 rw\n"
    )
    scope = root / "sys/fs/cgroup" / OWN
    scope.mkdir(parents=True)
    (scope / "cgroup.subtree_control").write_text("")  # it holds processes: nothing is passed on
    (scope.parent / "cgroup.subtree_control").write_text(controllers)
    return scope.parent


def test_a_delegated_scope_is_found_and_its_group_gets_the_limits(
    tmp_path: Path, removed: list[dict[str, str]]
) -> None:
    above = system(tmp_path, "cpu memory pids")
    limits = Limits(cpus=1, memory=5_000_000_000).here(tmp_path)
    assert limits.place == Place(above, frozenset({"cpu", "memory"}))
    assert limits.text == "1 processor (affinity, cpu.max) and 5 GB of memory (memory.max)"
    assert limits.of_process == {"cpus": 1, "address_space": None}
    assert len(removed) == 1  # it was tried
    group = limits.group()
    assert group is not None
    assert group.path.parent == above
    group.add(4242)
    group.close()
    assert removed[1] == {"memory.max": "5000000000", "cpu.max": "100000 100000", "cgroup.procs": "4242"}


def test_without_the_memory_controller_the_address_space_is_limited(tmp_path: Path) -> None:
    system(tmp_path, "pids")
    limits = Limits(cpus=1, memory=10**9).here(tmp_path)
    assert limits.text == "1 processor (affinity) and 1 GB of memory (RLIMIT_AS)"
    assert (limits.group(), limits.of_process) == (None, {"cpus": 1, "address_space": 10**9})
    assert Limits(cpus=1).here(tmp_path / "elsewhere").text == "1 processor (affinity)"


def test_without_the_controller_of_processors_the_group_limits_memory_alone(
    tmp_path: Path, removed: list[dict[str, str]]
) -> None:
    system(tmp_path, "memory")
    assert Limits(1, 10**9).here(tmp_path).text == "1 processor (affinity) and 1 GB of memory (memory.max)"


def test_a_folder_in_which_no_group_can_be_made_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    above = system(tmp_path, "cpu memory")
    monkeypatch.setattr(cgroup.secrets, "token_hex", lambda _: "taken")
    (above / f"localqwen-{os.getpid()}-taken").mkdir()
    assert cgroup.find(tmp_path) is None


def test_a_container_sees_its_part_of_the_hierarchy(tmp_path: Path) -> None:
    system(tmp_path, "memory", mount="/user.slice /sys/fs/cgroup/user.slice")
    top = tmp_path / "sys/fs/cgroup/user.slice"
    assert machine.own_cgroup(tmp_path) == (top / "app.slice/run-1.scope", top)


def test_the_tightest_limit_above_a_process_is_that_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = system(tmp_path, "memory")
    (above / "memory.max").write_text("3000000000\n")
    (above / "run-1.scope" / "memory.max").write_text("max\n")
    (above / "run-1.scope" / "cpu.max").write_text("150000 100000\n")
    own = machine.own_cgroup(tmp_path)
    monkeypatch.setattr(machine, "own_cgroup", lambda: own)
    assert machine.this_machine().memory == 3_000_000_000
    assert machine._cgroup_cpu_quota() == 1


def test_a_limit_that_is_impossible_here_is_an_error() -> None:
    with pytest.raises(Unsupported, match="a process cannot be limited to 4096 processors here") as error:
        Limits(cpus=4096).here()
    assert "leave out --hold" in error.value.hint


def test_a_model_is_measured_in_its_group_which_is_gone_afterwards(
    tmp_path: Path, removed: list[dict[str, str]]
) -> None:
    place = Place(system(tmp_path, "cpu memory"), frozenset({"cpu", "memory"}))
    limits = Limits(1, 4 * 10**9, place)
    with Worker(Target(selection.resolve("demo"), "demo", LoadOptions(threads=1), limits)) as worker:
        (group,) = place.folder.glob("localqwen-*")
        assert (group / "cgroup.procs").read_text() == str(worker.pid)
        assert (group / "memory.max").read_text() == "4000000000"
        (group / "memory.events").write_text("max 3\noom 1\noom_kill 1\n")
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(NotEnoughMemory, match=r"demo takes more memory than it is limited to: .*4 GB of memory"):
            worker.peak_memory()
    assert not list(place.folder.glob("localqwen-*"))


def test_what_a_killed_run_left_is_removed_by_the_next_one(tmp_path: Path, removed: list[dict[str, str]]) -> None:
    place = Place(system(tmp_path, "memory"), frozenset({"memory"}))
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""])
    gone.wait()
    left, mine = place.folder / f"localqwen-{gone.pid}-aa", place.folder / f"localqwen-{os.getpid()}-aa"
    for folder in (left, mine):
        folder.mkdir()
    Group(place, {}).close()
    assert (left.exists(), mine.exists()) == (False, True)


def test_a_process_is_moved_by_the_real_kernel() -> None:
    """Without limits, so that it works wherever groups can be made at all."""
    own = machine.own_cgroup()
    if own is None or not os.access(own[0] / "cgroup.procs", os.W_OK):
        pytest.skip("needs cgroup v2 with the right to move processes")
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    with Group(Place(own[0], frozenset()), {}) as group:
        group.add(process.pid)
        assert Path(f"/proc/{process.pid}/cgroup").read_text().rstrip().endswith(group.path.name)
    assert not group.path.exists()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_phone_is_named_by_its_properties(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """/proc/cpuinfo of ARM names no model."""
    getprop = tmp_path / "getprop"
    getprop.write_text('#!/bin/sh\ncase $1 in ro.product.model) echo "Phone 7";; ro.soc.model) echo SM9999;; esac\n')
    getprop.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "_read", lambda path: "")
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    assert machine._chip.__wrapped__() == "Phone 7, SM9999"
    monkeypatch.setattr(machine, "_read", lambda path: "Head Unit Rev 2\0" if path.name == "model" else "")
    assert machine._chip.__wrapped__() == "Head Unit Rev 2"


def test_a_system_that_hides_its_accounting_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Android closes /proc/stat to apps."""

    def refused(**_: object) -> object:
        raise PermissionError(13, "Permission denied", "/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", refused)
    assert threads.watched(4) is None
    assert Others().since() == {}
