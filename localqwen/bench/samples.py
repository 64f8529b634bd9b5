"""What a benchmark measures and what came of it, as values: one schema for engines in this process and for servers.

A sample is one measurement and is kept as it was; statistics are made of samples when somebody looks (`rows`).
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
#: Of these, what another program on the machine does not change.
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
    """What is measured. `kind` is prefill, decode, load, chat, workload, sustain or quality; `name` says which of its
    kind (a workload, a thinking mode); lengths are tokens, 0 where they do not apply."""

    __test__ = False  # pytest: no test case

    kind: str
    name: str = ""
    prompt: int = 0
    generate: int = 0
    depth: int = 0
    batch: int = 1
    turn: int = 0

    @property
    def label(self) -> str:
        """`prefill 512`, `decode 128 at 4,096 x 4`, `chat budget 256, turn 2`."""
        size = {"prefill": self.prompt, "decode": self.generate}.get(self.kind, 0)
        words = [self.kind, self.name, f"{size:,}" if size else ""]
        text = " ".join(word for word in words if word)
        text += f" at {self.depth:,}" if self.depth else ""
        text += f" x {self.batch}" if self.batch > 1 else ""
        return text + (f", turn {self.turn}" if self.turn else "")


@dataclass(frozen=True)
class Sample:
    """One measurement of one subject. `values` are metrics by name (METRICS); `latencies` are the seconds between two
    tokens; `series` are rows over time of an endurance run."""

    subject: str
    test: Test
    values: Mapping[str, float]
    latencies: tuple[float, ...] = ()
    series: tuple[Mapping[str, float | None], ...] = ()

    def to_json(self) -> dict[str, Any]:
        rounded = [float(f"{value:.6g}") for value in self.latencies]
        test = {name: value for name, value in asdict(self.test).items() if value or name == "kind"}
        data: dict[str, Any] = {"subject": self.subject, "test": test, "values": dict(self.values)}
        data |= {"latencies": rounded} if rounded else {}
        return data | ({"series": [dict(point) for point in self.series]} if self.series else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sample:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on data of another shape."""
        values = {str(name): float(value) for name, value in data["values"].items()}
        latencies = tuple(map(float, data.get("latencies", ())))
        return cls(str(data["subject"]), Test(**data["test"]), values, latencies, tuple(data.get("series", ())))


@dataclass(frozen=True)
class Subject:
    """What is measured: a model file on an engine, or a server. `bytes` are the weights on disk, `active_bytes` those
    that one token passes through, `kv_bytes` what each token of context adds; 0 where a server does not tell.
    `settings` are the engine's own."""

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
        """What decoding one token reads from memory: weights, keys and values."""
        return self.active_bytes + depth * self.kv_bytes


@dataclass(frozen=True)
class Row:
    """All samples of one test of one subject. `latency` is of the seconds between two tokens, over all repeats."""

    subject: str
    test: Test
    metrics: Mapping[str, Summary]
    latency: Summary | None = None
    samples: Sequence[Sample] = field(default=(), repr=False)


def rows(samples: Iterable[Sample]) -> list[Row]:
    """In the order in which each test of each subject first came."""
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
    """Of the measured memory bandwidth, what decoding reaches: the weights are read once for all runs of a batch, keys
    and values for each. None where it does not apply or was not measured."""
    speed = row.metrics.get("tokens_per_second")
    if row.test.kind != "decode" or not subject.bandwidth or not subject.active_bytes or speed is None:
        return None
    passes = speed.median / row.test.batch
    depth = (row.test.depth + row.test.generate / 2) * row.test.batch
    return passes * subject.bytes_per_token(depth) / subject.bandwidth
