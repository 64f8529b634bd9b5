"""`localqwen quality`: how far a conversion is from its source, by what both predict on a text."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.format import aligned
from localqwen.cli.options import json_option
from localqwen.cli.progress import conversion_bar, count_bar
from localqwen.errors import UsageError

if TYPE_CHECKING:
    from localqwen.engines.engine import Engine
    from localqwen.models.resolve import ResolvedModel

#: Windows are shorter; a larger context would only cost memory.
CONTEXT_LENGTH = 512


@click.command("quality", cls=ConfiguredCommand)
@click.argument("reference")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--text", type=click.Path(path_type=Path), metavar="FILE", help="Measure on this text, not the bundled one."
)
@click.option("--engine", metavar="NAME", help="Engine of each MODEL (localqwen doctor).")
@click.option("--reference-engine", metavar="NAME", help="Engine of REFERENCE.")
@json_option
def command(
    reference: str,
    models: tuple[str, ...],
    text: Path | None,
    engine: str | None,
    reference_engine: str | None,
    as_json: bool,
) -> None:
    """Measure how far each MODEL is from REFERENCE: perplexity, KL divergence, how often both think alike.

    Names, .gguf files and folders, on any engine: an MLX folder beside a GGUF file beside the checkpoint that both were
    made from. A checkpoint folder is read in bf16.
    """
    rows = measure(reference, models, text=read_text(text), engine=engine, reference_engine=reference_engine)
    if as_json:
        sys.stdout.write(json.dumps({"reference": reference, "models": rows}, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(page(rows) + "\n")


def read_text(path: Path | None) -> str:
    """Raises UsageError for what is no text."""
    from localqwen.bench import quality

    if path is None:
        return quality.bundled_text()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read {path}: {exc}", "give a UTF-8 text file") from exc


def measure(
    reference: str,
    models: tuple[str, ...],
    *,
    text: str,
    engine: str | None = None,
    reference_engine: str | None = None,
) -> list[dict[str, Any]]:
    """One row per model. The reference is read once; no two models are in memory together."""
    from localqwen.bench.quality import Reference, compare

    with opened(reference, reference_engine) as source, count_bar(f"reading {reference}") as progress:
        known = Reference(source, text, progress)
    rows = []
    with known:
        for model in models:
            with opened(model, engine) as measured, count_bar(f"reading {model}") as progress:
                rows.append({"model": model, "engine": measured.name, **asdict(compare(known, measured, progress))})
    return rows


@contextlib.contextmanager
def opened(name: str, engine: str | None) -> Iterator[Engine]:
    """Open a model for measuring. Raise NotPulled, and what opening raises."""
    from localqwen.chat import load
    from localqwen.chat.load_options import LoadOptions
    from localqwen.engines import selection

    with contextlib.ExitStack() as stack:
        model = stack.enter_context(in_bf16(selection.resolve(name, engine)))
        opened = load.open_engine(model, LoadOptions(context_length=CONTEXT_LENGTH))
        yield stack.enter_context(contextlib.closing(opened))


@contextlib.contextmanager
def in_bf16(model: ResolvedModel) -> Iterator[ResolvedModel]:
    """Give a checkpoint folder as a GGUF file of its own precision, for as long as the block runs. (To talk with, it
    would become 8-bit.) Any other model is given as it is."""
    from localqwen.models import converted, local_files

    if model.conversion is None or model.conversion.repo:
        yield model
        return
    folder = model.conversion.folder
    with scratch() as place, conversion_bar(f"{folder.name} to bf16") as progress:
        target = place / f"{folder.name}.gguf"
        converted.converter().convert(folder, target, quant="bf16", progress=progress)
        file = local_files.local_file(folder.name, (target,), "BF16")
        yield replace(model, files=file, conversion=None)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in the cache that is removed afterwards; those of processes that were killed go first."""
    import psutil

    from localqwen.models import store

    home = store.cache_dir() / "quality"
    for left in home.glob("*"):
        if not (left.name.isdigit() and psutil.pid_exists(int(left.name))):
            shutil.rmtree(left, ignore_errors=True)
    folder = home / str(os.getpid())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def page(rows: list[dict[str, Any]]) -> str:
    head = ("MODEL", "ENGINE", "PERPLEXITY", "REFERENCE", "KL MEAN", "KL 99 %", "SAME TOP TOKEN")
    return aligned([head, *((row["model"], row["engine"], *_numbers(row)) for row in rows)])


def _numbers(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['perplexity']:.4g}",
        f"{row['reference_perplexity']:.4g}",
        f"{row['kl_mean']:.5f}",
        f"{row['kl_p99']:.5f}",
        f"{row['top1']:.1%}",
    )


def described(row: Mapping[str, Any]) -> str:
    """One line, for `convert --verify`."""
    return (
        f"perplexity {row['perplexity']:.4g} (source {row['reference_perplexity']:.4g}), "
        f"KL {row['kl_mean']:.5f} nats in the mean, {row['kl_p99']:.5f} at the 99th percentile, "
        f"same top token at {row['top1']:.1%} of {row['tokens']:,} positions"
    )
