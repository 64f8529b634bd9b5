"""One damaged file never spoils a list: the others are listed, on the command line and by the server."""

import http.client
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf_bytes
import pytest
from local_server import Running, serving

from localqwen.cli import main
from localqwen.engines.scripted import ScriptedEngine
from localqwen.models import converted, inventory


def odd_headers() -> dict[str, bytes]:
    """What was seen to break lists: lengths and numbers that cannot be."""
    nan = gguf_bytes.text("qwen3.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, float("nan"))
    many = gguf_bytes.text("x") + struct.pack("<I60000QIQ", 60_000, *[1] * 60_000, 0, 0)
    huge = gguf_bytes.info("x", [2**62] * 20, 0, 0)
    return {
        "nothing": b"",
        "text": b"no model",
        "cut": gguf_bytes.head(gguf_bytes.SHAPE)[:-5],
        "nan": gguf_bytes.head([*gguf_bytes.SHAPE, nan]),
        "dimensions": gguf_bytes.head(gguf_bytes.SHAPE, [huge]),
        "more-dimensions": gguf_bytes.head(gguf_bytes.SHAPE, [many]),
        "utf8": gguf_bytes.head(gguf_bytes.SHAPE).replace(b"Tiny", b"\xff\xfe\xfd\xfc"),
        "control": gguf_bytes.head(gguf_bytes.SHAPE).replace(b"Tiny", b"\x1b[2J"),
    }


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models with a good one among all that can be wrong."""
    good = converted.demo_conversion().file().read_bytes()
    folder = tmp_path / "home" / "models"
    folder.mkdir(parents=True)
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path / "home"))
    (folder / "good-Q8_0.gguf").write_bytes(good)
    for name, content in odd_headers().items():
        (folder / f"{name}.gguf").write_bytes(content)
    (folder / "folder.gguf").mkdir()
    (folder / "dangling.gguf").symlink_to("nowhere")
    (folder / "loop.gguf").symlink_to("loop.gguf")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.gguf")).write_bytes(good)
    os.utime(folder / "text.gguf", (2**40, 2**40))
    os.mkfifo(folder / "pipe.gguf")
    return folder


@pytest.fixture
def server(models: Path) -> Iterator[Running]:
    with serving(ScriptedEngine([])) as started:
        yield started


def get(server: Running, path: str, body: bytes | None = None) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET" if body is None else "POST", path, body)
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    return answer.status, told


def test_the_command_line_lists_the_good_one(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    listed = [entry["name"] for entry in json.loads(capsys.readouterr().out)]
    assert listed[0] in ("good", "\udcff")
    assert {"good", *odd_headers()} <= set(listed)
    assert main(["list"]) == 0


@pytest.mark.parametrize("path", ["/api/tags", "/v1/models"])
def test_the_server_lists_the_good_one(server: Running, path: str) -> None:
    status, told = get(server, path)
    assert status == 200
    assert '"good"' in json.dumps(told) or '"good:latest"' in json.dumps(told)


@pytest.mark.parametrize("name", [*odd_headers(), "good", "folder", "dangling", "loop", "pipe"])
def test_each_is_shown_or_refused_with_a_reason(server: Running, name: str) -> None:
    status, told = get(server, "/api/show", json.dumps({"model": name}).encode())
    assert status == (200 if name in ("good", "control") else 400 if name in odd_headers() else 404)
    assert (status == 200) != ("error" in told)


def test_a_file_that_is_gone_when_it_is_described_is_left_out(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.isfile", lambda path: True)
    names = [file.name for file in inventory.on_disk()]
    assert "good" in names
    assert "dangling" not in names
