"""The tests and results of a benchmark, as values: one schema for engines in this process and for servers.

A sample is one measurement and never changes; statistics are computed from samples when they are shown (`rows`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from localqwen.bench.stats import Summary, summary

#: Metric -> whether more is better. Names carry their unit; speeds are tokens per second.
METRICS = {
    "tokens_per_second": True,
    "prompt_per_second": True,
    "first_token_ms": False,
    "first_answer_ms": False,
    "total_ms": False,
    "thinking_tokens": None,
    "thinking_share": None,
    "thinking_time_share": None,
    "answer_tokens": None,
    "load_ms": False,
    "peak_memory": False,
    "requests_per_second": True,
    "joules_per_token": False,
    "perplexity": False,
    "kl_mean": False,
    "kl_p99": False,
    "top1": True,
}
#: Those of the metrics that another program on the machine does not change.
TIMELESS = {
    "thinking_tokens",
    "thinking_share",
    "answer_tokens",
    "peak_memory",
    "perplexity",
    "kl_mean",
    "kl_p99",
    "top1",
}


@dataclass(frozen=True, order=True)
class Test:
    """What is measured. `kind` is prefill, decode, load, chat, workload, sustain or quality; `name` is a variant of
    this kind (a workload, a thinking mode); lengths are in tokens, 0 if they do not apply."""

    __test__ = False  # tells pytest that this class is not a test case

    kind: str
    name: str = ""
    prompt: int = 0
    generate: int = 0
    depth: int = 0
    batch: int = 1
    turn: int = 0

    @property
    def label(self) -> str:
        """Return the name of the test in tables, as in `prefill 512`, `decode 128 at 4,096 x 4` or
        `chat budget 256, turn 2`."""
        size = {"prefill": self.prompt, "decode": self.generate}.get(self.kind, 0)
        words = [self.kind, self.name, f"{size:,}" if size else ""]
        text = " ".join(word for word in words if word)
        text += f" at {self.depth:,}" if self.depth else ""
        text += f" x {self.batch}" if self.batch > 1 else ""
        return text + (f", turn {self.turn}" if self.turn else "")


@dataclass(frozen=True)
class Sample:
    """One measurement of one subject. `values` are metrics by name (METRICS); `latencies` are the seconds between two
    tokens; `series` are rows over the time of an endurance run."""

    subject: str
    test: Test
    values: Mapping[str, float]
    latencies: tuple[float, ...] = ()
    series: tuple[Mapping[str, float | None], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the sample as JSON."""
        rounded = [float(f"{value:.6g}") for value in self.latencies]
        test = {name: value for name, value in asdict(self.test).items() if value or name == "kind"}
        data: dict[str, Any] = {"subject": self.subject, "test": test, "values": dict(self.values)}
        data |= {"latencies": rounded} if rounded else {}
        return data | ({"series": [dict(point) for point in self.series]} if self.series else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sample:
        """Return the sample that `to_json` wrote. Raise KeyError, TypeError or ValueError if the data has another
        shape."""
        values = {str(name): float(value) for name, value in data["values"].items()}
        latencies = tuple(map(float, data.get("latencies", ())))
        return cls(str(data["subject"]), Test(**data["test"]), values, latencies, tuple(data.get("series", ())))


@dataclass(frozen=True)
class Subject:
    """What is measured: a model file on an engine, or a server. `bytes` counts the weights on disk, `active_bytes`
    those that one token uses, `kv_bytes` the memory of each token of context; 0 if a server does not report them.
    `settings` are those of the engine."""

    label: str
    engine: str
    file: str = ""
    sha256: str = ""
    quant: str = ""
    bytes: int = 0
    active_bytes: int = 0
    kv_bytes: float = 0
    parameters: int = 0
    threads: int = 0
    context_length: int = 0
    bandwidth: float = 0
    url: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def bytes_per_token(self, depth: float) -> float:
        """Return the bytes that decoding one token reads from memory: weights, keys and values."""
        return self.active_bytes + depth * self.kv_bytes


@dataclass(frozen=True)
class Row:
    """All samples of one test of one subject. `latency` summarizes the seconds between two tokens, over all repeats."""

    subject: str
    test: Test
    metrics: Mapping[str, Summary]
    latency: Summary | None = None
    samples: Sequence[Sample] = field(default=(), repr=False)


def rows(samples: Iterable[Sample]) -> list[Row]:
    """Return a row for each test of each subject, in the order of their first samples."""
    groups: dict[tuple[str, Test], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.subject, sample.test), []).append(sample)
    return [_row(subject, test, group) for (subject, test), group in groups.items()]


def _row(subject: str, test: Test, group: Sequence[Sample]) -> Row:
    names = dict.fromkeys(name for sample in group for name in sample.values)
    metrics = {name: summary([s.values[name] for s in group if name in s.values]) for name in names}
    latencies = [latency for sample in group for latency in sample.latencies]
    return Row(subject, test, metrics, summary(latencies) if latencies else None, tuple(group))


def bandwidth_share(row: Row, subject: Subject) -> float | None:
    """Return the share of the measured memory bandwidth that decoding reaches: it reads the weights once for all runs
    of a batch, keys and values for each run. None if it does not apply or was not measured."""
    speed = row.metrics.get("tokens_per_second")
    if row.test.kind != "decode" or not subject.bandwidth or not subject.active_bytes or speed is None:
        return None
    passes = speed.median / row.test.batch
    depth = (row.test.depth + row.test.generate / 2) * row.test.batch
    return passes * subject.bytes_per_token(depth) / subject.bandwidth
