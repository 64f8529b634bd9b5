"""Every test runs in a home of its own: the user's models, conversations and configuration are never touched."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for the whole run, so that the demo model is converted and the engine probed once."""
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith("LOCALQWEN_")]:
        patch.delenv(name)
    patch.setenv("LOCALQWEN_HOME", str(tmp_path_factory.mktemp("home")))
    yield
    patch.undo()
