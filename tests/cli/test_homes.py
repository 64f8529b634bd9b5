"""A home that cannot be made, or not be written: each command says so, and what needs no home goes on without."""

import ctypes
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from localqwen.cli import main
from localqwen.models import converted

#: Commands that write into the home, and those that only read what is there.
WRITES = [
    ["run", "demo", "hi"], ["chat", "demo"], ["serve", "demo", "--port", "0"], ["show", "demo"], ["tune", "demo"],
    ["quality", "demo", "demo"], ["bench", "demo", "--repeats", "1", "--prompt", "8", "--generate", "2"],
]  # fmt: skip
READS = [
    ["list"], ["list", "--all"], ["recommend"], ["show", "qwen3:4b"], ["bench", "list"], ["doctor"],
    ["doctor", "--json"],
]  # fmt: skip
HOMES = {
    "below a file": "{}/file/home", "a file": "{}/file", "a link to itself": "{}/loop/home",
    "of nobody": "~nobody-here/x",
    "too long": "{}/" + "x" * 300, "in a folder that takes none": "/proc/none/home",
}  # fmt: skip
#: Those of which even the name is refused.
NAMELESS = ("a link to itself", "of nobody", "too long")


@pytest.fixture(params=HOMES)
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("LOCALQWEN_HOME", HOMES[request.param].format(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    return str(request.param)


@pytest.mark.parametrize("command", WRITES, ids=lambda command: command[0])
def test_a_home_that_cannot_be_made_is_one_sentence(
    home: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 1
    message, _, hint = capsys.readouterr().err.partition("\n\nhint: ")
    assert message.startswith(("Error: cannot make the folder", "Error: the folder LOCALQWEN_HOME="))
    assert "LOCALQWEN_HOME" in hint


@pytest.mark.parametrize("command", READS, ids=" ".join)
def test_what_only_reads_goes_on_without_it(home: str, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, said = main(command), capsys.readouterr().err
    assert (code, "Error: " in said) == ((1, True) if home in NAMELESS else (0, False))
    assert "unexpected" not in said


def test_an_empty_text_and_a_dangling_link_are_homes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first means the usual place; what the link points to is made."""
    monkeypatch.setenv("LOCALQWEN_HOME", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folders"]["home"]["path"] != ""
    (tmp_path / "link").symlink_to(tmp_path / "target")
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path / "link"))
    assert main(["show", "demo", "--json"]) == 0
    assert list((tmp_path / "target" / "cache" / "converted").glob("demo-*.gguf"))


def obey_file_modes() -> None:
    """In the child: even root may write only where the modes allow it (without CAP_DAC_OVERRIDE, number 1)."""
    if os.getuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.skipif(os.getuid() == 0 and sys.platform != "linux", reason="root writes everywhere")
@pytest.mark.parametrize("made", [False, True], ids=["an empty home", "a home with folders"])
def test_a_model_file_is_run_although_nothing_can_be_kept(tmp_path: Path, made: bool) -> None:
    model, home = converted.demo_conversion().file(), tmp_path / "home"
    (home / "cache" / "converted" if made else home).mkdir(parents=True)
    folders = [home, *home.rglob("*")]
    for folder in folders:
        folder.chmod(0o555)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "localqwen", *arguments],
            env={**os.environ, "LOCALQWEN_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            preexec_fn=obey_file_modes,
            check=False,
        )

    try:
        answered = run("run", str(model), "hi", "--threads", "1", "--max-tokens", "2", "--no-think")
        assert (answered.returncode, bool(answered.stdout.strip())) == (0, True), answered.stderr
        told = run("doctor", "--json")
        assert (told.returncode, json.loads(told.stdout)["folders"]["home"]["writable"]) == (0, False)
        failed = run("run", "demo", "hi")
        assert failed.returncode == 1
        assert failed.stderr.startswith(("Error: cannot make the folder", f"Error: {home}"))
    finally:
        for folder in folders:
            folder.chmod(0o755)
