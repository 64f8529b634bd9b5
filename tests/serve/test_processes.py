"""Real processes of real models: what ends them ends nothing else."""

import http.client
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from local_server import Running, eventually, listening
from resolved import file_of

from localqwen.chat.load_options import LoadOptions
from localqwen.engines import selection
from localqwen.formats.gguf_reader import HeaderReader
from localqwen.models import set_aside
from localqwen.serve.http.app import Service, Settings
from localqwen.serve.model_names import Catalogue
from localqwen.serve.served_model import Limits

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
LONG = {"max_tokens": 1500, "ignore_eos": True}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a model called `victim`, beside the built-in one."""
    demo = file_of("demo")
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    models = tmp_path / "models"
    models.mkdir()
    (models / "victim.gguf").write_bytes(demo.read_bytes())
    return models


@pytest.fixture
def server(home: Path) -> Iterator[Running]:
    options = LoadOptions(context_length=2048, threads=1, parallel=2)
    settings = Settings(Limits(stage=2.0, load=20.0))
    with listening(Service(Catalogue([selection.resolve("demo")], options), settings)) as running:
        yield running


def ask(server: Running, model: str, text: str = "What is 2 + 3?", **fields: Any) -> tuple[int, dict[str, Any]]:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 30, **fields}
    client.request("POST", "/v1/chat/completions", json.dumps(body))
    response = client.getresponse()
    return response.status, json.loads(response.read())


def process_of(server: Running, model: str) -> psutil.Process:
    [status] = [status for status in server.service.models.loaded() if status.name == model]
    return psutil.Process(status.pid)


def stream(server: Running, model: str, number: int = 0) -> Iterator[str]:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    question = f"Write about {number}, at length. /no_think"
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 1000, "stream": True}
    client.request("POST", "/v1/chat/completions", json.dumps({**body, "temperature": 2, "top_k": 0, "top_p": 1}))
    for line in client.getresponse():
        if line.strip():
            yield line.decode()


def test_the_process_has_the_models_name_and_nothing_of_the_servers_sockets(server: Running) -> None:
    process = process_of(server, "demo")
    assert process.cmdline()[-2:] == ["localqwen.model_process", "demo"]
    if sys.platform == "linux":
        files = [os.readlink(f"/proc/{process.pid}/fd/{number}") for number in os.listdir(f"/proc/{process.pid}/fd")]
        assert [file for file in files if file.startswith("socket:")] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGSEGV])
def test_a_process_that_dies_ends_its_own_answers_and_no_others(server: Running, number: signal.Signals) -> None:
    ask(server, "victim")
    beside = stream(server, "demo")
    next(beside)
    running = stream(server, "victim", number)
    assert "chunk" in next(running)
    process_of(server, "victim").send_signal(number)
    told = "".join(running)
    assert "victim" in told
    assert number.name in told
    assert "while it wrote an answer" in told
    assert list(beside)[-1].startswith("data: [DONE]")
    assert ask(server, "victim")[0] == 200


def test_a_process_that_is_stopped_is_replaced(server: Running) -> None:
    ask(server, "victim")
    first = process_of(server, "victim")
    first.suspend()
    status, body = ask(server, "victim")
    assert (status, process_of(server, "victim").pid != first.pid) == (200, True), body
    assert not first.is_running()


def test_unloading_frees_all_memory(server: Running) -> None:
    ask(server, "victim")
    process = process_of(server, "victim")
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    client.request("POST", "/api/generate", json.dumps({"model": "victim", "keep_alive": 0}))
    assert client.getresponse().status == 200
    assert eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)


def with_value(file: Path, key: str, value: bytes) -> bytes:
    """A GGUF file with other bytes as the value of a key, of the same length."""
    with file.open("rb") as opened:
        entry = next(entry for entry in HeaderReader(opened).entries() if entry.key == key)
    data = file.read_bytes()
    return data[: entry.end - len(value)] + value + data[entry.end :]


def test_a_model_on_which_llama_cpp_aborts_is_an_error_and_is_set_aside(server: Running, home: Path) -> None:
    data = (home / "victim.gguf").read_bytes()
    negative = struct.pack("<f", -1.0)  # llama.cpp asserts that it is not
    (home / "victim.gguf").write_bytes(
        with_value(home / "victim.gguf", "qwen3.attention.layer_norm_rms_epsilon", negative)
    )
    for number in range(3):
        status, body = ask(server, "victim", f"What is 2 + {number}?")
        assert (status, "SIGABRT" in body["error"]["message"]) == (503, True), body
    status, body = ask(server, "victim", "And now?")
    assert (status, "set aside" in body["error"]["message"]) == (503, True), body
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    client.request("GET", "/v1/models/victim")
    assert "died 3 times" in json.loads(client.getresponse().read())["set_aside"]
    assert "died 3 times" in set_aside.reasons()["victim"]
    assert ask(server, "demo")[0] == 200
    (home / "other").write_bytes(data)
    (home / "other").replace(home / "victim.gguf")
    assert ask(server, "victim")[0] == 200
    assert set_aside.reasons() == {}


def test_a_file_truncated_while_it_is_served_ends_its_own_model(server: Running, home: Path) -> None:
    ask(server, "victim")
    with (home / "victim.gguf").open("r+b") as file:
        file.truncate(5000)
    status, _ = ask(server, "victim", "Another question?")
    assert status in (400, 500, 503)
    assert ask(server, "demo")[0] == 200


@pytest.fixture
def program(home: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "localqwen", "serve", "demo", "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def first_line(program: subprocess.Popen[str]) -> str:
    assert program.stderr is not None
    for line in program.stderr:
        if "/v1" in line:
            return line
    raise AssertionError("the server did not start")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_no_process_outlives_a_server_that_is_killed(program: subprocess.Popen[str]) -> None:
    first_line(program)
    [child] = psutil.Process(program.pid).children()
    child.suspend()  # it cannot even notice that its pipe is closed
    program.kill()
    assert eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10)


def test_sigterm_ends_a_server_whose_model_does_not_answer(program: subprocess.Popen[str]) -> None:
    first_line(program)
    [child] = psutil.Process(program.pid).children()
    child.suspend()
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == 0
    assert not child.is_running()


def test_the_first_ctrl_c_ends_loading(home: Path) -> None:
    """The file of the model is a pipe that nobody writes: its header is never read."""
    command = [sys.executable, "-m", "localqwen", "serve", "demo", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    parent = psutil.Process(process.pid)
    assert eventually(lambda: bool(parent.children()), 60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 130), said
    assert "Traceback" not in said


def test_two_models_answer_at_the_same_time(server: Running) -> None:
    """While one answers again and again, events of the other come between its events."""
    ask(server, "victim")
    came: dict[str, list[float]] = {"demo": [], "victim": []}

    def read(model: str) -> None:
        for number in range(5):
            came[model] += [time.monotonic() for _ in stream(server, model, number)]

    threads = [threading.Thread(target=read, args=(model,)) for model in came]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moments = sorted((moment, model) for model in came for moment in came[model])
    turns = sum(before[1] != after[1] for before, after in itertools.pairwise(moments))
    assert turns > 10
