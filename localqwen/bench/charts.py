"""The charts of a report, as PNG. Matplotlib draws them; it comes with `pip install localqwen[bench]`."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from localqwen.bench.history import Benchmark
from localqwen.bench.samples import Row, rows
from localqwen.bench.tables import gigabytes
from localqwen.errors import EngineUnavailable

#: The colours of Okabe and Ito ("Color Universal Design", 2008): readers with colour blindness can distinguish them.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_SIZE = (7.2, 3.8)
_DPI = 144
_BAR_HEIGHT = 0.28
_LONG = 44  # characters of a legend's entry that leave room for one beside it


@dataclass(frozen=True)
class Chart:
    """One chart. `name` is the name of its file; `caption` describes it, also for readers who cannot see it."""

    name: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Line:
    """All rows of one subject of one run, under the name in the legend."""

    name: str
    rows: Sequence[Row]
    bytes: int
    colour: str

    def of(self, kind: str) -> list[Row]:
        """Return the rows whose test is of this kind."""
        return [row for row in self.rows if row.test.kind == kind]


@dataclass(frozen=True)
class Series:
    """Rows that belong together in one chart: the colour stands for the model, the style for the variation of the
    test."""

    label: str
    rows: Sequence[Row]
    colour: str
    style: str


_STYLES = ("-", "--", ":", "-.")


def draw(runs: Sequence[Benchmark]) -> list[Chart]:
    """Return the charts of everything that was measured. Raise EngineUnavailable if matplotlib is missing."""
    lines = list(_lines(runs))
    drawers = (_quality, _speed_by_depth, _prefill, _latency, _waiting, _thinking, _over_time)
    return [chart for drawer in drawers if (chart := drawer(lines)) is not None]


def _lines(runs: Sequence[Benchmark]) -> Iterator[Line]:
    colours = cycle(COLOURS)
    labels = Counter(subject.label for run in runs for subject in run.subjects)
    for run in runs:
        found = rows(run.samples)
        for subject in run.subjects:
            name = f"{subject.label} ({run.id})" if labels[subject.label] > 1 else subject.label
            mine = [row for row in found if row.subject == subject.label]
            yield Line(name, mine, subject.bytes, next(colours))


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as exc:
        raise EngineUnavailable("charts need matplotlib, which is not installed", "pip install matplotlib") from exc
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _chart(name: str, title: str, caption: str, paint: Callable[[Any], None], bars: int = 0) -> Chart:
    """Draw one chart and return it as PNG. `bars` make it higher; the legend, if there is one, stands above."""
    pyplot = _pyplot()
    size = (_SIZE[0], max(_SIZE[1], 1.4 + _BAR_HEIGHT * bars))
    figure, axes = pyplot.subplots(figsize=size, dpi=_DPI, layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    paint(axes)
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1 or (labels and not bars):
        columns = 1 if max(map(len, labels)) > _LONG else 2
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize="small")
    target = io.BytesIO()
    figure.savefig(target, format="png")
    pyplot.close(figure)
    return Chart(name, title, caption, target.getvalue())


def _quality(lines: Sequence[Line]) -> Chart | None:
    """Draw quality against speed; the size of a dot is that of the file."""
    found = [(line, row) for line in lines for row in line.of("quality")]
    if not found:
        return None

    def paint(axes: Any) -> None:
        largest = max(line.bytes for line, _ in found) or 1
        for line, row in found:
            decodes = [each for each in line.of("decode") if not each.test.depth and each.test.batch == 1]
            speed = decodes[0].metrics["tokens_per_second"].median if decodes else 0.0
            text = f"{line.name}: {gigabytes(line.bytes)}, top-1 {row.metrics['top1'].median:.1%}"
            area = 40 + 360 * line.bytes / largest
            axes.scatter(speed, row.metrics["kl_mean"].median, s=area, color=line.colour, alpha=0.8)
            axes.scatter([], [], s=40, color=line.colour, label=text)  # the dot of the legend always has the same size
        axes.margins(0.25)
        worst = max(row.metrics["kl_mean"].median for _, row in found) or 0.01
        axes.set_ylim(-0.12 * worst, 1.25 * worst)  # nothing is below 0, but a dot at 0 needs room
        axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 1.25 * worst])
        axes.set(xlabel="decode, tokens/s", ylabel="KL divergence, nats (0: as the reference)")

    caption = "Further right is faster, further down is closer to the reference; the dot's area is the file's size."
    return _chart("quality", "Quality against speed and size", caption, paint)


def _grouped(found: Sequence[Row], key: Callable[[Row], int]) -> Iterator[tuple[int, tuple[int, list[Row]]]]:
    """Number the values from 0, in the order of the key."""
    values = sorted({key(row) for row in found})
    return enumerate((value, [row for row in found if key(row) == value]) for value in values)


def _speed_by_depth(lines: Sequence[Line]) -> Chart | None:
    series = [
        Series(line.name + (f", {batch} at once" if batch > 1 else ""), found, line.colour, _STYLES[number % 4])
        for line in lines
        for number, (batch, found) in _grouped(line.of("decode"), lambda row: row.test.batch)
    ]
    caption = "Median tokens per second of all answers together; bars are one standard deviation over the repeats."
    return _speeds(series, "depth", "Decode", caption, "tokens that lie in the context", lambda row: row.test.depth)


def _prefill(lines: Sequence[Line]) -> Chart | None:
    series = [
        Series(line.name + (f", at {depth:,}" if depth else ""), found, line.colour, _STYLES[number % 4])
        for line in lines
        for number, (depth, found) in _grouped(line.of("prefill"), lambda row: row.test.depth)
    ]
    caption = "Median tokens per second at which a prompt is read; bars are one standard deviation over the repeats."
    return _speeds(series, "prefill", "Prefill", caption, "tokens of the prompt", lambda row: row.test.prompt)


def _speeds(
    series: Sequence[Series], name: str, title: str, caption: str, along: str, place: Callable[[Row], int]
) -> Chart | None:
    """Draw lines for several places, bars for one."""
    if not series:
        return None
    places = sorted({place(row) for each in series for row in each.rows})

    def lines(axes: Any) -> None:
        for each in series:
            ordered = sorted(each.rows, key=place)
            speeds = [row.metrics["tokens_per_second"] for row in ordered]
            axes.errorbar(
                [place(row) for row in ordered], [speed.median for speed in speeds],
                yerr=[speed.deviation for speed in speeds], marker="o", capsize=3,
                label=each.label, color=each.colour, linestyle=each.style,
            )  # fmt: skip
        axes.set(xlabel=along, ylabel="tokens/s")
        axes.set_ylim(bottom=0)
        axes.set_xticks(places, [f"{each:,}" for each in places])

    def bars(axes: Any) -> None:
        for index, each in enumerate(series):
            speed = each.rows[0].metrics["tokens_per_second"]
            axes.barh(index, speed.median, xerr=speed.deviation, capsize=3, color=each.colour)
        axes.set_yticks(range(len(series)), [each.label for each in series])
        axes.invert_yaxis()
        axes.set(xlabel=f"tokens/s; {places[0]:,} {along}")

    return _chart(name, title, caption, lines if len(places) > 1 else bars, 0 if len(places) > 1 else len(series))


def _latency(lines: Sequence[Line]) -> Chart | None:
    found = [
        (line, row, _STYLES[number % 4])
        for line in lines
        for number, row in enumerate(row for row in line.of("decode") if row.latency and row.test.batch == 1)
    ]
    if not found:
        return None

    def paint(axes: Any) -> None:
        for line, row, style in found:
            times = sorted(1000 * latency for sample in row.samples for latency in sample.latencies)
            shares = [100 * (place + 1) / len(times) for place in range(len(times))]
            label = f"{line.name}, {row.test.label}"
            axes.step(times, shares, where="post", label=label, color=line.colour, linestyle=style)
        axes.set(xlabel="milliseconds between two tokens", ylabel="% of tokens that came as soon", ylim=(0, 100))
        axes.set_xlim(left=0)

    caption = "How evenly tokens come: the steeper, the steadier; a long tail to the right is felt as stutter."
    return _chart("latency", "Time between two tokens", caption, paint)


_WAITS = (("first_token_ms", "until the first token"), ("first_answer_ms", "until the answer begins"))


def _waiting(lines: Sequence[Line]) -> Chart | None:
    found = [(line, row) for line in lines for kind in ("chat", "workload") for row in line.of(kind)]
    found = [(line, row) for line, row in found if "first_token_ms" in row.metrics]
    if not found:
        return None

    def paint(axes: Any) -> None:
        for index, (_, row) in enumerate(found):
            before = 0.0
            for shade, (metric, label) in enumerate(_WAITS):
                if metric in row.metrics:
                    until = row.metrics[metric].median / 1000
                    width = max(until - before, 0)
                    axes.barh(index, width, left=before, color=COLOURS[shade], label="" if index else label)
                    before += width
        names = [f"{line.name}: {row.test.label}" if len(lines) > 1 else row.test.label for line, row in found]
        axes.set_yticks(range(len(found)), names)
        axes.invert_yaxis()
        axes.set(xlabel="seconds")

    caption = "Seconds from the request; what lies between the two is thinking."
    return _chart("waiting", "What a person waits for", caption, paint, len(found))


def _thinking(lines: Sequence[Line]) -> Chart | None:
    found = [(line, row) for line in lines for row in line.of("chat") if "thinking_share" in row.metrics]
    if not found:
        return None

    def paint(axes: Any) -> None:
        for index, (_, row) in enumerate(found):
            share = 100 * row.metrics["thinking_share"].median
            axes.barh(index, share, color=COLOURS[0], label="" if index else "thinking")
            axes.barh(index, 100 - share, left=share, color=COLOURS[4], label="" if index else "answer")
        names = [f"{line.name}: {row.test.label}" if len(lines) > 1 else row.test.label for line, row in found]
        axes.set_yticks(range(len(found)), names)
        axes.invert_yaxis()
        axes.set(xlabel="% of the tokens", xlim=(0, 100))

    return _chart(
        "thinking", "Thinking and answer", "Which share of the tokens was thinking, median.", paint, len(found)
    )


def _over_time(lines: Sequence[Line]) -> Chart | None:
    found = [
        (line, number, sample)
        for line in lines
        for row in line.of("sustain")
        for number, sample in enumerate(row.samples)
        if sample.series
    ]
    if not found:
        return None

    def paint(axes: Any) -> None:
        for line, number, sample in found:
            times = [point["seconds"] for point in sample.series]
            speeds = [point["tokens_per_second"] for point in sample.series]
            label = line.name + (f", repeat {number + 1}" if number else "")
            axes.plot(times, speeds, color=line.colour, linestyle=_STYLES[number % 4], label=label)
        axes.set(xlabel="seconds", ylabel="tokens/s")
        axes.set_ylim(bottom=0)
        _temperature(axes, [sample.series for *_, sample in found])

    caption = "Decoding without a pause. A line that falls is heat, or another program."
    return _chart("sustain", "Speed over time", caption, paint)


def _temperature(axes: Any, series: Sequence[Sequence[Any]]) -> None:
    """Draw the temperature on its own axis, if the machine reports it."""
    warm = [[(p["seconds"], p["celsius"]) for p in points if p.get("celsius") is not None] for points in series]
    if not any(warm):
        return
    beside = axes.twinx()
    for points in filter(None, warm):
        beside.plot(*zip(*points, strict=True), color="#999999", linestyle="--", linewidth=1)
    beside.set(ylabel="°C (dashed)")
    beside.spines[["top"]].set_visible(False)
