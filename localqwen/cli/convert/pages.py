"""What `localqwen convert` prints: the list of output formats, a forecast, a report."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from types import ModuleType
from typing import TYPE_CHECKING, Any

from localqwen.cli import quality
from localqwen.cli.format import aligned, readable_bytes

if TYPE_CHECKING:
    from convert import Report
    from convert.output.forecast import Forecast


def show_list(converter: ModuleType, as_json: bool) -> None:
    """Print all output formats, as the flags spell them."""
    gguf = [(f"--quant {each.name}", each.meaning) for each in converter.quants.QUANTIZATIONS.values()]
    schemes = converter.mlx_schemes
    mlx = [(f"--bits {bits}", f"affine, groups of {', '.join(map(str, schemes.GROUP_SIZES))}") for bits in schemes.BITS]
    mlx.append((f"--bits {schemes.WHOLE}", "a copy in 16 bit"))
    mlx += [(f"--mode {name}", f"{bits} bit, groups of {group}") for name, (group, bits) in schemes.FIXED_MODES.items()]
    mlx += [(f"--recipe {name}", f"{low} bit, {high} where they matter most")
            for name, (low, high) in schemes.RECIPES.items()]  # fmt: skip
    if as_json:
        sys.stdout.write(json.dumps({"gguf": dict(gguf), "mlx": dict(mlx)}, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(f"GGUF\n{aligned(gguf)}\n\nMLX (--to mlx)\n{aligned(mlx)}\n")


def show_forecast(forecast: Forecast, as_json: bool) -> None:
    """Print what a conversion would write; only this goes to stdout."""
    if as_json:
        sys.stdout.write(json.dumps(forecast.json(), ensure_ascii=False) + "\n")
        return
    rows = [
        ("would write", forecast.path),
        ("size", f"{forecast.bytes:,} bytes ({readable_bytes(forecast.bytes)})"),
        ("tensors", ", ".join(f"{count} {kind}" for kind, count in forecast.tensors.items())),
        ("disk", f"{readable_bytes(forecast.disk)} free"),
        ("memory", f"about {readable_bytes(forecast.memory)}"),
    ]
    if len(forecast.files) > 1:
        rows += [("file", f"{name}: {size:,} bytes") for name, size in forecast.files.items()]
    sys.stdout.write(aligned(rows) + "\n")
    show_notes(forecast.notes)


def show_report(report: Report, as_json: bool, *, mlx: bool, measured: dict[str, Any] | None = None) -> None:
    """Print one line, and another one with the measured quality; notes about the result go to stderr."""
    if as_json:
        fields: dict[str, Any] = {**asdict(report), "path": str(report.path)}
        if not mlx:
            del fields["left_whole"]  # llama.cpp has a type for every row
        if measured:
            fields["quality"] = measured
        sys.stdout.write(json.dumps(fields, ensure_ascii=False) + "\n")
        return
    size, took = readable_bytes(report.bytes), f"{report.seconds:.1f} s"
    sys.stdout.write(f"{report.path}: {report.tensors} tensors, {report.quant}, {size}, in {took}\n")
    if measured:
        sys.stdout.write(quality.described(measured) + "\n")
    if left := report.left_whole:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        sys.stderr.write(f"left unquantized, because the groups do not divide the rows: {left[0]}{more}\n")
    show_notes(report.notes)


def show_notes(notes: tuple[str, ...]) -> None:
    """Print notes to stderr."""
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
