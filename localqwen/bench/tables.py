"""A run as rows of text, and as the object of `--json`. Pure functions: the command decides what is printed where."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from localqwen.bench import contention, workloads
from localqwen.bench.history import Benchmark
from localqwen.bench.samples import Row, bandwidth_share, rows
from localqwen.bench.stats import Summary, geometric_mean

Cells = tuple[str, ...]
SPEED_HEAD = ("model", "test", "tokens/s", "mean", "±", "ms per token p5", "median", "p95", "of bandwidth")


def speed(run: Benchmark) -> list[Cells]:
    """Return the rows of raw speed; none if it was not measured. `tokens/s` is the median over the repeats."""
    found = [_speed_row(run, row) for row in rows(run.samples) if row.test.kind in ("prefill", "decode")]
    return [SPEED_HEAD, *found] if found else []


def _speed_row(run: Benchmark, row: Row) -> Cells:
    tokens = row.metrics["tokens_per_second"]
    share = bandwidth_share(row, run.subject(row.subject))
    found = row.latency
    latency = [_per_token(value) for value in (found.p5, found.median, found.p95)] if found else ["", "", ""]
    return (
        row.subject,
        row.test.label,
        number(tokens.median),
        number(tokens.mean),
        number(tokens.deviation) if tokens.count > 1 else "",
        *latency,
        f"{share:.0%}" if share is not None else "",
    )


def _per_token(seconds: float) -> str:
    """Return a latency in milliseconds, with three digits."""
    return f"{1000 * seconds:#.3g}" if seconds < 0.1 else number(1000 * seconds)


def number(value: float) -> str:
    """Return a number with the three or four digits that matter."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if 0 < abs(value) < 1:
        return f"{value:.3g}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def models(run: Benchmark) -> list[Cells]:
    """Return one row per subject: what it is, and what it needed."""
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
    """Return bytes in GB, small ones in MB; "" if unknown."""
    if not count:
        return ""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def title(run: Benchmark) -> str:
    """Return the first line of every report: the limits of the process come before everything else."""
    machine = run.machine
    where = f"{machine['chip']}, {machine['cores']} cores, {machine['memory'] / 1e9:.0f} GB, {machine['system']}"
    if run.subjects and all(subject.url for subject in run.subjects):
        where = f"measured over the network from {where}"
    if run.held:
        where = f"limited to {run.held}, as a stand-in on {where}"
    return f"{run.id}: {where}"


def state(run: Benchmark) -> str:
    """Return what a reader must know before the numbers."""
    taken = contention.processors(run.samples)
    found = [] if run.complete else ["stopped before its end: what was measured is kept"]
    if taken is not None and taken > contention.AT_REST:
        share = f"{taken:.1f} of {run.machine['cores']} processors"
        found.append(f"other programs took {share} meanwhile, so the speeds are too low")
    return "\n".join(found)


def as_json(run: Benchmark) -> dict[str, Any]:
    """Return the object of `--json`: the head, the subjects, and a row per test with statistics and every sample."""
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
    """Return rows as a markdown table."""
    head, *body = lines
    cells = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in body]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *cells])


def csv_rows(run: Benchmark) -> list[list[str]]:
    """Return one row per metric: the shape that spreadsheets and data frames can pivot."""
    head = ["run", "subject", "kind", "name", "prompt", "generate", "depth", "batch", "turn", "metric"]
    columns = list(Summary.__dataclass_fields__)
    lines = [head + columns]
    for row in rows(run.samples):
        test = asdict(row.test)
        known = [run.id, row.subject, *(str(test[name]) for name in head[2:9])]
        for metric, value in row.metrics.items():
            lines.append([*known, metric, *(f"{getattr(value, each):.6g}" for each in columns)])
    return lines


def waits(run: Benchmark) -> list[Cells]:
    """Return the rows of waiting times: conversations and workloads, medians over the repeats."""
    head = ("model", "test", "first token", "p95", "first answer", "whole", "tokens/s", "tokens", "thinking", "of time")
    found = [row for row in rows(run.samples) if row.test.kind in ("chat", "workload")]
    if any("in_time" in row.metrics for row in found):  # the share of answers that began before their deadline
        return [(*head, "in time"), *((*_wait_row(row), _in_time(row)) for row in found)]
    return [head, *map(_wait_row, found)] if found else []


def _in_time(row: Row) -> str:
    return f"{row.metrics['in_time'].mean:.0%}" if "in_time" in row.metrics else ""


def _wait_row(row: Row) -> Cells:
    def median(metric: str, form: Callable[[float], str]) -> str:
        return form(row.metrics[metric].median) if metric in row.metrics else "none"

    first = row.metrics.get("first_token_ms")
    tokens = sum(row.metrics[name].median for name in ("answer_tokens", "thinking_tokens"))
    return (
        row.subject,
        row.test.label,
        median("first_token_ms", seconds),
        seconds(first.p95) if first else "none",
        median("first_answer_ms", seconds),
        median("total_ms", seconds),
        median("tokens_per_second", number),
        f"{tokens:,.0f}",
        median("thinking_share", lambda share: f"{share:.0%}"),
        median("thinking_time_share", lambda share: f"{share:.0%}"),
    )


