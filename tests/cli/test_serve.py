"""`localqwen serve` from its flags to what the server is told; what stands against starting it."""

import http.client
import importlib.util
import json
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from localqwen.cli import chat, main
from localqwen.cli.serve import Duration
from localqwen.serve.http import server as http_server
from localqwen.serve.http.app import Service


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Service]:
    """The services that would have been run; nothing is loaded and nothing listens for long."""
    services: list[Service] = []
    for name in ("localqwen.serve", "uvicorn.error"):  # the command sets them up, and other tests read them
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "propagate", True)
        monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    monkeypatch.setattr(http_server, "run", lambda server, listener: services.append(server._service))
    return services


def run(*arguments: str) -> int:
    return main(["serve", "demo", "--port", "0", *arguments])


def test_the_flags_reach_the_server(started: list[Service]) -> None:
    flags = ["--parallel", "2", "--ctx", "999", "--threads", "1", "--keep-alive", "1h", "--max-queue", "3"]
    more = ["--api-key", "k", "--cors", "https://a.example", "--allow-host", "MyBox", "--reasoning-field", "reasoning"]
    more += ["--load-timeout", "1m", "--prompt-timeout", "7s"]
    assert run(*flags, *more, "--no-prepare", "--max-body", "16MiB") == 0
    settings = started[0].settings
    assert (settings.limits.queue, settings.limits.keep_alive, settings.limits.prefill_ahead) == (3, 3600, False)
    assert (settings.limits.load, settings.limits.stage) == (60, 7)
    assert (settings.access.key, settings.access.origins) == ("k", ("https://a.example",))
    assert settings.access.largest_body == 16 << 20
    assert {"mybox", "127.0.0.1"} <= set(settings.access.hosts)
    assert settings.reasoning_fields == ("reasoning",)
    options = started[0].catalogue._options
    assert (options.parallel, options.context_length, options.threads) == (2, 999, 1)


@pytest.mark.parametrize("size", ["0", "8", "-1MiB", "8 MiBs", "lots", "nan"])
def test_a_body_has_a_size_with_its_unit(started: list[Service], capsys: pytest.CaptureFixture[str], size: str) -> None:
    assert run("--max-body", size) == 2
    assert "8MiB" in capsys.readouterr().err


def test_configuration_and_environment_hold_here_too(
    started: list[Service], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text('[serve]\nkeep-alive = "90s"\ncors = ["https://b.example"]\n')
    monkeypatch.setenv("LOCALQWEN_API_KEY", "from the environment")
    assert run() == 0
    settings = started[0].settings
    assert (settings.limits.keep_alive, settings.access.key) == (90, "from the environment")
    assert settings.access.origins == ("https://b.example",)
    assert settings.limits.prefill_ahead


def test_without_a_model_it_says_which_one_it_takes(
    started: list[Service], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "largest", lambda: None)
    assert main(["serve", "--port", "0"]) == 0
    assert capsys.readouterr().err.startswith("using demo: no other model is on disk")
    assert started[0].catalogue.served == ("demo",)


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        ([], ""),
        (["--host", "0.0.0.0"], "anyone who can reach 0.0.0.0 may use this server"),
        (["--host", "0.0.0.0", "--api-key", "k"], ""),
        (["--cors", "*"], "lets every page in your browser"),
    ],
)
def test_a_server_that_strangers_can_use_warns(
    started: list[Service], capsys: pytest.CaptureFixture[str], flags: list[str], warning: str
) -> None:
    assert run(*flags) == 0
    err = capsys.readouterr().err
    assert warning in err
    assert ("warning" in err) is bool(warning)


def test_a_port_in_use(started: list[Service], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "demo", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"Error: port {port} of 127.0.0.1 is in use\n\nhint: use another one: --port {port + 1}\n"
    )
    assert not started


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    assert run() == 1
    assert "needs uvicorn" in (err := capsys.readouterr().err)
    assert "localqwen[serve]" in err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h", 3600), ("12", 12), ("0.5m", 30), ("0", 0), ("-1", float("inf"))],
)
def test_durations(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "m", "nan s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a duration"):
        Duration().convert(text, None, None)


def test_the_key_guards_the_whole_server_and_no_secret_is_logged() -> None:
    arguments = [sys.executable, "-m", "localqwen", "serve", "demo", "--port", "0", "--threads", "1", "--ctx", "512"]
    server = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, env=os.environ | {"LOCALQWEN_API_KEY": "sesame"}
    )
    assert server.stderr is not None
    try:
        found = re.match(r"http://127\.0\.0\.1:(\d+)/v1 ", server.stderr.readline())
        assert found is not None
        answers = [_get(int(found[1]), headers) for headers in ({}, {"Authorization": "Bearer sesame"})]
    finally:
        server.terminate()
        log = server.stderr.read()
        server.wait(10)
    assert [status for status, _ in answers] == [401, 200]
    assert answers[1][1]["data"][0]["id"] == "demo"
    assert "GET /v1/models 401" in log
    assert "sesame" not in log


def _get(port: int, headers: dict[str, str]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/v1/models", headers=headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())
