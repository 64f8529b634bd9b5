"""Imports run one way, and heavy packages stay where they belong (the design's section 2)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "localqwen").rglob("*.py"), *(ROOT / "convert").rglob("*.py")])

#: A layer may import itself and what stands before it. Names are the second part of `localqwen.NAME`.
LAYERS = ["_version", "errors", "units", "machine", "formats", "models", "engines", "chat", "serve", "bench", "cli"]
OPEN_TO_CONVERT = ("errors", "machine", "_version", "formats")
#: Package -> the only places that may import it.
HOMES = {
    "click": ["localqwen/cli/"],
    "prompt_toolkit": ["localqwen/cli/"],
    "rich": ["localqwen/cli/"],
    "starlette": ["localqwen/serve/http/"],
    "uvicorn": ["localqwen/serve/http/"],
    "llguidance": ["localqwen/chat/grammar.py"],
    "mlx": ["localqwen/engines/mlx/", "convert/mlx.py"],
    "mlx_lm": ["localqwen/engines/mlx/", "convert/mlx.py"],
    "tokenizers": ["localqwen/engines/mlx/"],
    "llama_cpp": ["localqwen/engines/llama_cpp/", "convert/"],
    "gguf": ["localqwen/formats/", "convert/"],
    "huggingface_hub": ["localqwen/models/hub"],
    "httpx2": ["localqwen/models/hub", "localqwen/bench/remote.py"],
    "matplotlib": ["localqwen/bench/charts.py"],
    "modelscope_hub": ["localqwen/models/modelscope.py"],
    "jinja2": ["localqwen/chat/template.py"],
}


def imported(file: Path) -> list[str]:
    """Absolute names of the modules that a file imports, at the top or inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_no_module_imports_one_of_a_later_layer(file: Path) -> None:
    parts = file.relative_to(ROOT).with_suffix("").parts
    for name in imported(file):
        package, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if parts[0] == "convert":
            assert package != "localqwen" or target in OPEN_TO_CONVERT, f"{relative(file)} imports {name}"
        elif package == "localqwen" and target in LAYERS and parts[1] in LAYERS:
            assert LAYERS.index(target) <= LAYERS.index(parts[1]), f"{relative(file)} imports {name}"
        elif package == "convert":
            assert relative(file).startswith(("localqwen/cli/", "localqwen/models/converted.py")), relative(file)


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_heavy_packages_are_imported_in_their_homes_only(file: Path) -> None:
    for name in imported(file):
        homes = HOMES.get(name.partition(".")[0])
        assert homes is None or relative(file).startswith(tuple(homes)), f"{relative(file)} imports {name}"


def test_the_public_names_are_reached_from_the_package_alone() -> None:
    names = ("load", "parse_output", "chat.template.ChatTemplate", "engines.open", "Request", "LocalqwenError")
    code = "import localqwen; " + "; ".join(f"assert callable(localqwen.{name})" for name in names)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_importing_localqwen_imports_nothing_heavy() -> None:
    code = "import sys, localqwen, localqwen.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {
        "llama_cpp",
        "numpy",
        "jinja2",
        "rich",
        "prompt_toolkit",
        "psutil",
        "gguf",
        "mlx",
        "tokenizers",
        "huggingface_hub",
        "httpx2",
    }
    assert not heavy & set(loaded.stdout.split())
