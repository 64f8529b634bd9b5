"""Every test runs in a home of its own: the user's models, conversations and configuration are never touched."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest

pytest_plugins = ["suite"]

# The hub's client reads these once, when it is imported: no test sees the user's cache or reaches a real hub.
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_", "HUGGING_FACE_"))]:
    del os.environ[_name]
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="localqwen-tests-hf-")
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
# A shell starts what runs in its background deaf to Ctrl-C, and the programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One for the whole run, so that the demo model is converted and the engine probed once."""
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith("LOCALQWEN_")]:
        patch.delenv(name)
    patch.setenv("LOCALQWEN_HOME", str(tmp_path_factory.mktemp("home")))
    yield
    patch.undo()


def pytest_unconfigure() -> None:
    """In each worker of pytest-xdist, and in the process that starts them and runs no test."""
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
