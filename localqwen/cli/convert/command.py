"""`localqwen convert`: convert official weights or a GGUF file into a GGUF file or an MLX folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from localqwen.cli import quality
from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.convert import pages as convert_pages
from localqwen.cli.convert import source as convert_source
from localqwen.cli.convert.source import Source
from localqwen.cli.format import parsed_size
from localqwen.cli.model_completion import complete_names
from localqwen.cli.options import json_option
from localqwen.cli.progress import conversion_bar
from localqwen.errors import UsageError

if TYPE_CHECKING:
    from convert import Report
    from convert.output.forecast import Forecast

_MLX_FLAGS = ("bits", "group_size", "mode", "recipe")
#: Bits -> the GGUF quantization that a user of `--bits` probably wants; q4_k_m for all others.
_LIKE_BITS = {5: "q5_k_m", 6: "q6_k", 8: "q8_0", 16: "bf16"}


def _completing(
    values: Callable[[ModuleType], object],
) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return a completion of what the converter knows; the converter is imported only when a shell asks."""

    def complete(context: click.Context, option: click.Parameter, typed: str) -> list[CompletionItem]:
        from localqwen.models import converted

        known = values(converted.converter())
        assert isinstance(known, tuple | dict)
        return [CompletionItem(str(value)) for value in known if str(value).startswith(typed)]

    return complete