def seconds(milliseconds: float) -> str:
    """Return milliseconds as text, large ones in seconds."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.2f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def suites(run: Benchmark) -> list[Cells]:
    """Return the rows of MLPerf Client's two overall figures, if all of its base tasks were measured."""
    base = {workload.name for workload in workloads.named([workloads.OVERALL])}
    lines = []
    for subject in run.subjects:
        measured = [row for row in rows(run.samples) if row.subject == subject.label and row.test.batch == 1]
        tasks = [row for row in measured if row.test.kind == "workload" and row.test.name in base]
        if len(tasks) == len(base) and all("tokens_per_second" in each.values for row in tasks for each in row.samples):
            first, speed = overall(tasks)
            lines.append((subject.label, workloads.OVERALL, seconds(first), number(speed)))
    return [("model", "geometric mean over", "first token", "tokens/s"), *lines] if lines else []


def overall(tasks: Sequence[Row]) -> tuple[float, float]:
    """Return the milliseconds to the first token and the tokens per second: geometric means over the tasks.

    Computed as mlcommons/mlperf_client does (its LLM executor, v1.5): within a task the mean time to the first token of
    all iterations, and the rate that belongs to the mean latency of the tokens after the first, which is the harmonic
    mean of the iterations' rates.
    """
    speeds = [[sample.values["tokens_per_second"] for sample in row.samples] for row in tasks]
    first = geometric_mean([row.metrics["first_token_ms"].mean for row in tasks])
    return first, geometric_mean([statistics.harmonic_mean(found) for found in speeds])


def throughput(run: Benchmark) -> list[Cells]:
    """Return the rows of a server that answers several requests at the same time."""
    found = [row for row in rows(run.samples) if row.test.kind == "throughput"]
    lines = [
        (row.subject, row.test.name, str(row.test.batch), *(number(row.metrics[name].median) for name in _THROUGHPUT))
        for row in found
    ]
    return [("model", "workload", "at once", "tokens/s together", "requests/s"), *lines] if lines else []


_THROUGHPUT = ("tokens_per_second", "requests_per_second")


def endurance(run: Benchmark) -> list[Cells]:
    """Return the rows of endurance runs; what the machine does not report is "not available"."""
    head = ("model", "time", "tokens/s", "first", "last", "held", "slope/min", "°C", "MHz", "J/token", "cooled s")
    found = [row for row in rows(run.samples) if row.test.kind == "sustain"]
    return [head, *map(_endurance_row, found)] if found else []


def _endurance_row(row: Row) -> Cells:
    value = {name: summary.median for name, summary in row.metrics.items()}

    def between(*names: str) -> str:
        return " to ".join(f"{value[name]:.0f}" for name in names) if names[0] in value else NOT_AVAILABLE

    return (
        row.subject,
        seconds(1000 * value["seconds"]) if value["seconds"] < 60 else f"{value['seconds'] / 60:.1f} min",
        *(number(value[name]) for name in ("tokens_per_second", "first_per_second", "last_per_second")),
        f"{value['held_share']:.0%}",
        f"{value['slope_per_minute']:+.2%}" if "slope_per_minute" in value and value["seconds"] >= 60 else "",
        between("celsius_first", "celsius_max"),
        between("megahertz_first", "megahertz_min"),
        f"{value['joules_per_token']:.3g}" if "joules_per_token" in value else NOT_AVAILABLE,
        f"{value['cool_down_seconds']:.0f}",
    )


NOT_AVAILABLE = "not available"


def quality(run: Benchmark) -> list[Cells]:
    """Return the rows of quality."""
    head = ("model", "reference", "size", "KL mean", "KL p99", "top-1", "perplexity", "of the reference")
    found = [row for row in rows(run.samples) if row.test.kind == "quality"]
    lines = []
    for row in found:
        value = {name: summary.median for name, summary in row.metrics.items()}
        size = gigabytes(run.subject(row.subject).bytes)
        means = (f"{value['kl_mean']:.5f}", f"{value['kl_p99']:.4f}", f"{value['top1']:.2%}")
        perplexities = (f"{value['perplexity']:.3f}", f"{value['reference_perplexity']:.3f}")
        lines.append((row.subject, row.test.name, size, *means, *perplexities))
    return [head, *lines] if lines else []


def verdicts(run: Benchmark) -> list[Cells]:
    """Return the rows of a profile's limits: pass or fail."""
    lines = [
        (
            str(verdict["subject"]),
            str(verdict["limit"]),
            _with_unit(verdict["limit"], verdict["allowed"]),
            "not measured" if verdict["measured"] is None else _with_unit(verdict["limit"], verdict["measured"]),
            "pass" if verdict["passed"] else "fail",
        )
        for verdict in run.verdicts
    ]
    return [("model", f"limit of {run.profile}", "allowed", "measured", ""), *lines] if lines else []


def _with_unit(limit: str, value: float) -> str:
    match limit:
        case "memory":
            return gigabytes(value)
        case "threads":
            return f"{value:.0f}"
        case "first_token_ms" | "first_answer_ms":
            return seconds(value)
    return number(value)


def all_tables(run: Benchmark) -> list[list[Cells]]:
    """Return all tables in the order of a report; the table of what was not measured is empty."""
    makers = (verdicts, quality, models, speed, waits, suites, throughput, endurance)
    return [maker(run) for maker in makers]
