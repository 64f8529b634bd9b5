"""Find the fastest settings of llama.cpp for a model on this machine: `localqwen tune`.

Measures a turn: the prefill of a prompt and the decoding of an answer. Changes one setting at a time; the candidates
take turns, and a change is kept only if it is faster by more than the noise of a measurement.

Speed never costs exactness unless the user allows it: flash attention rounds to 16 bit, and the result depends on how
a prompt is split into passes (benchmarks/README.md); keys and values in 8 bit change answers. Answers stay repeatable
with any number of threads, passes and weight repacking.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localqwen.engines.engine import Sampling
from localqwen.engines.llama_cpp.engine import LlamaCppEngine
from localqwen.engines.llama_cpp.library import ModelFile
from localqwen.engines.llama_cpp.settings import Settings

#: Tokens of prefill and decode per measurement, and measurements per candidate.
PROMPT, ANSWER, ROUNDS = 256, 24, 3
#: Tokens of a user's turn: the weights of the two speeds.
TURN_PROMPT, TURN_ANSWER = 512, 256
#: A smaller difference is noise.
WORTH_IT = 1.03
BATCHES = (128, 256, 512)
#: A change in words -> its settings; the first group keeps answers repeatable, the second rounds more coarsely.
EXACT: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "weight repacking": [("weight repacking off", {"use_extra_bufts": False})],
    "batch": [(f"{count} tokens per pass", {"batch": count}) for count in BATCHES],
}
APPROXIMATE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "flash attention": [("flash attention on", {"flash_attention": True})],
    "keys and values": [("keys and values in 8 bit", {"flash_attention": True, "kv_type": "q8_0"})],
}


@dataclass(frozen=True)
class Speed:
    """Tokens per second of prefill and decode."""

    prefill: float
    decode: float

    @property
    def turn_seconds(self) -> float:
        """Return the seconds of a person's turn."""
        return TURN_PROMPT / self.prefill + TURN_ANSWER / self.decode


@dataclass(frozen=True)
class Trial:
    """One measured candidate; `change` says in words what was changed."""

    change: str
    settings: Settings
    speed: Speed


Report = Callable[[Trial], None]


def tune(
    path: Path, start: Settings, cores: int, report: Report, *, approximate: bool = False
) -> tuple[Settings, list[Trial]]:
    """Return the best settings and everything that was tried, the given settings first. Raise a LocalqwenError as
    opening an engine does."""
    trials: list[Trial] = []

    def tried(candidates: Sequence[tuple[str, Settings]]) -> list[Trial]:
        found = [
            Trial(*candidate, speed) for candidate, speed in zip(candidates, _measure(path, candidates), strict=True)
        ]
        for trial in found:
            report(trial)
        trials.extend(found)
        return found

    best = _threads(tried, replace(start, adapt_threads=False), cores)
    for changes in (EXACT | (APPROXIMATE if approximate else {})).values():
        others = [(words, replace(best.settings, **change)) for words, change in changes]
        others = [(words, settings) for words, settings in others if settings != best.settings]
        if not others:
            continue
        now, *changed = tried([("as it is", best.settings), *others])
        fastest = min(changed, key=lambda trial: trial.speed.turn_seconds)
        if fastest.speed.turn_seconds * WORTH_IT < now.speed.turn_seconds:
            best = fastest
    return replace(best.settings, adapt_threads=True, tuned=True), trials


def _threads(tried: Callable[[Sequence[tuple[str, Settings]]], list[Trial]], start: Settings, cores: int) -> Trial:
    """Try thread counts for prompts and answers separately: decoding waits for memory, and often needs fewer
    threads."""
    counts = thread_counts(cores)
    found = tried(
        [
            (f"{count} thread{'s' * (count > 1)}", replace(start, threads=count, prefill_threads=count))
            for count in counts
        ]
    )
    decoding = max(found, key=lambda trial: trial.speed.decode)
    reading = max(found, key=lambda trial: trial.speed.prefill)
    settings = replace(start, threads=decoding.settings.threads, prefill_threads=reading.settings.threads)
    return Trial("threads", settings, Speed(reading.speed.prefill, decoding.speed.decode))


def thread_counts(cores: int) -> list[int]:
    """Return all counts up to eight, then steps of an eighth of the machine, and all its cores."""
    step = max(1, cores // 8)
    return sorted({*range(step, cores + 1, step), cores})


def _measure(path: Path, candidates: Sequence[tuple[str, Settings]]) -> list[Speed]:
    """Return the median speeds of the candidates, which take turns so that a drift in the machine's speed affects
    all."""
    with contextlib.ExitStack() as stack:
        models = {}
        for repacked in {settings.use_extra_bufts for _, settings in candidates}:
            models[repacked] = stack.enter_context(contextlib.closing(ModelFile(path, use_extra_bufts=repacked)))
        engines = [
            stack.enter_context(contextlib.closing(_engine(models[settings.use_extra_bufts], settings)))
            for _, settings in candidates
        ]
        prompts = _prompts(len(engines[0].vocabulary()))
        rounds = [[_turn(engine, next(prompts)) for engine in engines] for _ in range(ROUNDS + 1)][
            1:
        ]  # drops a warm-up
    return [
        Speed(statistics.median(each.prefill for each in column), statistics.median(each.decode for each in column))
        for column in zip(*rounds, strict=True)
    ]


def _engine(model: ModelFile, settings: Settings) -> LlamaCppEngine:
    return LlamaCppEngine(model, settings, context_length=PROMPT + 2 * ANSWER)


def _prompts(vocabulary: int) -> Iterator[list[int]]:
    """Yield random prompts; no two begin the same, so no cache has a prefix. Control tokens stand at the vocabulary's
    end and do not occur."""
    for number in itertools.count():
        yield [(number * 7919 + position * 31) % (vocabulary // 2) for position in range(PROMPT)]


def _turn(engine: LlamaCppEngine, prompt: list[int]) -> Speed:
    began = time.perf_counter()
    read = engine.start(prompt, Sampling(temperature=0), max_tokens=0)
    while not read.finished:
        engine.step()
    prefill = (len(prompt) - read.cached_tokens) / (time.perf_counter() - began)
    return Speed(prefill, ANSWER / sum(_steps(engine, prompt)))


def _steps(engine: LlamaCppEngine, prompt: list[int]) -> list[float]:
    """Return the seconds of `ANSWER` decoding steps; the first step of a run computes the end of the prompt and does
    not count."""
    seconds: list[float] = []
    while len(seconds) < ANSWER:
        run = engine.start(prompt, Sampling(temperature=1, seed=len(seconds)), max_tokens=ANSWER + 1)
        engine.step()
        while not run.finished and len(seconds) < ANSWER:
            began = time.perf_counter()
            engine.step()
            seconds.append(time.perf_counter() - began)
        engine.cancel(run)
    return seconds
