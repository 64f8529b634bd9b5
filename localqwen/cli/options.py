"""The flags that several commands share, and the values they become."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from localqwen.engines.engine import SAMPLING_RANGES

if TYPE_CHECKING:
    from localqwen.chat import ChatModel
    from localqwen.chat.messages import Message, Request, Tool

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Settings:
    """How answers are asked for. None leaves it to the model and its mode."""

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
        from localqwen.chat.messages import Message, Overrides, Request

        head = [Message("system", system)] if system else []
        sampling = Overrides(**{field.name: getattr(self, field.name) for field in fields(Overrides)})
        return Request([*head, *messages], tools, self.think, self.budget, self.max_tokens, self.stop, sampling)

    def changed_by(self, values: Mapping[str, Any]) -> Settings:
        """With the values of a resumed conversation; names of another version are left out."""
        known = {field.name for field in fields(self)}
        return replace(self, **{name: _value(name, value) for name, value in values.items() if name in known})


def _value(name: str, value: Any) -> Any:
    if value is None:
        return getattr(Settings(), name)
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Loading:
    """How a model is opened. None leaves it to the machine."""

    ctx: int | None = None
    threads: int | None = None
    engine: str | None = None
    kv_quant: int | None = None
    adapter: str | None = None
    yes: bool = False
    force: bool = False

    def check_adapter(self) -> None:
        """Before anything is pulled. Raises UsageError."""
        from localqwen.models import provide

        if self.adapter is not None:
            provide.adapter_folder(self.adapter)

    def open(self, name: str) -> ChatModel:
        """What is not here is pulled after asking; what must be converted shows a bar, because it takes a while."""
        import localqwen
        from localqwen.cli import ensure_model

        self.check_adapter()
        ensure_model.ensure(name, engine=self.engine, yes=self.yes, force=self.force)
        given = {"force": self.force or None, "kv_quant": self.kv_quant, "adapter": self.adapter}
        options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        return localqwen.load(name, engine=self.engine, context_length=self.ctx, threads=self.threads, **options)


class _FloatRange(click.FloatRange):
    """Refuses NaN too, which click finds in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def _range(name: str) -> click.IntRange | click.FloatRange:
    """Return click's type of a field of `Sampling`."""
    bounds = SAMPLING_RANGES[name]
    kind = click.IntRange if bounds.whole else _FloatRange
    return kind(bounds.low, bounds.high, min_open=bounds.above_low)


_SETTINGS = (
    click.option("--think/--no-think", default=None, help="Think before answering, or do not."),
    click.option("--budget", type=click.IntRange(min=0), metavar="N", help="At most N tokens of thinking; 0: none."),
    click.option("--hide-thinking", is_flag=True, help="Think, but do not show it."),
    click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="At most N tokens, thinking included."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before TEXT (may be repeated)."),
    click.option("--temperature", type=_range("temperature"), metavar="X", help="0 takes the likeliest token."),
    click.option("--top-p", type=_range("top_p"), metavar="X", help="Draw from the likeliest of this share."),
    click.option("--top-k", type=_range("top_k"), metavar="N", help="Draw from the N likeliest; 0: from all."),
    click.option("--min-p", type=_range("min_p"), metavar="X", help="Leave out those below this share of the best."),
    click.option(
        "--presence-penalty", type=_range("presence_penalty"), metavar="X", help="Against repetition, e.g. 1.5."
    ),
    click.option("--seed", type=int, metavar="N", help="Draw the same answer again."),
    click.option("--stats", is_flag=True, help="Tokens and speeds after each answer, on stderr."),
)
_LOADING = (
    click.option("--ctx", type=click.IntRange(min=1), metavar="N", help="Context in tokens; beyond its own, by YaRN."),
    click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads (llama.cpp)."),
    click.option("--engine", metavar="mlx|gguf", help="Engine instead of the one for this machine (localqwen doctor)."),
    click.option("--kv-quant", type=click.Choice([8, 4]), help="Keep keys and values in 8 or 4 bits: longer contexts."),
    click.option("--adapter", metavar="FOLDER", help="Apply a LoRA adapter of PEFT's layout."),
    click.option("--yes", "-y", is_flag=True, help="Pull a model that is not here without asking."),
    click.option("--force", is_flag=True, help="Load it even if it does not fit the memory."),
)


def _packed(
    kind: type[Settings] | type[Loading], keyword: str, options: Sequence[Callable[..., Any]]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that adds the options and hands their values over as one argument."""
    names = {field.name for field in fields(kind)}

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def packed(*args: Any, **flags: Any) -> R:
            values = {name: flags.pop(name) for name in names & flags.keys()}
            return function(*args, **flags, **{keyword: kind(**values)})  # type: ignore[arg-type]

        for option in reversed(options):
            packed = option(packed)
        return packed

    return decorate


answer_options = _packed(Settings, "settings", _SETTINGS)
loading_options = _packed(Loading, "loading", _LOADING)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
