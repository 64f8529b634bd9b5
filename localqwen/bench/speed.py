"""Raw speed of an engine: prefill and decode, at a depth, alone or in a batch.

Only `engine.step()` is timed. Prompts are random (`prompts.py`), sampling is greedy. A decode is measured at a true
depth: the KV cache contains a random prompt of that length. It stays there between repeats, which does not change the
computation of the timed steps. A stop token does not end a measurement: the run starts again after it, with a random
token in its place, and the step that does this is not among the samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from localqwen.bench.prompts import RandomPrompts
from localqwen.bench.samples import Sample, Test
from localqwen.engines.engine import Engine, Run, Sampling, TokenOutput
from localqwen.errors import EngineError, UsageError

GREEDY = Sampling(temperature=0)
#: Tokens of the warm-up: enough for an engine that searches for the best size of a pass to find it.
WARM_UP_PROMPT = 512
WARM_UP_TOKENS = 8
Clock = Callable[[], float]


def tests(prompts: Sequence[int], generate: int, depths: Sequence[int], batches: Sequence[int]) -> tuple[Test, ...]:
    """Return a test for every prompt length and every batch at every depth. Tests of one depth follow each other and
    share its prefix."""
    found: list[Test] = []
    for depth in depths:
        found += [Test("prefill", prompt=prompt, depth=depth) for prompt in prompts if prompt]
        found += [Test("decode", generate=generate, depth=depth, batch=batch) for batch in batches if generate]
    return tuple(found)


def context_needed(test: Test) -> int:
    """Return the tokens that one run of the test fills."""
    return test.depth + test.prompt + test.generate + 2 * test.batch + 2


class SpeedBench:
    """Measures one engine; call it in the engine's thread. `clock` is in seconds."""

    def __init__(self, engine: Engine, subject: str, *, clock: Clock = time.perf_counter) -> None:
        self.engine = engine
        self._subject = subject
        self._clock = clock
        self._random = RandomPrompts(engine)
        self._last: Test | None = None

    def warm_up(self) -> None:
        """Run the engine once, so that no sample includes reading pages, allocating buffers or starting threads."""
        room = self.engine.context_length - WARM_UP_TOKENS - 2
        prompt = self._random.tokens(max(1, min(WARM_UP_PROMPT, room)), -1)
        self._finish(self.engine.start(prompt, GREEDY, max_tokens=WARM_UP_TOKENS))

    def measure(self, test: Test, repeat: int) -> Sample:
        """Return one sample of a test. Raise ContextTooLong, EngineError, or UsageError if it is not a test of raw
        speed."""
        if not test.depth or self._last is None or (self._last.depth, self._last.batch) != (test.depth, test.batch):
            self._forget()
        self._last = test
        match test.kind:
            case "prefill":
                return self._prefill(test, repeat)
            case "decode":
                return self._decode(test, repeat)
        raise UsageError(f"{test.kind} is not a test of raw speed", "raw speed: prefill and decode")

    def _forget(self) -> None:
        """Clear the cache: other tests' tokens would slow every step down, and may be a prefix of the next prompt."""
        for _ in self.engine.evaluate(self._random.tokens(1, -2)):
            pass

    def _finish(self, run: Run) -> None:
        while not run.finished:
            self.engine.step()

    def _read(self, prompt: Sequence[int]) -> None:
        """Prefill the tokens without an answer."""
        self._finish(self.engine.start(prompt, GREEDY, max_tokens=0))

    def _prefill(self, test: Test, repeat: int) -> Sample:
        before = self._prefix(test, 0)
        if before:
            self._read(before)
        prompt = (*before, *self._random.tokens(test.prompt, test.prompt, repeat))
        run = self.engine.start(prompt, GREEDY, max_tokens=1)
        computed = run.prompt_tokens - run.cached_tokens
        if computed < test.prompt:
            self.engine.cancel(run)
            raise EngineError(
                f"{test.prompt - computed} tokens of a random prompt were cached, so the speed would be too high"
            )
        began = self._clock()
        self._finish(run)
        seconds = self._clock() - began
        return Sample(self._subject, test, {"tokens_per_second": computed / seconds, "seconds": seconds})

    def _prefix(self, test: Test, lane: int) -> tuple[int, ...]:
        """Return the prompt of a depth: the same for all its repeats and tests, different for each lane of a batch."""
        return self._random.tokens(test.depth, test.depth, lane) if test.depth else ()

    def _decode(self, test: Test, repeat: int) -> Sample:
        prompts = [self._prefix(test, lane) or self._random.tokens(1, lane, repeat) for lane in range(test.batch)]
        for prompt in prompts:
            self._read(prompt)
        lanes = [_Lane(self.engine, self._random, prompt) for prompt in prompts]
        times = self._timed_steps(lanes, test.generate)
        for lane in lanes:
            self.engine.cancel(lane.run)
        speed = test.batch * len(times) / sum(times)
        return Sample(self._subject, test, {"tokens_per_second": speed, "seconds": sum(times)}, tuple(times))

    def _timed_steps(self, lanes: Sequence[_Lane], count: int) -> list[float]:
        """Return the seconds of the steps in which every lane generates a token that is not the first of its run."""
        times: list[float] = []
        while len(times) < count:
            for lane in lanes:
                lane.go_on()
            fresh = any(not lane.run.generated for lane in lanes)
            began = self._clock()
            pieces = self.engine.step()
            seconds = self._clock() - began
            for lane in lanes:
                lane.take(pieces)
            if not fresh and len(pieces) == len(lanes):
                times.append(seconds)
        return times


class _Lane:
    """One run of a batch and its tokens, so that it can continue after a stop token."""

    def __init__(self, engine: Engine, random: RandomPrompts, prompt: Sequence[int]) -> None:
        self._engine, self._random = engine, random
        self._tokens = list(prompt)
        self.run = self._start()

    def _start(self) -> Run:
        return self._engine.start(self._tokens, GREEDY, max_tokens=self._engine.context_length)

    def take(self, pieces: Sequence[tuple[Run, TokenOutput]]) -> None:
        self._tokens += [token for run, piece in pieces if run is self.run for token in piece.tokens]

    def go_on(self) -> None:
        """Start the run again if it has ended at a stop token, with a random token in its place."""
        if self.run.finished:
            self._tokens[-1] = self._random.tokens(1, len(self._tokens), self._tokens[-2])[0]
            self.run = self._start()
