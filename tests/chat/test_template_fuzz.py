"""Random hostile templates end with a text or a TemplateError: a short run of tools/fuzz_templates.py."""

from types import ModuleType

import pytest
import scripts


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return scripts.load("tools/fuzz_templates.py")


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
