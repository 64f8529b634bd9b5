"""Random hostile templates end with a text or a TemplateError: a short run of tools/fuzz_templates.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "fuzz_templates.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_templates", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_templates"] = module
    spec.loader.exec_module(module)
    return module


def test_a_seed_makes_the_same_templates_again(tool: ModuleType) -> None:
    first, again, other = (tool.Grammar(seed) for seed in (1, 1, 2))
    made = [first.template("{{ a }}") for _ in range(20)]
    assert made == [again.template("{{ a }}") for _ in range(20)] != [other.template("{{ a }}") for _ in range(20)]


def test_no_random_template_breaks_a_limit(tool: ModuleType) -> None:
    found = tool.fuzz(300, seed=1)
    assert found.faults == []
    assert found.ends.total() == 300
    assert found.ends["rendered"] > 20
    assert found.ends["limit: makes"] > 5