@click.command("convert", cls=ConfiguredCommand)
@click.argument("source", required=False, metavar="SOURCE", shell_complete=complete_names)
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
    help="MLX: 2, 3, 4, 5, 6 or 8 bits per weight; 16, or no flag, copies in 16 bit.",
)
@click.option(
    "--group-size",
    type=int,
    metavar="N",
    shell_complete=_completing(lambda converter: converter.mlx_schemes.GROUP_SIZES),
    help="MLX: 32, 64 (default) or 128 weights share a scale.",
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
    "--tensor-type", "tensor_types", multiple=True, metavar="P=T", help="Type by pattern: 'blk.*.ffn_down=q6_k'."
)
@click.option("--imatrix", type=click.Path(path_type=Path), metavar="FILE", help="GGUF: importance matrix.")
@click.option("--split", metavar="SIZE", help="GGUF: write parts of at most SIZE, such as 4GB.")
@click.option("--merge", is_flag=True, help="Only join the parts of a GGUF file (with --split: split it).")
@click.option("--dequantize", is_flag=True, help="Write the official layout in 16 bit, from MLX, FP8, AWQ, GPTQ.")
@click.option("--yarn", type=int, metavar="N", help="Extend the context: 2 for 65,536 tokens, 4 for 131,072.")
@click.option(
    "--adapter", type=click.Path(path_type=Path), metavar="DIR", help="Merge a LoRA adapter in PEFT's layout."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Default: <name>-<QUANT>.gguf or <name>-MLX-<N>bit in the current folder.",
)
@click.option("--list", "listing", is_flag=True, help="List all output formats.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and what it needs.")
@click.option("--yes", "-y", is_flag=True, help="Pull a model that is not on disk without asking.")
@click.option(
    "--force",
    is_flag=True,
    help="Replace PATH (a folder only if a conversion wrote it); allow more bits than the source has.",
)
@click.option("--verify", is_flag=True, help="Then measure how far the result is from SOURCE (localqwen quality).")
@json_option
@click.pass_context
def command(
    context: click.Context,
    /,
    source: str | None,
    kind: str,
    dry_run: bool,
    listing: bool,
    merge: bool,
    dequantize: bool,
    yes: bool,
    verify: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Convert SOURCE into a GGUF file, or a folder for MLX.

    SOURCE is a folder with an official Qwen3 checkpoint (bf16, FP8, AWQ, GPTQ), a GGUF file, a name, or a repository.
    """
    from localqwen.models import converted

    converter = converted.converter()
    if listing:
        convert_pages.show_list(converter, as_json)
        return
    if source is None:
        raise UsageError("SOURCE is missing", "localqwen convert --help")
    _refuse_mixture(context, kind)
    if verify and (merge or dequantize or dry_run or flags["adapter"]):
        raise UsageError("--verify measures only a quantization of SOURCE", "leave out --verify")
    _refuse_what_is_not_used(flags, merge=merge, dequantize=dequantize, dry_run=dry_run)
    _check_names(converter, kind, flags)
    job = _Job(converter, convert_source.find(source, yes=yes), flags)
    if merge:
        convert_pages.show_report(job.merge(), as_json, mlx=False)
    elif dequantize:
        convert_pages.show_report(job.dequantize(), as_json, mlx=False)
    elif dry_run:
        convert_pages.show_forecast(job.forecast(kind), as_json)
    else:
        report = job.to_gguf() if kind == "gguf" else job.to_mlx()
        measured = _verified(converter, job.source.path, report.path) if verify else None
        convert_pages.show_report(report, as_json, mlx=kind == "mlx", measured=measured)


def _refuse_what_is_not_used(flags: dict[str, Any], *, merge: bool, dequantize: bool, dry_run: bool) -> None:
    """Raise UsageError if a flag would change the weights: --merge and --dequantize only copy."""
    if not (merge or dequantize):
        return
    if dry_run:
        raise UsageError("--dry-run is for quantizations", "leave out --merge and --dequantize")
    if merge and dequantize:
        raise UsageError("--merge is for GGUF files, --dequantize for folders", "choose one of them")
    names = ("tensor_types", "imatrix", "yarn", "adapter", *(() if merge else ("split",)))
    if given := [name for name in names if flags[name]]:
        flag = "--" + given[0].removesuffix("s").replace("_", "-")
        alone = "--merge" if merge else "--dequantize"
        raise UsageError(f"{flag} has no effect with {alone}", f"leave out {flag}, or {alone}")


def _check_names(converter: ModuleType, kind: str, flags: dict[str, Any]) -> None:
    """Raise an error if a format is unknown, before anything is downloaded or read."""
    if kind == "mlx":
        converter.mlx_schemes.scheme(**{name: flags[name] for name in _MLX_FLAGS})
    else:
        converter.quants.quantization(flags["quant"])


class _Job:
    """One source and the flags, in the form that the converter's functions need."""

    def __init__(self, converter: ModuleType, source: Source, flags: dict[str, Any]) -> None:
        self._converter, self.source, self._flags = converter, source, flags
        self._mlx = {name: flags[name] for name in _MLX_FLAGS}
        self._parts = parsed_size(flags["split"]) if flags["split"] else None
        self._options = converter.Options(
            tuple(flags["tensor_types"]), _path(flags["imatrix"]), self._parts, flags["yarn"], _path(flags["adapter"])
        )

    def to_gguf(self) -> Report:
        quant: str = self._converter.quants.quantization(self._flags["quant"]).name
        with conversion_bar(f"{self.source.name} to {quant}") as progress:
            report: Report = self._converter.convert(
                self.source.path, self._out(f"-{quant.upper()}.gguf"), quant=quant, name=self.source.name,
                force=self._flags["force"], progress=progress, options=self._options,
            )  # fmt: skip
        return report

    def to_mlx(self) -> Report:
        scheme = self._converter.mlx_schemes.scheme(**self._mlx).name
        with conversion_bar(f"{self.source.name} to MLX {scheme}") as progress:
            report: Report = self._converter.convert_to_mlx(
                self.source.path, self._out(f"-MLX-{scheme}"), **self._mlx,
                force=self._flags["force"], progress=progress, options=self._options,
            )  # fmt: skip
        return report

    def forecast(self, kind: str) -> Forecast:
        if kind == "mlx":
            scheme = self._converter.mlx_schemes.scheme(**self._mlx).name
            out = self._out(f"-MLX-{scheme}")
            found: Forecast = self._converter.forecast_mlx(self.source.path, out, **self._mlx, options=self._options)
            return found
        quant = self._converter.quants.quantization(self._flags["quant"]).name
        out = self._out(f"-{quant.upper()}.gguf")
        force = self._flags["force"]
        forecast: Forecast = self._converter.forecast_gguf(
            self.source.path, out, quant=quant, name=self.source.name, force=force, options=self._options
        )
        return forecast

    def merge(self) -> Report:
        with conversion_bar(f"copying {self.source.name}") as progress:
            report: Report = self._converter.merge(
                self.source.path, self._out("-copy.gguf"), force=self._flags["force"], part_bytes=self._parts,
                progress=progress,
            )  # fmt: skip
        return report

    def dequantize(self) -> Report:
        with conversion_bar(f"{self.source.name} to 16 bit") as progress:
            report: Report = self._converter.dequantize(
                self.source.path, self._out("-16bit"), force=self._flags["force"], progress=progress
            )
        return report

    def _out(self, ending: str) -> Path:
        return _path(self._flags["out"]) or Path(f"{self.source.name}{ending}")


def _verified(converter: ModuleType, source: Path, result: Path) -> dict[str, Any]:
    """Return the measured quality of a result on the bundled text, and write it into the manifest. A result for MLX is
    compared on MLX."""
    engine = "mlx" if result.is_dir() else "llama.cpp"
    (row,) = quality.measure(str(source), (str(result),), text=quality.read_text(None), reference_engine=engine)
    values = {name: value for name, value in row.items() if name != "model"}
    converter.record_quality(result, values)
    return values


def _path(given: Path | None) -> Path | None:
    return given.expanduser() if given else None


def _refuse_mixture(context: click.Context, kind: str) -> None:
    """Raise UsageError if a flag of the other format was typed; a configuration file may have defaults for both."""
    typed = {name: value for name, value in context.params.items() if _is_typed(context, name)}
    if kind == "mlx" and "quant" in typed:
        bits = re.match(r"q(\d)", typed["quant"].lower())
        raise UsageError(
            "--quant is for GGUF, but a folder for MLX is written", f"--to mlx --bits {bits[1] if bits else 16}"
        )
    for name in _MLX_FLAGS:
        if kind == "gguf" and name in typed:
            flag, near = f"--{name.replace('_', '-')}", _LIKE_BITS.get(typed.get("bits", 4), "q4_k_m")
            mlx = f"{'--bits 4 ' if name == 'group_size' else ''}{flag} {typed[name]}"
            raise UsageError(f"{flag} is for MLX, but a GGUF file is written", f"--quant {near}, or --to mlx {mlx}")


def _is_typed(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE
