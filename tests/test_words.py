"""The words of the code: what STYLE.md says about docstrings and names holds in these packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Folders and files in which everything public has a docstring; that of a function begins with a verb.
DOCUMENTED = (
    "localqwen/__init__.py",
    "localqwen/bench",
    "localqwen/chat",
    "localqwen/cli",
    "localqwen/errors.py",
    "localqwen/machine",
    "localqwen/serve",
    "localqwen/units.py",
)
#: First words of a docstring that describes a function instead of saying what it does.
NOT_VERBS = {
    "A", "After", "All", "An", "As", "At", "Before", "By", "Every", "For", "From", "How", "If", "In", "Into", "Its",
    "Of", "On", "One", "Over", "Some", "That", "The", "Their", "These", "This", "To", "Told", "Under", "What",
    "When", "Where", "Whether", "Which", "While", "Who", "With", "Without",
}  # fmt: skip
#: Folders whose names have none of the private words, and what STYLE.md says instead.
PLAIN_NAMES = ("benchmarks", "convert", "localqwen")
PRIVATE_WORDS = {
    "asked": "request",
    "card": "metadata",
    "provide": "resolve",
    "resident": "loaded model",
    "residents": "model pool",
    "prepare": "prefill ahead",
    "tell": "report",
    "told": "reported",
}
#: A flag that is public since before it had a better name.
PUBLIC_NAMES = {"no_prepare"}
#: Folders whose names are spelled with -ize.
IZE = ("benchmarks", "localqwen", "tests", "tools")
ISE = ("quantis", "tokenis", "normalis", "initialis", "optimis")
Defined = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def files(*places: str) -> list[str]:
    """Return the Python files in these folders, and those of the places that are files."""
    found = [path for place in places for path in [*(ROOT / place).rglob("*.py"), ROOT / place] if path.is_file()]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def public(tree: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Defined]]:
    """Yield the public classes, functions and methods; functions inside functions are nobody else's."""
    for node in tree.body:
        if isinstance(node, Defined) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")


def names(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a file defines: classes, functions, parameters, variables, attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name


def parsed(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", files(*DOCUMENTED))
def test_what_is_public_is_documented_verb_first(path: str) -> None:
    found = {name: (node, ast.get_docstring(node)) for name, node in public(parsed(path))}
    assert [name for name, (_, text) in found.items() if text is None] == []
    functions = {name: text for name, (node, text) in found.items() if text and not isinstance(node, ast.ClassDef)}
    assert [name for name, text in functions.items() if text.split()[0] in NOT_VERBS] == []


@pytest.mark.parametrize("path", files(*PLAIN_NAMES))
def test_no_name_has_a_private_word(path: str) -> None:
    words = {
        name: set(name.lower().split("_")) & PRIVATE_WORDS.keys()
        for name in names(parsed(path))
        if name not in PUBLIC_NAMES
    }
    assert {name: [PRIVATE_WORDS[word] for word in found] for name, found in words.items() if found} == {}


@pytest.mark.parametrize("path", files(*IZE))
def test_names_are_spelled_with_ize(path: str) -> None:
    found = {name for name in names(parsed(path)) if any(stem in name.lower() for stem in ISE)}
    assert found == set()
