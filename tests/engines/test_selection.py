"""Which engine, and whether it runs here: choose() and the probe."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import make_checkpoint, write_json
from resolved import file_of

from localqwen.cli import pull as pull_command
from localqwen.engines import selection
from localqwen.engines.engine import Sampling
from localqwen.engines.llama_cpp import probe
from localqwen.engines.mlx import probe as mlx_probe
from localqwen.engines.selection import choose
from localqwen.errors import EngineUnavailable, LocalqwenError, UsageError
from localqwen.machine import OPENMP_DEFAULTS, Machine, this_machine, usable_cores
from localqwen.models import names, resolve
from localqwen.models.resolve import ReadableBy

GB = 10**9
LINUX = Machine("Linux", "x86_64", "a chip", 4, 16 * GB, 8 * GB)
PI = Machine("Linux", "aarch64", "Cortex-A76", 4, 8 * GB, 6 * GB)
M4 = Machine("Darwin", "arm64", "Apple M4 Pro", 12, 48 * GB, 30 * GB)
SMALL_MAC = Machine("Darwin", "arm64", "Apple M1", 8, 8 * GB, 3 * GB)
INTEL_MAC = Machine("Darwin", "x86_64", "Intel(R) Core(TM) i7", 4, 16 * GB, 8 * GB)
ROSETTA = Machine("Darwin", "x86_64", "VirtualApple @ 2.50GHz", 8, 16 * GB, 8 * GB)
BOTH, LLAMA, MLX, NONE = (
    {"llama.cpp": llama, "mlx": mlx} for llama, mlx in ((True, True), (True, False), (False, True), (False, False))
)
GGUF_FILE = ReadableBy("llama.cpp", "x.gguf is a GGUF file", alone=True)
MLX_FOLDER = ReadableBy("mlx", "Qwen3-4B-4bit is quantized for MLX", alone=True)
GGUF_HERE = ReadableBy("llama.cpp", "of qwen3:4b only the GGUF file is on this disk", alone=False)

#: Machine, what is installed, what the user asked for, what the files say -> engine, and words of the reason.
CHOICES = [
    (M4, BOTH, None, None, "mlx", "GPU of Apple M4 Pro"),
    (SMALL_MAC, BOTH, None, None, "mlx", "GPU of Apple M1"),  # memory decides what fits, not which engine
    (M4, MLX, None, None, "mlx", "GPU"),
    (M4, LLAMA, None, None, "llama.cpp", "pip install mlx-lm"),
    (M4, BOTH, "gguf", None, "llama.cpp", "asked for"),
    (M4, BOTH, "llama.cpp", None, "llama.cpp", "asked for"),
    (M4, BOTH, "MLX", None, "mlx", "asked for"),
    (M4, BOTH, None, GGUF_FILE, "llama.cpp", "is a GGUF file"),
    (M4, BOTH, None, GGUF_HERE, "llama.cpp", "only the GGUF file is on this disk"),
    (M4, MLX, None, GGUF_HERE, "mlx", "GPU"),
    (M4, BOTH, "mlx", GGUF_HERE, "mlx", "asked for"),
    (INTEL_MAC, LLAMA, None, None, "llama.cpp", "Darwin x86_64"),
    (ROSETTA, LLAMA, None, None, "llama.cpp", "an arm64 Python would run MLX"),
    (LINUX, BOTH, None, None, "llama.cpp", "runs GGUF files on Linux x86_64"),
    (PI, LLAMA, None, None, "llama.cpp", "Linux aarch64"),
    (LINUX, MLX, None, None, "mlx", "the only engine here"),
    (LINUX, BOTH, "mlx", None, "mlx", "asked for"),
    (LINUX, BOTH, None, MLX_FOLDER, "mlx", "is quantized for MLX"),
]


@pytest.mark.parametrize(("machine", "available", "wanted", "files", "engine", "reason"), CHOICES)
def test_the_engine_of_a_machine_and_why(
    machine: Machine, available: dict[str, bool], wanted: str | None, files: ReadableBy | None, engine: str, reason: str
) -> None:
    choice = choose(machine, available, wanted, files)
    assert choice.engine == engine
    assert reason in choice.reason


#: ... -> the error, words of its message, words of its hint.
REFUSALS = [
    (LINUX, NONE, None, None, EngineUnavailable, "no engine is installed", "pip install llama-cpp-python"),
    (M4, NONE, None, None, EngineUnavailable, "no engine is installed", "pip install mlx-lm"),
    (LINUX, MLX, "llama.cpp", None, EngineUnavailable, "llama.cpp is not installed", "pip install llama-cpp-python"),
    (M4, LLAMA, "mlx", None, EngineUnavailable, "mlx is not installed", "pip install mlx-lm"),
    (LINUX, LLAMA, "mlx", None, EngineUnavailable, "mlx is not installed", "localqwen[mlx]"),
    (INTEL_MAC, LLAMA, "mlx", None, EngineUnavailable, "mlx is not installed", "Apple Silicon"),
    (LINUX, BOTH, "vllm", None, UsageError, "no engine 'vllm'", "mlx, gguf"),
    (M4, BOTH, "mlx", GGUF_FILE, UsageError, "x.gguf is a GGUF file: mlx cannot open it", "--engine llama.cpp"),
    (LINUX, BOTH, "gguf", MLX_FOLDER, UsageError, "llama.cpp cannot open it", "--engine mlx"),
    (LINUX, LLAMA, None, MLX_FOLDER, EngineUnavailable, "quantized for MLX, and the engine mlx", "localqwen[mlx]"),
    (M4, MLX, None, GGUF_FILE, EngineUnavailable, "GGUF file, and the engine llama.cpp", "pip install llama-cpp"),
]


@pytest.mark.parametrize(("machine", "available", "wanted", "files", "error", "message", "hint"), REFUSALS)
def test_what_cannot_be_chosen_says_what_to_do(
    machine: Machine,
    available: dict[str, bool],
    wanted: str | None,
    files: ReadableBy | None,
    error: type[LocalqwenError],
    message: str,
    hint: str,
) -> None:
    with pytest.raises(error) as raised:
        choose(machine, available, wanted, files)
    assert message in raised.value.message
    assert hint in raised.value.hint


def readable(name: str) -> ReadableBy | None:
    return resolve.readable_by(names.parse(name))


def test_the_form_of_the_files_is_found_on_the_disk(tmp_path: Path) -> None:
    plain, packed = make_checkpoint(tmp_path / "plain"), make_checkpoint(tmp_path / "packed")
    content = json.loads((packed / "config.json").read_text())
    write_json(packed / "config.json", content | {"quantization": {"group_size": 64, "bits": 4}})
    assert readable(str(plain)) is None
    assert readable("demo") is None
    for name, engine in ((str(packed), "mlx"), ("nowhere/model.gguf", "llama.cpp"), ("qwen3:4b-q8_0", "llama.cpp")):
        form = readable(name)
        assert form is not None
        assert (form.engine, form.alone) == (engine, True)
    assert readable("qwen3:4b") is None  # neither form is here: the machine decides


def test_of_a_bare_name_the_form_that_is_here_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by what a hub's cache would hold: only there do both forms of an entry have places."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    gguf = tmp_path / "models--Qwen--Qwen3-4B-GGUF" / "snapshots" / "0" / "Qwen3-4B-Q4_K_M.gguf"
    gguf.parent.mkdir(parents=True)
    gguf.write_bytes(b"GGUF")
    only = readable("qwen3:4b")
    assert only == ReadableBy("llama.cpp", "of qwen3:4b only the GGUF file is on this disk", alone=False)
    folder = tmp_path / "models--Qwen--Qwen3-4B-MLX-4bit" / "snapshots" / "0"
    make_checkpoint(folder)
    assert readable("qwen3:4b") is None
    assert file_of("qwen3:4b", "mlx") == folder
    assert file_of("qwen3:4b") == gguf
    gguf.unlink()
    only = readable("qwen3:4b")
    assert only is not None
    assert only.engine == "mlx"


def child(*, fast: int, safe: int) -> probe.Child:
    return lambda _model, use_extra_bufts: (fast, "") if use_extra_bufts else (safe, "some words")


def test_a_build_that_runs_is_used_as_it_is() -> None:
    result = probe.try_settings(Path("m"), child(fast=0, safe=1))
    assert (result.ok, result.use_extra_bufts) == (True, True)


def test_a_build_that_dies_of_an_illegal_instruction_runs_without_extra_buffers() -> None:
    result = probe.try_settings(Path("m"), child(fast=-signal.SIGILL, safe=0))
    assert (result.ok, result.use_extra_bufts) == (True, False)
    assert "SIGILL" in result.detail


def test_a_build_that_runs_in_no_way_is_said_to() -> None:
    result = probe.try_settings(Path("m"), child(fast=-signal.SIGILL, safe=3))
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


def test_the_child_process_computes_with_mlx_and_its_death_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    mlx_probe.probe()
    monkeypatch.setattr(mlx_probe.converted, "demo_checkpoint", lambda: Path("nowhere"))
    with pytest.raises(EngineUnavailable, match="MLX does not run on this machine") as error:
        mlx_probe.probe()
    assert "pip install" in error.value.hint


def test_another_build_or_cpu_is_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    here = probe.fingerprint()
    assert here == probe.fingerprint()
    monkeypatch.setattr(probe, "cpu_flags", lambda: "fpu amx_tile")
    assert probe.fingerprint() != here


LOADERS = [
    "from localqwen.engines.llama_cpp.library import library; library()",
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


#: What is typed -> the reference on a machine that runs MLX, on one that runs llama.cpp.
PULLED = [
    ("qwen3:4b", "qwen3:4b-4bit", "qwen3:4b"),
    ("qwen3:4b-q8_0", "qwen3:4b-q8_0", "qwen3:4b-q8_0"),
    ("qwen3:4b-8bit", "qwen3:4b-8bit", "qwen3:4b-8bit"),
    ("qwen3:4b-base", "qwen3:4b-base", "qwen3:4b-base"),  # there is nothing official for MLX
    ("hf:owner/name:q8_0", "hf:owner/name:q8_0", "hf:owner/name:q8_0"),
]


@pytest.mark.parametrize(("typed", "on_mlx", "on_llama"), PULLED)
def test_a_pull_gets_the_files_of_the_engine_that_runs_here(
    monkeypatch: pytest.MonkeyPatch, typed: str, on_mlx: str, on_llama: str
) -> None:
    for engine, text in (("mlx", on_mlx), ("llama.cpp", on_llama)):
        monkeypatch.setattr(selection, "best_installed", lambda engine=engine: engine)
        assert pull_command._resolved(typed, None, None).text == text
    assert pull_command._resolved("qwen3:4b", "gguf", None).text == "qwen3:4b"
    assert pull_command._resolved("qwen3:4b", "mlx", None).text == "qwen3:4b-4bit"
