"""The program that damages headers: a few hundred rounds break no reader, and it keeps what is accepted."""

from pathlib import Path
from types import ModuleType

import pytest
import scripts

from localqwen.errors import LocalqwenError
from localqwen.formats import gguf, model_header


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return scripts.load("tools/fuzz_headers.py")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_no_damage_breaks_a_reader_and_what_is_accepted_is_kept(
    program: ModuleType, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    report = program.fuzz(400, 1, home, tmp_path / "kept", most=20)
    assert report.crashes == []
    assert sum(report.counts.values()) == 400
    assert min(report.counts["gguf accepted"], report.counts["gguf refused"], report.counts["json refused"]) > 10
    kept = list((tmp_path / "kept").glob("*.gguf"))
    assert len(kept) == 20
    for path in kept:
        gguf.GgufFile(path).close()
        assert model_header.read(path).architecture


def test_another_exception_than_ours_is_reported_and_its_file_kept(
    program: ModuleType, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> bool:
        raise ZeroDivisionError("as a reader must not")

    monkeypatch.setattr(program, "read_gguf", broken)
    report = program.fuzz(8, 1, home)
    assert len(report.crashes) == len(list(tmp_path.glob("crash-*.gguf"))) == report.counts["gguf refused"] > 0
    assert "ZeroDivisionError: as a reader must not" in report.crashes[0]
    assert not issubclass(ZeroDivisionError, LocalqwenError)
