"""The flags that several commands share, and the values that they become."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from localqwen.engines.engine import SAMPLING_RANGES

if TYPE_CHECKING:
    from localqwen.chat.messages import Message, Request, Tool

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Settings:
    """The settings of a request. None leaves a value to the model and its mode."""

    think: bool | None = None
    budget: int | None = None
    hide_thinking: bool = False
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stats: bool = False

    def request(self, messages: Sequence[Message], *, system: str = "", tools: Sequence[Tool] = ()) -> Request:
        """Return a request with these settings; a `system` prompt comes before the messages."""
        from localqwen.chat.messages import Message, Overrides, Request

        head = [Message("system", system)] if system else []
        sampling = Overrides(**{field.name: getattr(self, field.name) for field in fields(Overrides)})
        return Request([*head, *messages], tools, self.think, self.budget, self.max_tokens, self.stop, sampling)

    def changed_by(self, values: Mapping[str, Any]) -> Settings:
        """Return the settings with the values of a resumed conversation; names of other versions are left out."""
        known = {field.name for field in fields(self)}
        return replace(self, **{name: _value(name, value) for name, value in values.items() if name in known})


def _value(name: str, value: Any) -> Any:
    if value is None:
        return getattr(Settings(), name)
    return tuple(value) if isinstance(value, list) else value


class _FloatRange(click.FloatRange):
    """A range of numbers without NaN, which click accepts in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def _range(name: str) -> click.IntRange | click.FloatRange:
    """Return click's type for a field of `Sampling`."""
    bounds = SAMPLING_RANGES[name]
    kind = click.IntRange if bounds.whole else _FloatRange
    return kind(bounds.low, bounds.high, min_open=bounds.above_low)


_SETTINGS = (
    click.option("--think/--no-think", default=None, help="Think before answering, or do not."),
    click.option(
        "--budget", type=click.IntRange(min=0), metavar="N", help="Think for at most N tokens; 0: not at all."
    ),
    click.option("--hide-thinking", is_flag=True, help="Do not show the thinking."),
    click.option(
        "--max-tokens", type=click.IntRange(min=1), metavar="N", help="Generate at most N tokens, thinking included."
    ),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before TEXT (repeatable)."),
    click.option(
        "--temperature",
        type=_range("temperature"),
        metavar="X",
        help="Vary the answer; 0: always the most probable token.",
    ),
    click.option(
        "--top-p", type=_range("top_p"), metavar="X", help="Draw from the most probable tokens of this share."
    ),
    click.option(
        "--top-k", type=_range("top_k"), metavar="N", help="Draw from the N most probable tokens; 0: from all."
    ),
    click.option("--min-p", type=_range("min_p"), metavar="X", help="Leave out tokens below this share of the best."),
    click.option(
        "--presence-penalty", type=_range("presence_penalty"), metavar="X", help="Reduce repetition, e.g. 1.5."
    ),
    click.option("--seed", type=int, metavar="N", help="Repeat an answer: same seed, same answer."),
    click.option("--stats", is_flag=True, help="Show tokens and speeds on stderr after each answer."),
)


def answer_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add the flags of a request, and pass their values as `settings`."""
    names = {field.name for field in fields(Settings)}

    @functools.wraps(function)
    def packed(*args: Any, **flags: Any) -> R:
        values = {name: flags.pop(name) for name in names & flags.keys()}
        return function(*args, **flags, settings=Settings(**values))  # type: ignore[arg-type]

    for option in reversed(_SETTINGS):
        packed = option(packed)
    return packed


json_option = click.option("--json", "as_json", is_flag=True, help="Write one JSON object to stdout.")
