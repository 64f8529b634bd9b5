"""What a server has set aside is known to other programs while it runs, and no longer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from localqwen.cli import main
from localqwen.models import set_aside, store


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    return tmp_path


def test_it_is_known_until_the_last_one_is_revived() -> None:
    set_aside.keep({"a": "it died", "b": "too"})
    assert set_aside.reasons() == {"a": "it died", "b": "too"}
    set_aside.keep({})
    assert set_aside.reasons() == {}


def test_what_a_server_left_that_has_ended_is_removed() -> None:
    set_aside.keep({"a": "it died"})
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder = store.cache_dir() / "set-aside"
    (folder / f"{os.getpid()}.json").rename(folder / f"{ended.pid}.json")
    (folder / "odd.json").write_text("[]")
    assert set_aside.reasons() == {}
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', "\0"])
def test_a_damaged_file_says_nothing(text: str) -> None:
    set_aside.keep({"a": "it died"})
    (store.cache_dir() / "set-aside" / f"{os.getpid()}.json").write_text(text)
    assert set_aside.reasons() == {}


def test_a_cache_that_cannot_be_written_costs_the_note_alone(home: Path) -> None:
    (home / "cache").write_text("a file")
    set_aside.keep({"a": "it died"})
    assert set_aside.reasons() == {}


def test_list_shows_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "models").mkdir()
    (home / "models" / "victim.gguf").write_bytes(b"GGUF")
    set_aside.keep({"victim": "it died"})
    assert main(["list"]) == 0
    assert "victim is set aside by a running server: it died" in capsys.readouterr().err
    assert main(["list", "--json"]) == 0
    [entry] = json.loads(capsys.readouterr().out)
    assert entry["set_aside"] == "it died"
