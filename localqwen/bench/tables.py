"""A run as rows of text, and as the object of `--json`. Pure: what is printed where is the command's business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from localqwen.bench.history import Benchmark
from localqwen.bench.samples import Row, bandwidth_share, rows
from localqwen.bench.stats import Summary

Cells = tuple[str, ...]
SPEED_HEAD = ("model", "test", "tokens/s", "mean", "±", "ms per token p5", "median", "p95", "of bandwidth")


def speed(run: Benchmark) -> list[Cells]:
    """Raw speed; without rows where none was measured. `tokens/s` is the median over the repeats."""
    found = [_speed_row(run, row) for row in rows(run.samples) if row.test.kind in ("prefill", "decode")]
    return [SPEED_HEAD, *found] if found else []


def _speed_row(run: Benchmark, row: Row) -> Cells:
    tokens = row.metrics["tokens_per_second"]
    share = bandwidth_share(row, run.subject(row.subject))
    latency = [f"{1000 * value:.1f}" for value in (row.latency.p5, row.latency.median, row.latency.p95)] if (
        row.latency
    ) else ["", "", ""]  # fmt: skip
    return (
        row.subject,
        row.test.label,
        number(tokens.median),
        number(tokens.mean),
        number(tokens.deviation) if tokens.count > 1 else "",
        *latency,
        f"{share:.0%}" if share is not None else "",
    )


def number(value: float) -> str:
    """Three or four digits that matter."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def models(run: Benchmark) -> list[Cells]:
    """One line per subject: what it is, and what it took."""
    head = ("model", "engine", "file", "size", "quant", "threads", "context", "load s", "peak memory", "sha256")
    found = {(row.subject, row.test.kind): row for row in rows(run.samples)}
    lines = []
    for subject in run.subjects:
        load, memory = (found.get((subject.label, kind)) for kind in ("load", "memory"))
        lines.append(
            (
                subject.label,
                subject.engine,
                subject.file or subject.url,
                gigabytes(subject.bytes),
                subject.quant,
                str(subject.threads or ""),
                f"{subject.context_length:,}" if subject.context_length else "",
                f"{load.metrics['load_ms'].median / 1000:.2f}" if load else "",
                gigabytes(_median(memory, "peak_memory")),
                subject.sha256[:12],
            )
        )
    return [head, *lines] if lines else []


def _median(row: Row | None, metric: str) -> float:
    return row.metrics[metric].median if row and metric in row.metrics else 0.0


def gigabytes(count: float) -> str:
    """In GB, small ones in MB; "" for nothing known."""
    if not count:
        return ""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def title(run: Benchmark) -> str:
    """The first line of every report: what a process was held to comes before anything else."""
    machine = run.machine
    where = f"{machine['chip']}, {machine['cores']} cores, {machine['memory'] / 1e9:.0f} GB, {machine['system']}"
    if run.held:
        where = f"held to {run.held}, as a stand-in on {where}"
    return f"{run.id}: {where}"


def state(run: Benchmark) -> str:
    return "" if run.complete else "stopped before its end: what was measured is kept"


def as_json(run: Benchmark) -> dict[str, Any]:
    """The object of `--json`: the head, the subjects, and a row per test with statistics and every sample."""
    return {
        **run.head(),
        "complete": run.complete,
        "notes": list(run.notes),
        "subjects": [asdict(subject) for subject in run.subjects],
        "rows": [_row_json(run, row) for row in rows(run.samples)],
        "verdicts": [dict(verdict) for verdict in run.verdicts],
    }


def _row_json(run: Benchmark, row: Row) -> dict[str, Any]:
    share = bandwidth_share(row, run.subject(row.subject))
    return {
        "subject": row.subject,
        "test": asdict(row.test),
        "metrics": {name: asdict(value) for name, value in row.metrics.items()},
        "latency_seconds": asdict(row.latency) if row.latency else None,
        "bandwidth_share": share,
        "samples": [sample.to_json() for sample in row.samples],
    }


def markdown(lines: Sequence[Cells]) -> str:
    head, *body = lines
    cells = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in body]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *cells])


def csv_rows(run: Benchmark) -> list[list[str]]:
    """One line per metric of a row: the shape that spreadsheets and data frames pivot."""
    head = ["run", "subject", "kind", "name", "prompt", "generate", "depth", "batch", "turn", "metric"]
    statistics = list(Summary.__dataclass_fields__)
    lines = [head + statistics]
    for row in rows(run.samples):
        test = asdict(row.test)
        known = [run.id, row.subject, *(str(test[name]) for name in head[2:9])]
        for metric, value in row.metrics.items():
            lines.append([*known, metric, *(f"{getattr(value, each):.6g}" for each in statistics)])
    return lines


def all_tables(run: Benchmark) -> list[list[Cells]]:
    """In the order of a report; empty ones are those of what was not measured."""
    return [models(run), speed(run)]
