"""`localqwen recommend`: which model, quantization and context suit this machine, or another one."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from localqwen import units
from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.format import aligned, readable_bytes
from localqwen.cli.options import json_option
from localqwen.errors import UsageError

if TYPE_CHECKING:
    from localqwen.models.recommend import Advice, Device

#: Bytes that a number without a unit counts in.
_UNIT = 10**9


@click.command("recommend", cls=ConfiguredCommand)
@click.option("--memory", metavar="SIZE", help="Memory of the machine: 8GB, 512MB; default: this machine's.")
@click.option("--for", "device", metavar="DEVICE", help="A typical phone, car or laptop.")
@json_option
def command(memory: str | None, device: str | None, as_json: bool) -> None:
    """Say which models fit this machine, or another device, with their memory and an estimate of their speed."""
    from localqwen.machine import this_machine
    from localqwen.models import recommend

    where = recommend.device(device, read_size(memory) if memory else None, this_machine())
    advices = recommend.advise(where)
    if as_json:
        found = {"device": where.name, "memory": where.memory, "bandwidth": where.bandwidth}
        sys.stdout.write(json.dumps({**found, "models": [_entry(advice) for advice in advices]}) + "\n")
        return
    sys.stdout.write(page(where, advices, measured=device is None) + "\n")


def read_size(text: str) -> int:
    """Return the bytes of `8GB`, `512 MB` or `7.5`. Raise UsageError if the text is not a size."""
    size = units.parse_size(text, unit=_UNIT)
    if size is None:
        raise UsageError(f"--memory {text!r} is not a size", "write it like 8GB or 512MB")
    return size


def page(where: Device, advices: list[Advice], *, measured: bool) -> str:
    """Return the table of what fits."""
    best = advices[0]
    how = "measured by copying memory" if measured else "assumed for this kind of device"
    rows = [("NAME", "QUANT", "CONTEXT", "MEMORY", "TOKENS/S"), *(_row(advice) for advice in advices)]
    return (
        f"{best.name} for {where.name}: {best.model.description}\n\n{aligned(rows)}\n\n"
        f"{readable_bytes(where.memory)} for the model; tokens/s are estimates from a memory bandwidth of "
        f"{readable_bytes(where.bandwidth)}/s, {how}\n\nlocalqwen pull {best.name}"
    )


def _row(advice: Advice) -> tuple[str, ...]:
    speed = f"about {advice.tokens_per_second:,.0f}" if advice.tokens_per_second >= 1 else "under 1"
    return (advice.name, advice.quant, f"{advice.context_length:,}", readable_bytes(advice.needed), speed)


def _entry(advice: Advice) -> dict[str, Any]:
    return {
        "name": advice.name,
        "quant": advice.quant,
        "context_length": advice.context_length,
        "bytes_needed": advice.needed,
        "tokens_per_second_estimate": round(advice.tokens_per_second, 1),
    }
