"""`localqwen quality`: compare the predictions of a conversion and its source on a text."""

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

#: The context in tokens: no window is longer, and a larger one would only cost memory.
CONTEXT_LENGTH = 512


@click.command("quality", cls=ConfiguredCommand)
@click.argument("reference")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--text", type=click.Path(path_type=Path), metavar="FILE", help="Measure on this text, not the bundled one."
)
@click.option("--engine", metavar="NAME", help="Engine of each MODEL (see localqwen doctor).")
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
    """Measure how far each MODEL is from REFERENCE: perplexity, KL divergence, how often the top token is the same.

    Names, .gguf files and folders, on any engine: for example an MLX folder, a GGUF file and the checkpoint from which
    both were converted. A checkpoint folder is read in bf16.
    """
    rows = measure(reference, models, text=read_text(text), engine=engine, reference_engine=reference_engine)
    if as_json:
        sys.stdout.write(json.dumps({"reference": reference, "models": rows}, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(page(rows) + "\n")


def read_text(path: Path | None) -> str:
    """Return the text of a file, or the bundled text. Raise UsageError if it cannot be read as UTF-8."""
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
    """Return one row per model. The reference is computed once; no two models are in memory together."""
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
    """Load a model to measure it. Raise NotPulled, and what loading raises."""
    from localqwen.chat import load
    from localqwen.chat.load_options import LoadOptions
    from localqwen.engines import selection

    with contextlib.ExitStack() as stack:
        model = stack.enter_context(in_bf16(selection.resolve(name, engine)))
        opened = load.open_engine(model, LoadOptions(context_length=CONTEXT_LENGTH))
        yield stack.enter_context(contextlib.closing(opened))


@contextlib.contextmanager
def in_bf16(model: ResolvedModel) -> Iterator[ResolvedModel]:
    """Yield a checkpoint folder as a temporary GGUF file of its own precision (`run` would convert it to 8 bit). Any
    other model is yielded as it is."""
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
    """Yield a folder in the cache and remove it afterwards. Folders of processes that were killed are removed first."""
    import psutil

    from localqwen.models import store

    home = store.cache_dir() / "quality"
    for left in home.glob("*"):
        if not (left.name.isdigit() and psutil.pid_exists(int(left.name))):
            shutil.rmtree(left, ignore_errors=True)
    folder = store.make_folder(home / str(os.getpid()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def page(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
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
    """Return a row as one line, for `convert --verify`."""
    return (
        f"perplexity {row['perplexity']:.4g} (source {row['reference_perplexity']:.4g}), "
        f"KL {row['kl_mean']:.5f} nats in the mean, {row['kl_p99']:.5f} at the 99th percentile, "
        f"same top token at {row['top1']:.1%} of {row['tokens']:,} positions"
    )
