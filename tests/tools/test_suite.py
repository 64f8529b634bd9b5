"""What the suite's own plugin decides: the quick part, and which skips fail a run."""

import os
import subprocess
import sys
from pathlib import Path

import programs
import pytest
import suite

SKIPPING = """
import pytest, programs

def test_passes(): pass

@pytest.mark.slow
def test_slow(): pass

def test_skips(): pytest.skip("needs the moon: there is none")

def test_needs(): programs.needed("a browser")
"""


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """pytest on one file of tests, on a machine without programs."""
    (folder / "conftest.py").write_text('pytest_plugins = ["suite"]\n')
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    (folder / "test_it.py").write_text(SKIPPING)
    environment = os.environ | {"PATH": str(folder), "PYTHONPATH": os.path.dirname(suite.__file__)}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # as quick as can be
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize("workers", [(), ("-n", "2", "--dist", "loadgroup")], ids=["alone", "workers"])
def test_a_skip_that_is_not_on_the_list_fails_the_run(tmp_path: Path, workers: tuple[str, ...]) -> None:
    (tmp_path / "list").write_text("# comment\n\nneeds the moon :: it is far\n")
    code, out = run(tmp_path, "--allowed-skips", "list", *workers)
    assert code == 1
    assert "skipped, which list does not allow: " in out
    assert "test_needs" in out
    assert "needs a browser: chromium or chromium-browser or google-chrome" in out
    assert "test_skips" not in out


def test_a_run_whose_skips_are_all_on_the_list_passes(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("needs the moon :: it is far\nneeds a browser :: too large\n")
    assert run(tmp_path, "--allowed-skips", "list")[0] == 0
    (tmp_path / "list").write_text("needs the moon :: it is far\n")
    assert run(tmp_path, "--allowed-skips", "list", "--programs-may-be-missing")[0] == 0
    assert run(tmp_path)[0] == 0


@pytest.mark.parametrize("line", ["needs the moon", "needs the moon :: ", " :: it is far"])
def test_a_line_without_its_reason_is_an_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "list").write_text(line)
    with pytest.raises(pytest.UsageError, match="needs `BEGINNING OF A REASON :: why`"):
        suite.allowed(tmp_path / "list")


def test_the_list_of_this_suite_can_be_read() -> None:
    assert suite.allowed(suite.TESTS / "allowed_skips.txt")


def test_the_quick_part_leaves_out_what_is_slow(tmp_path: Path) -> None:
    code, out = run(tmp_path, "--quick", "--collect-only", "-q")
    assert code == 0
    assert "test_it.py::test_passes" in out
    assert "test_slow" not in out


def test_the_files_that_the_quick_part_leaves_out_are_there() -> None:
    assert [name for name in suite.LONG if not (suite.TESTS / name).is_file()] == []


def test_a_program_is_found_in_its_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "google-chrome").write_text("")
    (tmp_path / "google-chrome").chmod(0o755)
    assert programs.needed("a browser") == str(tmp_path / "google-chrome")
