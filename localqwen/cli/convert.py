"""`localqwen convert`: an official checkpoint folder becomes a GGUF file or an MLX folder."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from localqwen.cli import quality
from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.options import json_option
from localqwen.cli.progress import conversion_bar
from localqwen.cli.sizes import readable_bytes
from localqwen.errors import UsageError

if TYPE_CHECKING:
    from convert import Report

#: Bits -> the GGUF quantisation that a user of `--bits` probably wants; q4_k_m for all others.
_LIKE_BITS = {5: "q5_k_m", 6: "q6_k", 8: "q8_0", 16: "bf16"}


def _completing(
    values: Callable[[ModuleType], object],
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Offers what the converter knows; it is imported only when a shell asks."""

    def complete(context: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
        from localqwen.models import provide

        known = values(provide.converter())
        assert isinstance(known, tuple | dict)
        return [CompletionItem(str(value)) for value in known if str(value).startswith(typed)]

    return complete


@click.command("convert", cls=ConfiguredCommand)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "kind",
    type=click.Choice(["gguf", "mlx"]),
    default="gguf",
    show_default=True,
    help="A file for llama.cpp, or a folder for MLX.",
)
@click.option(
    "--quant",
    default="q8_0",
    show_default=True,
    metavar="NAME",
    shell_complete=_completing(lambda converter: converter.QUANTIZATIONS),
    help="GGUF: q8_0, q4_k_m, bf16, f16, …",
)
@click.option(
    "--bits",
    type=int,
    metavar="N",
    shell_complete=_completing(lambda converter: (*converter.mlx_schemes.BITS, converter.mlx_schemes.WHOLE)),
    help="MLX: 2, 3, 4, 5, 6 or 8 per weight; 16, or nothing, for a copy in 16 bit.",
)
@click.option(
    "--group-size",
    type=int,
    metavar="N",
    shell_complete=_completing(lambda converter: converter.mlx_schemes.GROUP_SIZES),
    help="MLX: 32, 64 or 128 weights share a scale; 64 unless said.",
)
@click.option(
    "--mode",
    default="affine",
    metavar="NAME",
    shell_complete=_completing(lambda converter: converter.mlx_schemes.MODES),
    help="MLX: affine, mxfp4, nvfp4 or mxfp8; the last three fix bits and group size.",
)
@click.option(
    "--recipe",
    metavar="NAME",
    shell_complete=_completing(lambda converter: converter.mlx_schemes.RECIPES),
    help="MLX: mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6: more bits where they matter most.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Default, here: <folder>-<QUANT>.gguf, or <folder>-MLX-<N>bit.",
)
@click.option("--force", is_flag=True, help="Replace PATH if it exists; a folder only if a conversion made it.")
@click.option("--verify", is_flag=True, help="Then measure how far the result is from SOURCE (localqwen quality).")
@json_option
@click.pass_context
def command(
    context: click.Context,
    source: Path,
    kind: str,
    quant: str,
    bits: int | None,
    group_size: int | None,
    mode: str,
    recipe: str | None,
    out: Path | None,
    force: bool,
    verify: bool,
    as_json: bool,
) -> None:
    """Turn SOURCE, a folder with an official Qwen3 checkpoint, into a GGUF file or a folder for MLX."""
    _refuse_mixture(context, kind)
    source, out = source.expanduser(), out.expanduser() if out else None
    if kind == "gguf":
        report = _to_gguf(source, out, quant, force)
    else:
        report = _to_mlx(source, out, bits, group_size, mode, recipe, force)
    measured = _verified(source, report.path) if verify else None
    if as_json:
        fields = {**asdict(report), "path": str(report.path)}
        if measured:
            fields["quality"] = measured
        if kind == "gguf":
            del fields["left_whole"]  # llama.cpp has a type for every row
        sys.stdout.write(json.dumps(fields, ensure_ascii=False) + "\n")
        return
    size, took = readable_bytes(report.bytes), f"{report.seconds:.1f} s"
    sys.stdout.write(f"{report.path}: {report.tensors} tensors, {report.quant}, {size}, in {took}\n")
    if measured:
        sys.stdout.write(quality.described(measured) + "\n")
    if left := report.left_whole:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        sys.stderr.write(f"left unquantised, because the groups do not divide the rows: {left[0]}{more}\n")


def _verified(source: Path, result: Path) -> dict[str, Any]:
    """Measured on the bundled text, and kept in the manifest. A result for MLX is compared on MLX."""
    from localqwen.models import provide

    engine = "mlx" if result.is_dir() else "llama.cpp"
    (row,) = quality.measure(str(source), (str(result),), text=quality.read_text(None), reference_engine=engine)
    values = {name: value for name, value in row.items() if name != "model"}
    provide.converter().manifest.record_quality(result, values)
    return values


def _refuse_mixture(context: click.Context, kind: str) -> None:
    """Flags of the other format, if they were typed: a configuration file may hold defaults for both."""
    typed = {name: value for name, value in context.params.items() if _is_typed(context, name)}
    if kind == "mlx" and "quant" in typed:
        bits = re.match(r"q(\d)", typed["quant"].lower())
        raise UsageError("--quant names GGUF's quantisations", f"--to mlx --bits {bits[1] if bits else 16}")
    for name in ("bits", "group_size", "mode", "recipe"):
        if kind == "gguf" and name in typed:
            flag, near = f"--{name.replace('_', '-')}", _LIKE_BITS.get(typed.get("bits", 4), "q4_k_m")
            mlx = f"{'--bits 4 ' if name == 'group_size' else ''}{flag} {typed[name]}"
            raise UsageError(f"{flag} is for MLX, a GGUF file is written", f"--quant {near}, or --to mlx {mlx}")


def _is_typed(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _to_gguf(source: Path, out: Path | None, quant: str, force: bool) -> Report:
    from localqwen.models import provide

    name = source.resolve().name
    target = out or Path(f"{name}-{quant.upper()}.gguf")
    with conversion_bar(f"{name} to {quant}") as progress:
        report: Report = provide.converter().convert(source, target, quant=quant, force=force, progress=progress)
    return report


def _to_mlx(
    source: Path, out: Path | None, bits: int | None, group_size: int | None, mode: str, recipe: str | None, force: bool
) -> Report:
    from localqwen.models import provide

    converter, name = provide.converter(), source.resolve().name
    wanted = {"bits": bits, "group_size": group_size, "mode": mode, "recipe": recipe}
    scheme = converter.mlx_schemes.scheme(**wanted).name
    target = out or Path(f"{name}-MLX-{scheme}")
    with conversion_bar(f"{name} to MLX {scheme}") as progress:
        report: Report = converter.convert_to_mlx(source, target, **wanted, force=force, progress=progress)
    return report
