"""`localqwen tune`: measure which settings are fastest for a model on this machine, and save them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.format import aligned
from localqwen.cli.options import json_option
from localqwen.errors import Unsupported

if TYPE_CHECKING:
    from localqwen.bench.tune import Trial
    from localqwen.engines.llama_cpp.settings import Settings


@click.command("tune", cls=ConfiguredCommand)
@click.argument("model")
@click.option("--show", is_flag=True, help="Show the saved settings of this model, without measuring.")
@click.option("--forget", is_flag=True, help="Return to the defaults for this model.")
@click.option("--approximate", is_flag=True, help="Try flash attention and 8-bit keys and values too; answers change.")
@json_option
def command(model: str, show: bool, forget: bool, approximate: bool, as_json: bool) -> None:
    """Find the fastest settings of llama.cpp for MODEL on this machine: threads, weight repacking, batch size.

    `run`, `chat` and `serve` use them from then on. Do not use the machine meanwhile: other programs change the result.
    """
    from localqwen.engines.llama_cpp import settings

    path = _file_of(model)
    if show:
        kept = settings.tuned(path, settings.Settings())
        if as_json:
            sys.stdout.write(json.dumps({"model": model, "settings": asdict(kept) if kept.tuned else None}) + "\n")
        else:
            sys.stdout.write(f"kept: {described(kept)}\n" if kept.tuned else f"{model} was never tuned here\n")
        return
    if forget:
        there = settings.forget(path)
        sys.stdout.write(f"{model} runs with the defaults{' again' if there else ', it was never tuned'}\n")
        return
    try:
        best, trials = _tuned(path, approximate)
    except KeyboardInterrupt:
        sys.stderr.write("stopped: no settings are saved\n")
        raise
    settings.keep(path, best)
    if as_json:
        sys.stdout.write(json.dumps({"model": model, "settings": asdict(best), "trials": _rows(trials)}) + "\n")
        return
    sys.stdout.write(page(best, trials) + "\n")


def _file_of(model: str) -> Path:
    """Return the GGUF file of a model. Raise Unsupported for MLX: a GPU has no threads to share."""
    from localqwen.engines import selection

    resolved = selection.resolve(model)
    if resolved.engine == "mlx":
        raise Unsupported(
            f"{model} runs on MLX on this machine, which has none of these settings",
            "tune a GGUF file and run it with --engine gguf: localqwen tune FILE.gguf",
        )
    return resolved.path()


def _tuned(path: Path, approximate: bool) -> tuple[Settings, list[Trial]]:
    from localqwen.bench import tune
    from localqwen.bench.contention import AT_REST, Others
    from localqwen.engines.llama_cpp.probe import probe
    from localqwen.engines.llama_cpp.settings import Settings
    from localqwen.machine import this_machine

    cores = this_machine().cores
    start = Settings(cores, use_extra_bufts=probe().use_extra_bufts)

    def report(trial: Trial) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"{trial.change}: {_speeds(trial)}\n")

    meanwhile = Others()
    found = tune.tune(path, start, cores, report, approximate=approximate)
    counted = meanwhile.since()
    taken = counted["others_seconds"] / counted["elapsed_seconds"] if counted else 0.0
    if taken > AT_REST:
        sys.stderr.write(
            f"warning: other programs took {taken:.1f} processors meanwhile: tune again when they are idle\n"
        )
    return found


def _speeds(trial: Trial) -> str:
    return f"{trial.speed.prefill:,.1f} tokens/s prefill, {trial.speed.decode:,.1f} decode"


def _rows(trials: list[Trial]) -> list[dict[str, Any]]:
    return [{"change": trial.change, **asdict(trial.speed)} for trial in trials]


def page(best: Settings, trials: list[Trial]) -> str:
    """Return a table of all trials, and the best settings."""
    head = ("TRIED", "PREFILL t/s", "DECODE t/s")
    rows = [(trial.change, f"{trial.speed.prefill:,.1f}", f"{trial.speed.decode:,.1f}") for trial in trials]
    return aligned([head, *rows]) + f"\n\nkept: {described(best)}"


def described(best: Settings) -> str:
    """Return settings in words."""
    repacked = "on" if best.use_extra_bufts else "off"
    found = (
        f"{best.threads} thread{'s' * (best.threads != 1)} for answers, {best.threads_for_prompts} for prompts, "
        f"weight repacking {repacked}, {best.batch} tokens per pass"
    )
    coarse = ["flash attention"] if best.flash_attention else []
    coarse += [f"keys and values in {best.kv_type}"] if best.kv_type != "f16" else []
    return found + (f"; approximate, as requested: {' and '.join(coarse)}" if coarse else "")
