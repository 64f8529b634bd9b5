"""The flags of loading a model, from LoadOptions, and the way of a command from a name to a loaded model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from localqwen.chat.load_options import OPTIONS, LoadOptions

if TYPE_CHECKING:
    from localqwen.chat import ChatModel
    from localqwen.models.names import Reference
    from localqwen.models.resolve import ResolvedModel

P = ParamSpec("P")
R = TypeVar("R")
Decorator = Callable[[Any], Any]


@dataclass(frozen=True)
class Loading:
    """How a command loads its models. `yes`: pull a model that is not on disk without asking."""

    options: LoadOptions = field(default_factory=LoadOptions)
    yes: bool = False

    def resolve(self, name: str | Reference) -> ResolvedModel:
        """Resolve a name, parsed or not. Raise ModelNotFound, UsageError, EngineUnavailable."""
        from localqwen.engines import selection

        return selection.resolve(name, self.options.engine)

    def ensure(self, model: ResolvedModel) -> ResolvedModel:
        """Pull a model that is not on disk, after asking, and convert it if necessary, with a bar."""
        from localqwen.cli import ensure_model

        self.options.check_adapter()
        return ensure_model.ensure(model, yes=self.yes, force=self.options.force)

    def open(self, model: ResolvedModel) -> ChatModel:
        """Load a model that is on disk."""
        from localqwen.chat import load

        return load.chat_model(model, self.options)


def flag(name: str, *, high: int | None = None, **more: Any) -> Decorator:
    """Return the click option of a field of LoadOptions. `high` is the largest number that this command allows; `more`
    goes to click."""
    option = OPTIONS[name]
    if option.kind is bool:
        return click.option(option.flag, name, is_flag=True, help=option.help, **more)
    kind: click.ParamType[Any] | type = option.kind
    if option.choices:
        kind = click.Choice(option.choices)
    elif option.low is not None:
        kind = click.IntRange(option.low, high)
    return click.option(option.flag, name, type=kind, metavar=option.metavar or None, help=option.help, **more)


_YES = click.option("--yes", "-y", is_flag=True, help="Pull a model that is not on disk without asking.")
_OF_A_MODEL = {name: flag(name) for name in ("context_length", "threads", "engine", "kv_quant", "adapter")}
_PARALLEL = {"parallel": flag("parallel", high=64, default=4, show_default=True)}


def _packed(flags: Mapping[str, Decorator]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that adds the flags, `--yes` and `--force`, and passes their values as `loading`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def packed(*args: Any, **values: Any) -> R:
            options = LoadOptions(**{name: values.pop(name) for name in (*flags, "force")})
            loading = Loading(options, values.pop("yes"))
            return function(*args, **values, loading=loading)  # type: ignore[arg-type]

        for option in reversed([*flags.values(), _YES, flag("force")]):
            packed = option(packed)
        return packed

    return decorate


#: For one model in this process; for a server; for a benchmark, which compares engines and threads by flags of its own.
loading_options = _packed(_OF_A_MODEL)
serving_options = _packed(_PARALLEL | _OF_A_MODEL)
benchmark_options = _packed({name: flag(name) for name in ("kv_quant", "adapter")})
