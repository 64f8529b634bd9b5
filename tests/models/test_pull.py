"""`localqwen pull` and what follows from it, through the real command line and the real hub client, in child processes,
against a hub on loopback that misbehaves as asked."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Shape, make_checkpoint
from hub_server import HubServer, serving

from localqwen.models import converted

ROOT = Path(__file__).parents[2]
GGUF = "Qwen/Qwen3-4B-GGUF"
Q4, Q8 = "Qwen3-4B-Q4_K_M.gguf", "Qwen3-4B-Q8_0.gguf"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """Official names, with the demo model's files behind them."""
    folder, demo = tmp_path_factory.mktemp("made"), converted.demo_checkpoint()
    files = {}
    for quant in ("q4_k_m", "q8_0"):
        files[quant] = converted.convert(demo, folder / f"{quant}.gguf", quant=quant, name="Demo").read_bytes()
    checkpoint = {path.name: path.read_bytes() for path in demo.iterdir() if path.is_file()}
    made = make_checkpoint(folder / "mixture", Shape(experts=6, tied=False))
    mixture = {path.name: path.read_bytes() for path in made.iterdir()}
    parts = {f"Q4_K_M/Qwen3-235B-A22B-Q4_K_M-0000{n}-of-00003.gguf": files["q4_k_m"] + bytes(n) for n in (1, 2, 3)}
    repositories = {
        GGUF: {Q4: files["q4_k_m"], Q8: files["q8_0"], "README.md": b"a model", "LICENSE": b"free"},
        "Qwen/Qwen3-0.6B-GGUF": {"Qwen3-0.6B-Q8_0.gguf": files["q8_0"]},
        "Qwen/Qwen3-0.6B": checkpoint | {"README.md": b"weights"},
        "Qwen/Qwen3-4B-MLX-4bit": checkpoint,
        "Qwen/Qwen3-235B-A22B-GGUF": parts,
        "somebody/Tiny": {"tiny-q4_k_m.gguf": files["q4_k_m"], "tiny-Q8_0.gguf": files["q8_0"]},
        "somebody/Mixture": mixture,
        "somebody/Gated": {"gated-q8_0.gguf": files["q8_0"]},
        "somebody/Pictures": {"cat.png": b"meow"},
    }
    with serving(repositories) as server:
        server.gated["somebody/Gated"] = "hf_right"
        yield server


