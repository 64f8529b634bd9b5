"""Which engine, and whether it runs here: choose() and the probe."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from localqwen.engines import Sampling, choose, probe
from localqwen.errors import EngineUnavailable, UsageError
from localqwen.machine import OPENMP_DEFAULTS, Machine, this_machine, usable_cores

LINUX = Machine("Linux", "x86_64", "a chip", 4, 16 << 30, 8 << 30)


def test_the_engine_that_is_installed_is_chosen_with_a_reason() -> None:
    choice = choose(LINUX, {"llama.cpp": True})
    assert choice.engine == "llama.cpp"
    assert "Linux x86_64" in choice.reason
    assert choose(LINUX, {"llama.cpp": True}, "llama.cpp").reason == "asked for"


def test_a_missing_engine_is_an_error_with_the_command_that_installs_it() -> None:
    for wanted in (None, "llama.cpp"):
        with pytest.raises(EngineUnavailable) as error:
            choose(LINUX, {"llama.cpp": False}, wanted)
        assert error.value.hint == "pip install llama-cpp-python"
    with pytest.raises(UsageError, match="no engine 'vllm'"):
        choose(LINUX, {"llama.cpp": True}, "vllm")


def child(*, fast: int, safe: int) -> probe.Child:
    return lambda _model, use_extra_bufts: (fast, "") if use_extra_bufts else (safe, "some words")


def test_a_build_that_runs_is_used_as_it_is() -> None:
    result = probe.ask(Path("m"), child(fast=0, safe=1))
    assert (result.ok, result.use_extra_bufts) == (True, True)


def test_a_build_that_dies_of_an_illegal_instruction_runs_without_extra_buffers() -> None:
    result = probe.ask(Path("m"), child(fast=-signal.SIGILL, safe=0))
    assert (result.ok, result.use_extra_bufts) == (True, False)
    assert "SIGILL" in result.detail


def test_a_build_that_runs_in_no_way_is_said_to() -> None:
    result = probe.ask(Path("m"), child(fast=-signal.SIGILL, safe=3))
    assert not result.ok
    assert "SIGILL" in result.detail
    assert "some words" in result.detail


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    return tmp_path


def test_the_child_process_really_computes(own_home: Path) -> None:
    first, second = probe.probe(), probe.probe()
    assert first.ok
    assert (first.cached, second.cached) == (False, True)
    assert second.use_extra_bufts == first.use_extra_bufts


def test_a_crash_of_the_child_is_an_answer_and_is_remembered(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that kills itself stands for the illegal instruction: the parent lives and knows the safe setting."""
    calls: list[bool] = []

    def dying(_model: Path, use_extra_bufts: bool) -> tuple[int, str]:
        calls.append(use_extra_bufts)
        code = "import os, signal; os.kill(os.getpid(), signal.SIGILL)" if use_extra_bufts else ""
        return subprocess.run([sys.executable, "-c", code], check=False).returncode, ""

    monkeypatch.setattr(probe, "_run_child", dying)
    assert probe.probe().use_extra_bufts is False
    assert probe.probe().use_extra_bufts is False
    assert calls == [True, False]


def test_where_nothing_runs_the_error_says_how_to_rebuild_and_nothing_is_remembered(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_run_child", child(fast=-signal.SIGILL, safe=-signal.SIGSEGV))
    with pytest.raises(EngineUnavailable) as error:
        probe.probe()
    assert "SIGSEGV" in error.value.message
    assert "GGML_NATIVE=OFF" in error.value.hint
    assert not (own_home / "cache" / "probe.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}'])
def test_a_damaged_memory_is_asked_anew(own_home: Path, content: str) -> None:
    file = own_home / "cache" / "probe.json"
    file.parent.mkdir()
    file.write_text(content)
    assert probe.probe().cached is False
    assert probe.fingerprint() in json.loads(file.read_text())


def test_another_build_or_cpu_is_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    here = probe.fingerprint()
    assert here == probe.fingerprint()
    monkeypatch.setattr(probe, "cpu_flags", lambda: "fpu amx_tile")
    assert probe.fingerprint() != here


LOADERS = [
    "from localqwen.engines.llama_library import library; library()",
    "from convert.ggml import library; library()",
]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("user_set", [None, "active"])
def test_the_openmp_settings_are_made_when_the_library_loads_unless_the_user_made_them(
    loader: str, user_set: str | None
) -> None:
    code = f"import os; {loader}; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if name not in OPENMP_DEFAULTS}
    environment |= {"OMP_WAIT_POLICY": user_set} if user_set else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == (user_set or "passive")


def test_this_machine_is_described() -> None:
    machine = this_machine()
    assert machine.memory >= machine.available_memory > 0
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert machine.chip


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"top_p": 1.01},
        {"top_k": -1},
        {"min_p": 2},
        {"presence_penalty": 1e9},
        {"repetition_penalty": 0},
    ],
)
def test_sampling_out_of_range_is_refused_by_name(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        Sampling(**values)  # type: ignore[arg-type]
