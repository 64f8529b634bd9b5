"""Imports run one way, and heavy packages stay where they belong (the design's section 2)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "localqwen").rglob("*.py"), *(ROOT / "convert").rglob("*.py")])

#: A layer may import itself and what stands before it. Names are the second part of `localqwen.NAME`.
LAYERS = [
    "_version", "errors", "units", "json_text", "machine", "formats", "models", "engines", "chat",
    "model_process", "serve", "bench", "cli",
]  # fmt: skip
OPEN_TO_CONVERT = ("errors", "machine", "_version", "formats")
#: Package -> the only places that may import it.
HOMES = {
    "click": ["localqwen/cli/"],
    "prompt_toolkit": ["localqwen/cli/"],
    "rich": ["localqwen/cli/"],
    "starlette": ["localqwen/serve/http/"],
    "uvicorn": ["localqwen/serve/http/"],
    "llguidance": ["localqwen/chat/grammar.py"],
    "mlx": ["localqwen/engines/mlx/", "convert/mlx/"],
    "mlx_lm": ["localqwen/engines/mlx/", "convert/mlx/"],
    "tokenizers": ["localqwen/engines/mlx/"],
    "llama_cpp": ["localqwen/engines/llama_cpp/", "convert/"],
    "gguf": ["localqwen/formats/", "convert/"],
    "huggingface_hub": ["localqwen/models/hub"],
    "httpx2": ["localqwen/models/hub", "localqwen/bench/remote.py"],
    "matplotlib": ["localqwen/bench/charts.py"],
    "modelscope_hub": ["localqwen/models/modelscope.py"],
    "jinja2": ["localqwen/chat/sandbox/"],
    # What Windows lacks.
    "fcntl": ["localqwen/machine/posix.py"],
    "resource": ["localqwen/machine/posix.py"],
    "termios": ["localqwen/machine/posix.py"],
    "grp": [],
    "posix": [],
    "pty": [],
    "pwd": [],
    "tty": [],
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


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node of a tree, without what stands under `if TYPE_CHECKING:`."""
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children = node.orelse
    else:
        yield node
        children = [*ast.iter_child_nodes(node)]
    for child in children:
        yield from run_time_nodes(child)


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module -> the modules among `sources` that it imports at run time, inside functions too."""
    graph: dict[str, set[str]] = {}
    for module, text in sources.items():
        found = graph.setdefault(module, set())
        for node in run_time_nodes(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names} & sources.keys()
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= names & sources.keys()  # submodules; every other name is the package's own
                if node.module in sources and not names <= sources.keys():
                    found.add(node.module)
    return graph


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One cycle, each module imported by the next; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        modules: list[str] = exc.args[1]
        return modules
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count, those for type checkers do not, packages are modules too."""
    found = cycle(import_graph({module_name(file): file.read_text() for file in FILES}))
    assert not found, " is imported by ".join(found)


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"a": "import a.b", "a.b": "from a import c", "a.c": "from a.b import x"}, {"a.b", "a.c"}),
        ({"a": "def f():\n    from a.b import x", "a.b": "from a import y"}, {"a", "a.b"}),
        ({"a": "from a.b import x", "a.b": "if TYPE_CHECKING:\n    from a import y"}, set()),
        ({"a": "", "a.b": "from a import c", "a.c": "import os"}, set()),
    ],
    ids=["submodules", "inside a function", "for type checkers", "none"],
)
def test_the_search_finds_cycles(sources: dict[str, str], expected: set[str]) -> None:
    assert set(cycle(import_graph(sources))) == expected


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
