"""What is llama.cpp's own: GGUF files that cannot be opened, and its threads. What every engine promises is in
test_engines.py."""

from pathlib import Path

import pytest

from localqwen import engines
from localqwen.errors import EngineError, Unsupported, UsageError
from localqwen.models import provide


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"not a model")
    with pytest.raises(Unsupported, match=r"junk\.gguf"):
        engines.open(junk)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(provide.provide("demo").read_bytes()[:-100_000])
    with pytest.raises(EngineError, match=r"cut\.gguf"):
        engines.open(cut)


@pytest.mark.parametrize("options", [{"context_length": 10**7}, {"threads": 0}])
def test_settings_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError) as error:
        engines.open("demo", **options)  # type: ignore[arg-type]
    assert error.value.hint
