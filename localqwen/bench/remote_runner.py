"""One run of the benchmark against a server: the same conversations and samples, also several at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from localqwen.bench import chat
from localqwen.bench.history import Benchmark, Log, Recording
from localqwen.bench.remote import RemoteModel
from localqwen.bench.samples import Sample, Subject, Test
from localqwen.bench.workloads import Workload
from localqwen.chat.messages import Message, Request
from localqwen.errors import UsageError

#: Called with what is being done, the samples so far and their total.
Report = Callable[[str, int, int], None]
_COUNTED_BY_CHUNKS = "the server does not report how many tokens it generates: chunks were counted instead"


class RemoteRunner(Recording):
    """Measures a server into `run`, which always has everything that was measured so far. A test with `batch` N runs N
    conversations at the same time, each in a thread."""

    def __init__(
        self,
        model: RemoteModel,
        tests: Sequence[Test],
        workloads: Mapping[str, Workload],
        repeats: int,
        run: Benchmark,
        log: Log,
        report: Report,
    ) -> None:
        if not tests:
            raise UsageError("there is nothing to measure", "add --chat or --workload mlperf-client")
        self._model, self._tests, self._workloads, self._repeats = model, tests, workloads, repeats
        subject = Subject(model.name, model.engine_name, url=model.url)
        super().__init__(replace(run, subjects=(subject,)), log)
        self._report = report
        log.subject(subject)

    def measure(self) -> None:
        """Run all tests."""
        self._warm_up()
        total = self._repeats * len(self._tests)
        turns = ((repeat, test) for repeat in range(self._repeats) for test in self._tests)
        for done, (repeat, test) in enumerate(turns):
            self._report(f"{self._model.name}: {test.label}, repeat {repeat + 1} of {self._repeats}", done, total)
            for sample in self._together(test, repeat):
                self._keep(sample)
        if self._model.approximate:
            self._note(_COUNTED_BY_CHUNKS)

    def _warm_up(self) -> None:
        """Send a first request, which may load the model."""
        self._report(f"{self._model.name}: warming up", 0, 0)
        for _ in self._model.stream(Request([Message("user", "Hello")], max_tokens=4)):
            pass

    def _together(self, test: Test, repeat: int) -> Iterator[Sample]:
        began = time.perf_counter()
        with ThreadPoolExecutor(test.batch) as pool:
            lanes = list(pool.map(lambda lane: list(self._conversation(test, repeat, lane)), range(test.batch)))
        seconds = time.perf_counter() - began
        samples = [sample for lane in lanes for sample in lane]
        yield from samples
        if test.batch > 1:
            yield Sample(self._model.name, replace(test, kind="throughput"), _throughput(samples, seconds))

    def _conversation(self, test: Test, repeat: int, lane: int) -> Iterator[Sample]:
        workload = self._workloads["conversation" if test.kind == "chat" else test.name]
        if test.kind == "chat":
            workload = chat.in_mode(workload, test.name)
        model = self._model
        yield from chat.measure(model, model.name, test, workload, repeat, model.count, lane=lane, salt=self.run.id)


def _throughput(samples: Sequence[Sample], seconds: float) -> dict[str, float]:
    tokens = sum(sample.values["answer_tokens"] + sample.values["thinking_tokens"] for sample in samples)
    return {"tokens_per_second": tokens / seconds, "requests_per_second": len(samples) / seconds, "seconds": seconds}