class Machine:
    """A user's machine: its own home and hub cache; the command line runs as a child process."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.cache = folder / "hf" / "hub"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "LOCALQWEN_HOME": str(folder / "localqwen"),
            "NO_PROXY": "*",
        }

    def start(self, *arguments: str, limit: Callable[[], object] | None = None, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "localqwen", *arguments],
            env=self.environment | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limit,  # noqa: PLW1509  (tests start no threads of their own that matter here)
        )

    def run(self, *arguments: str, **more: Any) -> tuple[int, str, str]:
        process = self.start(*arguments, **more)
        out, aside = process.communicate(timeout=300)
        return process.returncode, out, aside

    def good(self, *arguments: str, **more: Any) -> str:
        code, out, aside = self.run(*arguments, **more)
        assert code == 0, aside
        return out

    def fails(self, *arguments: str, **more: Any) -> tuple[str, str]:
        """The message and the hint of a command that must fail as an error, not as a bug."""
        code, _, aside = self.run(*arguments, **more)
        assert code == 1, aside
        message, _, hint = aside[aside.index("Error: ") :].partition("\n\nhint: ")
        assert hint, aside
        assert "unexpected" not in message
        return message.removeprefix("Error: ").strip(), hint.strip()

    def installed(self, repository: str = GGUF) -> list[Path]:
        """Files under their final names."""
        folder = self.cache / ("models--" + repository.replace("/", "--")) / "snapshots"
        return sorted(path for path in folder.rglob("*") if path.is_file())

    def partials(self) -> list[Path]:
        return sorted(self.cache.rglob("*.incomplete"))

    def read(self, name: str, repository: str = GGUF) -> bytes:
        (path,) = [path for path in self.installed(repository) if path.name == name]
        return path.read_bytes()


@pytest.fixture
def machine(hub: HubServer, tmp_path: Path) -> Machine:
    hub.reset()
    return Machine(hub, tmp_path)


def data(hub: HubServer, name: str = Q4, repository: str = GGUF) -> bytes:
    return hub.repositories[repository][name]


def test_a_pull_says_what_it_does_proves_the_file_and_a_second_one_transfers_nothing(machine: Machine) -> None:
    code, out, aside = machine.run("pull", "qwen3:4b", "--json", HF_TOKEN="hf_secret")
    assert code == 0, aside
    size = len(data(machine.hub))
    assert "downloading 2.0 MB in 1 file from 127.0.0.1" in aside.splitlines()[0]
    assert str(machine.cache) in aside.splitlines()[0]
    (result,) = json.loads(out)
    assert (result["name"], result["quant"], result["transferred_bytes"]) == ("qwen3:4b", "Q4_K_M", size)
    assert machine.read(Q4) == Path(result["path"]).read_bytes() == data(machine.hub)
    assert machine.hub.seen.sent == size
    assert machine.hub.seen.tokens_at_storage == [""]  # the token is for the hub, not for where it sends us
    machine.hub.reset()
    (again,) = json.loads(machine.good("pull", "qwen3:4b-Q4_K_M", "--json"))
    assert (again["path"], again["transferred_bytes"], machine.hub.seen.sent) == (result["path"], 0, 0)


def test_what_was_pulled_is_listed_shown_and_runs_without_a_network(machine: Machine) -> None:
    machine.good("pull", "qwen3:4b")
    (entry,) = json.loads(machine.good("list", "--json"))
    assert (entry["name"], entry["quant"], entry["bytes"]) == ("qwen3:4b", "Q4_K_M", len(data(machine.hub)))
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    shown = json.loads(machine.good("show", "qwen3:4b", "--json", **offline))
    assert shown["here"] is True
    assert shown["files"][0]["digest"] == hashlib.sha256(data(machine.hub)).hexdigest()
    answer = json.loads(
        machine.good("run", "qwen3:4b", "--json", "--threads", "1", "--max-tokens", "4", "hi", **offline)
    )
    assert answer["model"] == "qwen3:4b"
    assert answer["usage"]["completion_tokens"] == 4
    assert "is on disk" in machine.run("pull", "qwen3:4b", **offline)[2]
    message, hint = machine.fails("pull", "qwen3:4b-q8_0", **offline)
    assert "HF_HUB_OFFLINE" in message
    assert "HF_HUB_OFFLINE" in hint


def test_a_model_that_is_not_here_is_not_loaded_without_being_asked(machine: Machine) -> None:
    message, hint = machine.fails("run", "qwen3:4b", "hi")
    assert (message, hint) == ("qwen3:4b is not on this machine", "localqwen pull qwen3:4b")
    assert machine.hub.seen.requests == []
    answer = machine.good("run", "qwen3:4b", "--yes", "--threads", "1", "--max-tokens", "2", "--json", "hi")
    assert json.loads(answer)["model"] == "qwen3:4b"


@pytest.mark.parametrize("rounds", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_pull_that_is_killed_goes_on_where_it_was(machine: Machine, rounds: int) -> None:
    """Again and again at random places: never a wrong file under its name, and each time only the rest is asked for."""
    chance, whole = random.Random(3), data(machine.hub, Q8)
    machine.hub.faults.bytes_per_second = 3e6
    kept, steps = 0, sorted(chance.sample(range(1, len(whole) - 500_000), rounds))
    for number, target in enumerate(steps):
        process = machine.start("pull", "qwen3:4b-q8_0")
        wait_until(lambda least=target, before=kept: partial_bytes(machine) >= max(least, before + 1), process)
        process.kill()
        process.communicate()
        assert machine.installed() == []
        assert len(machine.hub.seen.ranges) == number + 1
        assert machine.hub.seen.ranges[-1] == (f"bytes={kept}-" if kept else "")
        (partial,) = machine.partials()
        kept = partial.stat().st_size
        assert partial.read_bytes() == whole[:kept]
    machine.hub.reset()
    machine.good("pull", "qwen3:4b-q8_0")
    assert machine.hub.seen.ranges == [f"bytes={kept}-"]
    assert machine.hub.seen.sent == len(whole) - kept
    assert machine.read(Q8) == whole
    assert machine.partials() == []


def partial_bytes(machine: Machine) -> int:
    return sum(path.stat().st_size for path in machine.partials())


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def test_ctrl_c_keeps_what_came(machine: Machine) -> None:
    machine.hub.faults.bytes_per_second = 1e6
    process = machine.start("pull", "qwen3:4b")
    wait_until(lambda: partial_bytes(machine) > 100_000, process)
    process.send_signal(signal.SIGINT)
    _, aside = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "the downloaded part is kept" in aside
    assert "Traceback" not in aside
    assert partial_bytes(machine) > 100_000


@pytest.mark.parametrize("no_range", [False, True])
def test_a_connection_that_is_cut_goes_on_by_itself(machine: Machine, no_range: bool) -> None:
    machine.hub.faults.cut_after, machine.hub.faults.times, machine.hub.faults.no_range = 500_000, 2, no_range
    machine.good("pull", "qwen3:4b")
    assert machine.read(Q4) == data(machine.hub)
    assert len(machine.hub.seen.ranges) == 3


def test_a_connection_that_is_always_cut_is_an_error_and_keeps_what_came(machine: Machine) -> None:
    machine.hub.faults.cut_after = 0
    message, hint = machine.fails("pull", "qwen3:4b")
    assert Q4 in message
    assert "resumed" in hint
    assert machine.installed() == []


def test_a_server_that_stalls_is_asked_again(machine: Machine) -> None:
    machine.hub.faults.stall_after, machine.hub.faults.times = 500_000, 1
    process = machine.start("pull", "qwen3:4b", HF_HUB_DOWNLOAD_TIMEOUT="1")
    wait_until(lambda: len(machine.hub.seen.ranges) > 1, process)
    machine.hub.faults.stall_after = -1
    assert process.wait(300) == 0
    process.communicate()
    assert machine.read(Q4) == data(machine.hub)


@pytest.mark.parametrize(
    ("kind", "status", "code", "message", "hint"),
    [
        ("api_status", 401, "", "needs a token (401)", "HF_TOKEN"),
        ("api_status", 403, "", "(403)", "HF_TOKEN"),
        ("api_status", 403, "GatedRepo", "gated", "HF_TOKEN"),
        ("api_status", 404, "RepoNotFound", "(404)", "check the name"),
        ("api_status", 404, "RevisionNotFound", "no such revision", "--revision"),
        ("api_status", 429, "", "too many requests", "wait"),
        ("api_status", 500, "", "answers 500", "again"),
        ("resolve_status", 404, "EntryNotFound", Q4, "check the name"),
        ("resolve_status", 403, "", "(403)", "HF_TOKEN"),
        ("file_status", 429, "", "too many requests", "wait"),
    ],
)
def test_what_the_hub_answers_becomes_a_message_with_a_hint(
    machine: Machine, kind: str, status: int, code: str, message: str, hint: str
) -> None:
    setattr(machine.hub.faults, kind, status)
    machine.hub.faults.error_code = code
    said, advice = machine.fails("pull", "qwen3:4b")
    assert message in said
    assert hint in advice
    assert machine.installed() == []


def test_a_storage_that_fails_for_a_moment_is_asked_again(machine: Machine) -> None:
    machine.hub.faults.file_status, machine.hub.faults.times = 503, 2
    machine.good("pull", "qwen3:4b")
    assert machine.read(Q4) == data(machine.hub)


def test_a_page_that_wants_a_login_is_not_taken_for_the_hub(machine: Machine) -> None:
    machine.hub.faults.not_a_hub = True
    message, hint = machine.fails("pull", "qwen3:4b")
    assert "did not answer like a hub" in message
    assert "HF_ENDPOINT" in hint


def test_a_hub_that_cannot_be_reached_is_named(machine: Machine) -> None:
    message, hint = machine.fails("pull", "qwen3:4b", HF_ENDPOINT="http://127.0.0.1:9")
    assert "127.0.0.1:9" in message
    assert "network" in hint


def test_a_corrupted_byte_is_caught_and_the_file_is_removed(machine: Machine) -> None:
    machine.hub.faults.corrupt_at, machine.hub.faults.times = 1_000_000, 1
    message, hint = machine.fails("pull", "qwen3:4b")
    assert Q4 in message
    assert hashlib.sha256(data(machine.hub)).hexdigest()[:16] in message
    assert "again" in hint
    assert machine.installed() == machine.partials() == []
    machine.good("pull", "qwen3:4b")
    assert machine.read(Q4) == data(machine.hub)


def test_a_wrong_beginning_of_an_earlier_pull_is_loaded_anew(machine: Machine) -> None:
    folder = machine.cache / "models--Qwen--Qwen3-4B-GGUF" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{hashlib.sha256(data(machine.hub)).hexdigest()}.incomplete").write_bytes(bytes(300_000))
    machine.good("pull", "qwen3:4b")
    assert machine.hub.seen.ranges == ["bytes=300000-", ""]
    assert machine.read(Q4) == data(machine.hub)


def test_a_hub_that_lies_about_the_length_is_not_believed(machine: Machine) -> None:
    machine.hub.faults.declare_more = 1000
    message, _ = machine.fails("pull", "qwen3:4b")
    assert Q4 in message
    assert machine.installed() == []


def test_a_full_disk_is_an_error_with_what_to_do_and_the_pull_goes_on_later(machine: Machine) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    message, hint = machine.fails("pull", "qwen3:4b", limit=limit)
    assert "full" in message
    assert "localqwen rm" in hint
    assert machine.installed() == []
    kept = partial_bytes(machine)
    assert kept == 1 << 20
    machine.hub.reset()
    machine.good("pull", "qwen3:4b")
    assert machine.hub.seen.ranges == [f"bytes={kept}-"]


def test_two_pulls_at_once_load_the_file_once(machine: Machine) -> None:
    machine.hub.faults.bytes_per_second = 2e6
    both = [machine.start("pull", "qwen3:4b") for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    for process in both:
        process.communicate()
    assert machine.hub.seen.sent == len(data(machine.hub))
    assert machine.read(Q4) == data(machine.hub)


def obey_file_modes() -> None:
    """In the child: even root may write only where the modes allow it (without CAP_DAC_OVERRIDE, number 1)."""
    if os.getuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.skipif(os.getuid() == 0 and sys.platform != "linux", reason="root writes everywhere")
def test_a_cache_that_cannot_be_written_serves_what_it_holds(machine: Machine) -> None:
    machine.good("pull", "qwen3:4b")
    folders = [path for path in (machine.cache, *machine.cache.rglob("*")) if path.is_dir() and not path.is_symlink()]
    for path in folders:
        path.chmod(0o555)
    try:
        (result,) = json.loads(machine.good("pull", "qwen3:4b", "--json", limit=obey_file_modes))
        assert result["transferred_bytes"] == 0
        run = ("run", "qwen3:4b", "--threads", "1", "--max-tokens", "2", "--json", "hi")
        assert json.loads(machine.good(*run, limit=obey_file_modes))["model"] == "qwen3:4b"
        message, hint = machine.fails("pull", "qwen3:4b-q8_0", limit=obey_file_modes)
        assert "cannot write" in message
        assert "HF_HOME" in hint
        assert "cannot remove" in machine.fails("rm", "qwen3:4b", limit=obey_file_modes)[0]
    finally:
        for path in folders:
            path.chmod(0o755)


def test_verify_names_the_damaged_file_and_pull_mends_it(machine: Machine) -> None:
    machine.good("pull", "qwen3:4b")
    assert "good" in machine.good("verify", "qwen3:4b")
    (path,) = machine.installed()
    content = bytearray(path.read_bytes())
    content[-5] ^= 8
    path.resolve().write_bytes(content)
    message, hint = machine.fails("verify", "qwen3:4b")
    assert Q4 in message
    assert hint == "localqwen pull qwen3:4b"
    machine.good("pull", "qwen3:4b")
    assert machine.read(Q4) == data(machine.hub)
    assert json.loads(machine.good("verify", "qwen3:4b", "--json"))["ok"] is True


def test_rm_frees_the_space_and_leaves_what_another_name_needs(machine: Machine) -> None:
    machine.good("pull", "qwen3:4b", "qwen3:4b-q8_0")
    out = json.loads(machine.good("rm", "qwen3:4b", "--json"))
    assert out["freed_bytes"] == len(data(machine.hub))
    assert [path.name for path in machine.installed()] == [Q8]
    assert machine.read(Q8) == data(machine.hub, Q8)
    assert "3.5 MB are free" in machine.good("rm", "qwen3:4b-Q8_0")
    assert list(machine.cache.glob("models--*")) == []
    assert machine.fails("rm", "qwen3:4b")[1] == "localqwen pull qwen3:4b"


@pytest.mark.parametrize("command", ["pull", "verify", "rm"])
def test_the_built_in_model_has_no_files_to_work_on(machine: Machine, command: str) -> None:
    code, _, aside = machine.run(command, "demo")
    assert (code, aside.splitlines()[0]) == (2, f"Error: demo is built in, there is nothing to {word(command)}")


def word(command: str) -> str:
    return "remove" if command == "rm" else command


def test_what_is_no_model_is_neither_verified_nor_removed(machine: Machine) -> None:
    folder = str(machine.folder)
    assert f"there is no model file {folder}" in machine.fails("verify", folder)[0]
    foreign = machine.folder / "mine.gguf"
    foreign.write_bytes(b"GGUF")
    assert "not a whole GGUF file" in machine.fails("verify", str(foreign))[0]
    assert machine.run("rm", str(foreign))[0] == 2
    assert foreign.exists()


def test_a_new_commit_with_the_same_file_shares_its_bytes_and_rm_frees_them_once(machine: Machine) -> None:
    machine.good("pull", "qwen3:4b")
    files = machine.hub.repositories[GGUF]
    with changed(files, "README.md", b"a newer page"):
        machine.hub.reset()
        machine.good("pull", "qwen3:4b")
    assert machine.hub.seen.sent == 0
    assert len(machine.installed()) == 2
    assert len(json.loads(machine.good("list", "--json"))) == 1
    assert json.loads(machine.good("rm", "qwen3:4b", "--json"))["freed_bytes"] == len(data(machine.hub))


@contextlib.contextmanager
def changed(files: dict[str, bytes], name: str, content: bytes) -> Iterator[None]:
    before = files[name]
    files[name] = content
    try:
        yield
    finally:
        files[name] = before


def test_where_no_official_file_exists_the_weights_are_loaded_and_converted(machine: Machine) -> None:
    code, out, aside = machine.run("pull", "qwen3:0.6b-q4_k_m", "--json")
    assert code == 0, aside
    assert "there is no official Q4_K_M file" in aside
    (result,) = json.loads(out)
    assert result["converted"] is True
    assert Path(result["path"]).read_bytes()[:4] == b"GGUF"
    (entry,) = json.loads(machine.good("list", "--json"))
    assert entry["name"] == "qwen3:0.6b-q4_k_m"
    assert "no digest" in machine.good("verify", "qwen3:0.6b-q4_k_m")
    machine.hub.reset()
    machine.good("pull", "qwen3:0.6b-q8_0", "qwen3:0.6b-q6_k")  # an official file; the weights are here already
    assert machine.hub.seen.sent == len(data(machine.hub, "Qwen3-0.6B-Q8_0.gguf", "Qwen/Qwen3-0.6B-GGUF"))
    kept = json.loads(machine.good("rm", "qwen3:0.6b-q4_k_m", "--json"))
    assert kept["kept"]
    weights = sum(path.stat().st_size for path in machine.installed("Qwen/Qwen3-0.6B"))
    assert json.loads(machine.good("rm", "qwen3:0.6b-q6_k", "--json"))["freed_bytes"] > weights > 6_000_000
    assert machine.installed("Qwen/Qwen3-0.6B") == []


def test_the_parts_of_a_split_model_are_one_model(machine: Machine) -> None:
    machine.good("pull", "qwen3:235b")
    parts = machine.hub.repositories["Qwen/Qwen3-235B-A22B-GGUF"]
    assert len(machine.installed("Qwen/Qwen3-235B-A22B-GGUF")) == 3
    (entry,) = json.loads(machine.good("list", "--json"))
    assert (entry["name"], entry["bytes"]) == ("qwen3:235b-a22b", sum(map(len, parts.values())))
    machine.installed("Qwen/Qwen3-235B-A22B-GGUF")[1].unlink()
    assert json.loads(machine.good("list", "--json")) == []


def test_files_for_mlx_are_a_folder(machine: Machine) -> None:
    (result,) = json.loads(machine.good("pull", "qwen3:4b", "--engine", "mlx", "--json"))
    assert {path.name for path in Path(result["path"]).iterdir()} >= {"config.json", "model.safetensors"}
    (entry,) = json.loads(machine.good("list", "--json"))
    assert (entry["name"], entry["engine"], entry["quant"]) == ("qwen3:4b-4bit", "mlx", "4bit")


def test_a_repository_for_mlx_is_taken_as_it_is(machine: Machine) -> None:
    """Its weights are quantized already: nothing is converted, and the folder is what MLX opens."""
    (result,) = json.loads(machine.good("pull", "hf:Qwen/Qwen3-4B-MLX-4bit", "--engine", "mlx", "--json"))
    assert (result["converted"], result["quant"]) == (False, "")
    assert {path.name for path in Path(result["path"]).iterdir()} >= {"config.json", "model.safetensors"}
    assert "--engine mlx" in machine.fails("run", "hf:somebody/Else", "hi", "--engine", "mlx")[1]


def test_a_model_without_files_for_mlx_says_so(machine: Machine) -> None:
    message, hint = machine.fails("pull", "qwen3:4b-base", "--engine", "mlx")
    assert "no official files for MLX" in message
    assert "--engine gguf" in hint


def test_any_repository_can_be_named(machine: Machine) -> None:
    machine.good("pull", "hf:somebody/Tiny:q8_0")
    (entry,) = json.loads(machine.good("list", "--json"))
    assert (entry["name"], entry["quant"]) == ("hf:somebody/Tiny:q8_0", "Q8_0")
    assert "it has q4_k_m, q8_0" in machine.fails("pull", "hf:somebody/Tiny:q5_0")[1]
    assert "neither GGUF files nor safetensors" in machine.fails("pull", "hf:somebody/Pictures")[0]
    assert "gated" in machine.fails("pull", "hf:somebody/Gated", HF_TOKEN="hf_wrong")[0]
    machine.good("pull", "hf:somebody/Gated", HF_TOKEN="hf_right")
    machine.good("rm", "hf:somebody/Tiny:q8_0")
    assert machine.installed("somebody/Tiny") == []


def test_a_mixture_of_experts_is_converted_and_runs(machine: Machine) -> None:
    assert "converted on this machine" in machine.run("pull", "hf:somebody/Mixture:q4_k_m")[2]
    shown = json.loads(machine.good("show", "hf:somebody/Mixture:q4_k_m", "--json"))
    assert shown["architecture"] == "qwen3moe"
    answer = json.loads(machine.good("run", "hf:somebody/Mixture:q4_k_m", "hi", "--max-tokens", "3", "--json"))
    assert answer["usage"]["completion_tokens"] in (1, 2, 3)


@pytest.mark.skipif(importlib.util.find_spec("modelscope_hub") is None, reason="ModelScope's client is not installed")
def test_modelscope_serves_the_same_names_into_the_same_layout(machine: Machine) -> None:
    machine.environment |= {"MODELSCOPE_ENDPOINT": machine.hub.endpoint, "MODELSCOPE_HOME": str(machine.folder / "ms")}
    code, out, aside = machine.run("pull", "qwen3:4b", "--source", "modelscope", "--json")
    assert code == 0, aside
    (result,) = json.loads(out)
    path = Path(result["path"])
    assert path.read_bytes() == data(machine.hub)
    assert path.resolve().name == hashlib.sha256(data(machine.hub)).hexdigest()
    assert "B/s" not in aside  # no bar of the client
    machine.hub.reset()
    machine.good("pull", "ms:Qwen/Qwen3-4B-GGUF")
    assert machine.hub.seen.ranges == []
    assert json.loads(machine.good("list", "--json"))[0]["name"] == "qwen3:4b"
    assert "good" in machine.good("verify", "qwen3:4b")
    assert json.loads(machine.good("rm", "qwen3:4b", "--json"))["freed_bytes"] == len(data(machine.hub))
    message, _ = machine.fails("pull", "ms:nobody/nothing")
    assert "nobody/nothing is not on" in message


@pytest.mark.skipif(importlib.util.find_spec("modelscope_hub") is None, reason="ModelScope's client is not installed")
def test_a_pull_from_modelscope_that_is_killed_goes_on_where_it_was(machine: Machine) -> None:
    machine.environment |= {"MODELSCOPE_ENDPOINT": machine.hub.endpoint, "MODELSCOPE_HOME": str(machine.folder / "ms")}
    machine.hub.faults.bytes_per_second = 2e5
    process = machine.start("pull", "ms:Qwen/Qwen3-4B-GGUF")
    begun = machine.folder / "localqwen" / "modelscope"
    wait_until(lambda: sum(path.stat().st_size for path in begun.rglob("*") if path.is_file()) > 100_000, process)
    process.kill()
    process.communicate()
    machine.hub.reset()
    (result,) = json.loads(machine.good("pull", "ms:Qwen/Qwen3-4B-GGUF", "--json"))
    assert Path(result["path"]).read_bytes() == data(machine.hub)
    assert machine.hub.seen.sent < len(data(machine.hub))


def test_without_modelscopes_client_the_hint_says_how_to_get_it(machine: Machine) -> None:
    stub = machine.folder / "modelscope_hub.py"
    stub.write_text("raise ImportError('not installed')")
    path = f"{machine.folder}{os.pathsep}{ROOT}"
    message, hint = machine.fails("pull", "ms:Qwen/Qwen3-4B-GGUF", PYTHONPATH=path)
    assert "not installed" in message
    assert "localqwen[modelscope]" in hint


def test_convert_pulls_the_official_weights_first(machine: Machine, tmp_path: Path) -> None:
    """By name or repository, after a yes; of a repository with GGUF files the chosen one is requantized."""
    out = tmp_path / "a.gguf"
    message, hint = machine.fails("convert", "qwen3:0.6b", "--quant", "q5_k_m", "--out", str(out))
    assert "Qwen/Qwen3-0.6B are not on this machine" in message
    assert hint == "localqwen convert qwen3:0.6b --yes"
    machine.good("convert", "qwen3:0.6b", "--quant", "q5_k_m", "--yes", "--out", str(out))
    manifest = json.loads((tmp_path / "a.gguf.json").read_text())
    assert manifest["source"].startswith("Qwen/Qwen3-0.6B@")
    assert manifest["recipe"]["quant"] == "q5_k_m"
    assert b"Qwen3 0.6B" in out.read_bytes()[:1000]

    arguments = ("--quant", "q4_0", "--yes", "--out", str(tmp_path / "b.gguf"), "--json")
    notes = json.loads(machine.good("convert", "hf:somebody/Tiny:q8_0", *arguments))["notes"]
    assert "quantized already" in notes[0]
