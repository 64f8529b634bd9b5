"""Raw speed: on a clock whose times are known, and on the demo model."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from localqwen import engines
from localqwen.bench import speed
from localqwen.bench.prompts import RandomPrompts
from localqwen.bench.samples import Sample, Subject, Test, bandwidth_share, rows
from localqwen.bench.speed import SpeedBench
from localqwen.bench.worker import interleaved
from localqwen.engines.engine import Engine, Run, Sampling, TokenOutput
from localqwen.errors import UsageError


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    opened = engines.open("demo", context_length=512, threads=1, max_runs=2)
    yield opened
    opened.close()


class SteppingClock:
    """Every look at it is 0.05 s later: a step is looked at before and behind, so each takes that long."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.05
        return self.now


class StoppingEngine:
    """The demo's engine, but every third token of a run is said to be a stop token and ends it."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self.started: list[tuple[int, ...]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def start(self, prompt: list[int], sampling: Sampling, *, max_tokens: int) -> Run:
        self.started.append(tuple(prompt))
        return self._inner.start(prompt, sampling, max_tokens=max_tokens)

    def step(self) -> list[tuple[Run, TokenOutput]]:
        pieces = self._inner.step()
        for run, _ in pieces:
            if run.generated == 3:
                self._inner.cancel(run)
        return pieces


def test_prefill_and_decode_are_counted_by_the_clock_alone(engine: Engine) -> None:
    bench = SpeedBench(engine, "demo", clock=SteppingClock())
    prefill = bench.measure(Test("prefill", prompt=100), 0)
    assert prefill.values["tokens_per_second"] == pytest.approx(100 / 0.05)
    decode = bench.measure(Test("decode", generate=20, depth=30), 0)
    assert decode.latencies == pytest.approx([0.05] * 20)
    assert decode.values["tokens_per_second"] == pytest.approx(20)
    both = bench.measure(Test("decode", generate=20, depth=30, batch=2), 0)
    assert both.values["tokens_per_second"] == pytest.approx(40)


@pytest.fixture
def started(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Prompt tokens and cached tokens of every run that was started for an answer."""
    seen, original = [], engine.start

    def start(prompt: list[int], sampling: Sampling, *, max_tokens: int) -> Run:
        run = original(prompt, sampling, max_tokens=max_tokens)
        if max_tokens:
            seen.append((run.prompt_tokens, run.cached_tokens))
        return run

    monkeypatch.setattr(engine, "start", start)
    return seen


@pytest.mark.parametrize("batch", [1, 2])
def test_a_decode_lies_at_the_depth_it_names(engine: Engine, started: list[tuple[int, int]], batch: int) -> None:
    SpeedBench(engine, "demo").measure(Test("decode", generate=4, depth=120, batch=batch), 0)
    assert started[:batch] == [(120, 119)] * batch  # the last one is computed with the first token


def test_a_prefill_computes_its_whole_prompt_behind_a_prefix_that_is_there(
    engine: Engine, started: list[tuple[int, int]]
) -> None:
    bench = SpeedBench(engine, "demo")
    for depth, repeat in ((0, 0), (0, 0), (60, 0), (60, 1), (0, 1)):  # the very same prompt again, too
        bench.measure(Test("prefill", prompt=64, depth=depth), repeat)
    assert started == [(64, 0), (64, 0), (124, 60), (124, 60), (64, 0)]


def test_a_stop_token_does_not_shorten_a_measurement(engine: Engine) -> None:
    stopping = StoppingEngine(engine)
    found = SpeedBench(stopping, "demo").measure(Test("decode", generate=10, depth=8), 0)  # type: ignore[arg-type]
    assert len(found.latencies) == 10
    begun = [prompt for prompt in stopping.started if len(prompt) > 8]
    assert [len(prompt) for prompt in begun] == [8 + 3 * n for n in range(1, len(begun) + 1)]
    assert all(later[: len(before) - 1] == before[:-1] for before, later in itertools.pairwise(begun))
    assert not {prompt[-1] for prompt in begun} & engine.stop_tokens


def test_random_prompts_hold_no_control_token_and_come_again(engine: Engine) -> None:
    vocabulary, prompts = engine.vocabulary(), RandomPrompts(engine)
    drawn = prompts.tokens(5000, 1)
    assert all(vocabulary[token] for token in drawn)
    assert not set(drawn) & engine.stop_tokens
    assert prompts.tokens(5000, 1) == drawn != prompts.tokens(5000, 2)


def test_raw_speed_knows_two_tests(engine: Engine) -> None:
    with pytest.raises(UsageError, match="chat is not a test of raw speed"):
        SpeedBench(engine, "demo").measure(Test("chat"), 0)


def test_tests_are_every_length_and_batch_at_every_depth_grouped_by_depth() -> None:
    found = [test.label for test in speed.tests([128, 0], 64, [0, 4096], [1, 4])]
    assert found == [
        "prefill 128", "decode 64", "decode 64 x 4",
        "prefill 128 at 4,096", "decode 64 at 4,096", "decode 64 at 4,096 x 4",
    ]  # fmt: skip


def test_models_take_turns_and_none_is_always_first() -> None:
    order = list(interleaved([Test("prefill"), Test("decode")], 2, 2))
    assert [(repeat, subject, test.kind) for repeat, subject, test in order] == [
        (0, 0, "prefill"), (0, 1, "prefill"), (0, 0, "decode"), (0, 1, "decode"),
        (1, 1, "prefill"), (1, 0, "prefill"), (1, 1, "decode"), (1, 0, "decode"),
    ]  # fmt: skip


def test_rows_gather_the_repeats_of_a_test() -> None:
    test = Test("decode", generate=2)
    samples = [Sample("m", test, {"tokens_per_second": speed}, (1 / speed,) * 2) for speed in (10.0, 20.0, 30.0)]
    (row,) = rows(samples)
    assert row.metrics["tokens_per_second"].median == 20
    assert row.latency is not None
    assert (row.latency.count, row.latency.median) == (6, 0.05)


def test_the_share_of_the_bandwidth_is_bytes_per_pass_times_passes() -> None:
    """1 GB of weights and 1,000 tokens of 1 MB at 10 passes a second are 20 GB/s; in a batch the weights come once."""
    subject = Subject("m", "llama.cpp", active_bytes=10**9, kv_bytes=1e6, bandwidth=40e9)
    (single,) = rows([Sample("m", Test("decode", depth=1000), {"tokens_per_second": 10.0})])
    assert bandwidth_share(single, subject) == pytest.approx(0.5)
    (batch,) = rows([Sample("m", Test("decode", depth=1000, batch=2), {"tokens_per_second": 20.0})])
    assert bandwidth_share(batch, subject) == pytest.approx(0.75)
    (prefill,) = rows([Sample("m", Test("prefill", prompt=8), {"tokens_per_second": 10.0})])
    assert bandwidth_share(prefill, subject) is None
