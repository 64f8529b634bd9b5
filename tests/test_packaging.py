"""The wheel and the sdist hold what they must, and the installed wheel works away from the checkout."""

import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the hatchling of the test environment: nothing is fetched."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    return folder


def test_the_wheel_holds_both_packages_the_models_and_the_demo(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    demo = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    wanted = {"localqwen/models.toml", "localqwen/py.typed", "convert/__init__.py"} | {
        f"localqwen/demo/{n}" for n in demo
    }
    assert wanted <= names
    assert not [name for name in names if name.startswith(("tests/", "tools/", "benchmarks/"))]
    assert wheel.stat().st_size < 9_000_000


def test_the_sdist_can_be_built_and_tested_from(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "Makefile",
        "constraints.txt",
        "models.toml",
        "LICENSE",
        "tests/test_packaging.py",
        "tools/train_demo.py",
        ".github/workflows/ci.yml",
    } <= names


def test_ci_runs_the_pythons_that_the_package_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        name.rpartition(" ")[2]
        for name in project["classifiers"]
        if name.startswith("Programming Language :: Python :: 3.")
    }
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert set(workflow["jobs"]["check"]["strategy"]["matrix"]["python"]) == named
    assert project["requires-python"] == f">={min(named)}"


def test_the_installed_wheel_answers_away_from_the_checkout(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)  # what an installer does with a pure wheel
    environment = os.environ | {"PYTHONPATH": str(site), "LOCALQWEN_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "localqwen", "run", "demo", "--json", "--threads", "1", "What is 2 + 3?"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert "5" in json.loads(done.stdout)["content"]
    where = "import localqwen, convert; print(localqwen.__file__, convert.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    assert all(Path(path).is_relative_to(site) for path in found.stdout.split())


def test_a_foreign_package_named_convert_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "convert").mkdir()
    (tmp_path / "convert" / "__init__.py").write_text("")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "LOCALQWEN_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "localqwen", "run", "demo", "hi"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert "another package named 'convert'" in done.stderr
    assert "hint:" in done.stderr
