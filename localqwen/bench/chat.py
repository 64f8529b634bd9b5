"""Waiting times of a user: the first token, the first token of the answer, the end; turn by turn.

Measures events (`chat/messages.py`), so that the same code measures an engine in this process and a server.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from localqwen.bench.samples import Sample, Test
from localqwen.bench.workloads import Count, Script, Workload
from localqwen.chat.answer import AnswerAssembler
from localqwen.chat.messages import (
    Event,
    Finished,
    Message,
    Request,
    SamplingOverrides,
    Text,
    Thinking,
    ThinkingMode,
    ToolCall,
)


class Answering(Protocol):
    """What can be measured: a ChatModel or a server."""

    def stream(self, request: Request) -> Generator[Event, None, None]:
        """Yield the events of an answer."""
        ...


def tests(budgets: Sequence[int]) -> list[Test]:
    """Return the tests of a conversation without thinking, with thinking, and with each budget."""
    return [Test("chat", name) for name in ("not thinking", "thinking", *(f"budget {budget}" for budget in budgets))]


def can(thinking: ThinkingMode, test: Test) -> bool:
    """Return whether a model with this thinking mode can run the test."""
    return thinking != ("always" if test.name == "not thinking" else "never")


def in_mode(workload: Workload, name: str) -> Workload:
    """Return the workload with the thinking that the name of a chat test says."""
    budget = int(name.removeprefix("budget ")) if name.startswith("budget ") else None
    return replace(workload, think=name != "not thinking", budget=budget)


def possible(workload: Workload, thinking: ThinkingMode) -> Workload:
    """Return the workload with the thinking that the model can do: one that always thinks also does so where the
    workload turns it off."""
    if thinking == "always":
        return replace(workload, think=None)
    return replace(workload, think=None, budget=None) if thinking == "never" else workload


@dataclass
class _Watch:
    """Times of the events of one answer, in seconds from its request."""

    clock: Callable[[], float]
    began: float = 0.0
    first: float | None = None
    answer: float | None = None
    end: float = 0.0
    times: list[float] = field(default_factory=list)
    assembler: AnswerAssembler = field(default_factory=AnswerAssembler)

    def listen(self, model: Answering, request: Request) -> None:
        """Read an answer to its end."""
        self.began = self.clock()
        for event in model.stream(request):
            now = self.clock() - self.began
            self.assembler.add(event)
            if isinstance(event, Finished):
                self.end = now
            if not isinstance(event, Thinking | Text | ToolCall):
                continue
            self.first = now if self.first is None else self.first
            if not isinstance(event, Thinking) and self.answer is None:
                self.answer = now
            self.times.append(now)

    def values(self) -> dict[str, float]:
        """Return the metrics by name; those that did not occur (an answer, if all of it was thinking) are left out.
        Raise EngineError if the answer has no end."""
        finished = self.assembler.answer().end
        usage = finished.usage
        found = {
            "total_ms": self.end * 1000,
            "prompt_tokens": float(usage.prompt_tokens),
            "cached_tokens": float(usage.cached_tokens),
            "answer_tokens": float(usage.completion_tokens - usage.thinking_tokens),
            "thinking_tokens": float(usage.thinking_tokens),
        }
        if usage.completion_tokens:
            found["thinking_share"] = usage.thinking_tokens / usage.completion_tokens
        return found | self._waits(usage.completion_tokens, finished.timing.first_token_ms)

    def _waits(self, tokens: int, first_token_ms: float | None) -> dict[str, float]:
        """Return the waiting times. The engine knows when its first token came; its text may come later, because a tag
        is not shown."""
        first = first_token_ms / 1000 if first_token_ms is not None else self.first
        if first is None:
            return {}
        found = {"first_token_ms": first * 1000}
        if self.answer is not None:
            found["first_answer_ms"] = self.answer * 1000
            found["thinking_time_share"] = (self.answer - first) / (self.end - first) if self.end > first else 0.0
        if tokens > 1 and self.end > first:  # MLPerf Client: the rate of the tokens after the first
            found["tokens_per_second"] = (tokens - 1) / (self.end - first)
        return found


def _in_time(workload: Workload, watch: _Watch) -> dict[str, float]:
    """Return whether the answer began before the deadline, if there is one; an answer without text did not."""
    if not workload.deadline:
        return {}
    return {"in_time": float(watch.answer is not None and watch.answer <= workload.deadline)}


def measure(
    model: Answering,
    subject: str,
    test: Test,
    workload: Workload,
    repeat: int,
    count: Count,
    *,
    lane: int = 0,
    salt: str = "",
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Sample]:
    """Yield a sample for each turn of one conversation. `lane` numbers conversations that run at the same time, `salt`
    the runs against a server that caches prompts.

    Samples with the preset of the Qwen team and a seed, because greedy sampling while thinking may never end.
    """
    seed = 1000 * (lane + 1) + repeat
    session = hashlib.sha256(repr((salt, test, lane, repeat)).encode()).hexdigest()[:12]
    messages: list[Message] = []
    for number, added in enumerate(Script(workload, count, session).turns()):
        if number and workload.pause:
            sleep(workload.pause)
        messages += added
        request = Request(
            tuple(messages),
            workload.offered,
            think=workload.think,
            budget=workload.budget,
            max_tokens=workload.answer,
            sampling=SamplingOverrides(seed=seed),
        )
        watch = _Watch(clock)
        watch.listen(model, request)
        turn = number + 1 if workload.turns > 1 else 0
        latencies = tuple(after - before for before, after in zip(watch.times, watch.times[1:], strict=False))
        yield Sample(subject, replace(test, turn=turn), watch.values() | _in_time(workload, watch), latencies)
        if not workload.tools:  # a tool loop's next step brings the call that it answers
            messages.append(replace(watch.assembler.answer().message(), tool_calls=()))
