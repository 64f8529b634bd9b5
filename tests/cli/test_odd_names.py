"""Names that no file and no model can have: every command that takes a name says so, and none ends in a bug."""

import io
import sys

import pytest

from localqwen.cli import main

NAMES = [
    "😀" * 80, "a" * 300, "a\nb", "\x1b[31mx", "~nosuchuser", "~/" + "y" * 300, "./" + "a" * 300, "a" * 300 + ".gguf",
    "./" + "😀" * 100, "x/" * 3000, "/" * 5000 + "x", "hf:a/b" + "b" * 300, "hf:a/b" + "b" * 190, "ms:a/b" + "b" * 190,
    "hf:" + "a" * 200 + "/b", "hf:a/b:" + "q" * 300, "hf:../..", "hf:😀/b", "\udcff.gguf", "/proc/1/root/x.gguf", "[",
    "*",
]  # fmt: skip
COMMANDS = {"run": ["NAME", "hi"], "bench": ["NAME"], "convert": ["NAME", "--out", "out"]}
COMMANDS |= {each: ["NAME"] for each in ("chat", "show", "rm", "verify", "pull", "tune", "serve", "imatrix")}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_that_nothing_can_have_is_an_error_in_words(
    command: str, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    code = main([command, *(name if each == "NAME" else each for each in COMMANDS[command])])
    assert code in (1, 2)
    assert capsys.readouterr().err.startswith("Error: ")
