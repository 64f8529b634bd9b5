"""The changes that tools/mutate.py makes, and which tests it asks about them."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def mutate() -> ModuleType:
    sys.path.insert(0, str(TOOLS))
    spec = importlib.util.spec_from_file_location("mutate", TOOLS / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return a < b", {"return a <= b", "return a >= b", "return None"}),
        ("return a == b", {"return a != b", "return None"}),
        ("return a not in b", {"return a in b", "return None"}),
        ("return a is None", {"return a is not None", "return None"}),
        ("yield a and b", {"yield (a or b)"}),
        ("yield a + b", {"yield (a - b)"}),
        ("yield a - b", {"yield (a + b)"}),
        ("yield 'x' + b", set()),
        ("yield [a] + b", set()),
        ("yield a[1]", {"yield a[2]", "yield a[0]"}),
        ("yield True", {"yield False"}),
        ("yield max(a, b)", {"yield min(a, b)"}),
        ("yield not a", {"yield a"}),
        ("a.close()", {"pass"}),
        ("a += b", {"pass"}),
        ("return None", set()),
        ("return", set()),
        ("'''Text of 1.'''", set()),
        ("yield f'{a < 1:>3}'", set()),
        ("a: Literal[1] = b", set()),
        ("yield a < b < c", set()),
    ],
)
def test_one_thing_is_changed_in_each_mutant(mutate: ModuleType, body: str, expected: set[str]) -> None:
    source = f"def f(a, b):\n    {body}\n"
    found = mutate.mutants(source, "x.py").get("f", [])
    sources = [mutate.mutated(source, mutant) for mutant in found]
    assert {ast.unparse(ast.parse(each).body[0].body) for each in sources} == expected  # type: ignore[attr-defined]
    assert {(mutant.file, mutant.function, mutant.line) for mutant in found} <= {("x.py", "f", 2)}


def test_each_function_has_its_own_and_what_is_outside_of_them_has_none(mutate: ModuleType) -> None:
    source = (
        "LIMIT = 5\n@cache(1)\ndef f(a: Literal[2] = 3):\n    def g(): return a < 4\n    return None\n\n"
        "class C:\n    size = 6\n    async def m(self): self.close()\n"
    )
    found = mutate.mutants(source, "x.py")
    assert {name: {mutant.change for mutant in several} for name, several in found.items()} == {
        "f": {"3 -> 4", "3 -> 2"},
        "f.g": {"a < 4 -> a <= 4", "a < 4 -> a >= 4", "4 -> 5", "4 -> 3", "return a < 4 -> return None"},
        "C.m": {"self.close() -> pass"},
    }


def test_a_seed_repeats_its_choice_of_one_per_function_from_the_modules_in_turn(mutate: ModuleType) -> None:
    modules = [mutate.ROOT / "localqwen" / "chat", mutate.ROOT / "convert"]
    first, again, other = (mutate.chosen(modules, 20, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert [Path(mutant.file).parts[0] for mutant in first] == ["localqwen", "convert"] * 10
    assert len({(mutant.file, mutant.function) for mutant in first}) == 20


def test_the_nearest_tests_come_first(mutate: ModuleType) -> None:
    found = mutate.tests_of("localqwen/chat/template.py")
    assert found[0] == Path("tests/chat/test_template.py")
    assert set(found) == {path.relative_to(mutate.ROOT) for path in (mutate.ROOT / "tests" / "chat").glob("test_*.py")}
    assert {path.parts[1] for path in mutate.tests_of("convert/__init__.py")} == {"convert"}


def test_a_change_that_no_test_sees_survives_and_the_tree_stays_as_it_is(
    mutate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a small tree; mutants of one size and of one second, which compiled code would mix up."""
    source = "def f(a):\n    g(a)\n    return a < 5\n\n\ndef g(a):\n    print(a)\n"
    (tmp_path / "small.py").write_text(source)
    (tmp_path / "test_small.py").write_text(
        "import small\n\n\ndef test_f():\n    assert small.f(4)\n    assert not small.f(6)\n"
    )
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # as quick as can be
    mutants = [
        mutant for mutant in mutate.mutants(source, "small.py")["f"] if mutant.kind in ("comparison", "left out")
    ]
    with mutate.copies_of_the_tree(1) as copies:
        results = [mutate.judge(copies, mutant, [Path("test_small.py")], 60) for mutant in mutants]
    assert {result.mutant.change: result.outcome for result in results} == {
        "g(a) -> pass": "survived",
        "a < 5 -> a <= 5": "survived",
        "a < 5 -> a >= 5": "noticed",
    }
    assert (tmp_path / "small.py").read_text() == source
