"""What is llama.cpp's own: GGUF files that cannot be opened, and its threads. What every engine promises is in
test_engines.py."""

from contextlib import closing
from pathlib import Path

import pytest
from resolved import file_of

from localqwen import engines
from localqwen.engines.engine import Sampling
from localqwen.engines.llama_cpp.engine import LlamaCppEngine
from localqwen.engines.scheduling.passes import Passes
from localqwen.errors import EngineError, Unsupported, UsageError

GREEDY = Sampling(temperature=0)


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"not a model")
    with pytest.raises(Unsupported, match=r"junk\.gguf"):
        engines.open(junk)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file_of("demo").read_bytes()[:-100_000])
    with pytest.raises(EngineError, match=r"cut\.gguf"):
        engines.open(cut)


@pytest.mark.parametrize("options", [{"context_length": 10**7}, {"threads": 0}])
def test_settings_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError) as error:
        engines.open("demo", **options)  # type: ignore[arg-type]
    assert error.value.hint


def test_a_short_prompt_does_not_wait_for_a_long_one_nor_that_for_many_short_ones() -> None:
    with closing(engines.open("demo", context_length=1024, max_runs=3, threads=1)) as engine:
        assert isinstance(engine, LlamaCppEngine)
        engine._passes = Passes(32, mixed=False)  # as on a slow machine
        long = engine.start(engine.tokenize("a b c " * 200, special=False), GREEDY, max_tokens=1)
        answered = 0
        while not long.finished:
            short = engine.start(engine.tokenize(f"{answered} and what", special=False), GREEDY, max_tokens=1)
            steps = 0
            while not short.finished and not long.finished:
                engine.step()
                steps += 1
            assert steps <= 2
            answered += 1
        assert abs(answered - long.prompt_tokens / 32) < 2
