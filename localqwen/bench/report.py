"""Write charts as PNG files, and one HTML file that contains everything and needs no network, now or in ten years."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from localqwen.bench import charts, tables
from localqwen.bench.charts import Chart
from localqwen.bench.history import Benchmark
from localqwen.bench.tables import Cells
from localqwen.errors import StorageError

#: A browser may show the images inside the page, and load nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.first { font-weight: 600; } .held { background: #fff3d6; padding: .5rem .75rem; border-left: 4px solid #e69f00; }
figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption, footer { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; margin-bottom: 1.5rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { border-bottom: 2px solid #888; } td.number { text-align: right; }
.pass { color: #00704f; font-weight: 600; } .fail { color: #b3261e; font-weight: 600; }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #16181c; } figcaption, footer { color: #aaa; } img { border-radius: .4rem; }
  .held { background: #3a2f12; } th, td { border-color: #3a3d44; } .pass { color: #4cc99b; } .fail { color: #ff8a80; }
}
"""


def write(runs: Sequence[Benchmark], folder: Path) -> list[Path]:
    """Write the report and its charts into a folder and return the written files, the report first. Raise StorageError
    if the folder cannot be written, EngineUnavailable if matplotlib is missing."""
    drawn = charts.draw(runs)
    files = {"report.html": page(runs, drawn).encode(), **{f"{chart.name}.png": chart.png for chart in drawn}}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as exc:
        raise StorageError(f"cannot write {folder}: {exc.strerror}", "name another folder with --out DIR") from exc
    return [folder / name for name in files]


def page(runs: Sequence[Benchmark], drawn: Sequence[Chart]) -> str:
    """Return the whole HTML file."""
    body = [*map(_head, runs), *map(_figure, drawn), *(part for run in runs for part in _tables(run, len(runs) > 1))]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width">\n<title>localqwen bench</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>localqwen bench</h1>\n"
        + "\n".join(body)
        + f"\n<footer>{_footer(runs)}</footer>\n</body>\n</html>\n"
    )


def _head(run: Benchmark) -> str:
    """Return the head of the page. The limits of the process come first, so that nobody overlooks them."""
    kind = "first held" if run.held else "first"
    lines = [f'<p class="{kind}">{escape(tables.title(run))}</p>']
    lines += [f"<p>{escape(text)}</p>" for text in (tables.state(run), *run.notes) if text]
    return "\n".join(lines)


def _figure(chart: Chart) -> str:
    source = base64.b64encode(chart.png).decode()
    return (
        f'<h2>{escape(chart.title)}</h2>\n<figure id="{chart.name}"><img alt="{escape(chart.title)}: '
        f'{escape(chart.caption)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
    )


def _tables(run: Benchmark, several: bool) -> list[str]:
    heading = f"Numbers of {run.id}" if several else "Numbers"
    found = [f'<div class="wide">{_table(lines)}</div>' for lines in tables.all_tables(run) if lines]
    return [f"<h2>{escape(heading)}</h2>", *found]


def _table(lines: Sequence[Cells]) -> str:
    head, *body = lines
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rows = "\n".join("<tr>" + "".join(map(_cell, line)) + "</tr>" for line in body)
    return f"<table>\n<tr>{top}</tr>\n{rows}\n</table>"


def _cell(text: str) -> str:
    number = text.replace(",", "").replace(".", "").rstrip("%").isdecimal()
    kind = "number" if number else text if text in ("pass", "fail") else ""
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _footer(runs: Sequence[Benchmark]) -> str:
    parts = []
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
        parts.append(f"{escape(run.id)}, {escape(run.created)}: {escape(versions)}, {escape(run.machine['release'])}")
    return "<br>".join(parts)
