"""jinja2 as chat templates see it: transformers' filters and globals, and the operations that the limits bound."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Joiner, generate_lorem_ipsum

from localqwen.chat.sandbox import filters, operators
from localqwen.chat.sandbox.budget import ITEM, MAX_ITEMS, SCALARS, Budget, LimitReached, joined, light, weigh
from localqwen.chat.sandbox.compiler import MAX_CODE, SandboxCodeGenerator, check_tree
from localqwen.chat.sandbox.methods import call_method

#: The longest pattern for `strftime_now`, in characters, and a width in it that is refused.
_MAX_PATTERN, _LONG_WIDTH = 1_000, re.compile(r"%[^a-zA-Z%]*\d{4}")
#: The most paragraphs and words of `lipsum`.
_MAX_LIPSUM = 1_000
_DICT_NAMES = frozenset(dir(dict))
_CALLABLE = (BlockReference, Joiner, LoopContext, Undefined)


class SandboxContext(Context):
    """The variables of one rendering, its budget, and the operations that the compiled code calls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.budget = Budget()
        self.given: frozenset[int] = frozenset()  # identities of values that came as JSON: trees, of bounded size

    def derived(self, locals: dict[str, Any] | None = None) -> Context:
        """Return a context with these variables besides, for a block of the same rendering."""
        context = super().derived(locals)
        assert isinstance(context, SandboxContext)
        context.budget, context.given = self.budget, self.given
        return context

    def text(self, value: Any) -> str:
        """Return a value as text, as the output of a template shows it."""
        if type(value) is str:
            return value
        light(value)
        text = str(value)
        self.budget.spend(len(text))
        return text

    def concat(self, pieces: Sequence[str], too_many: bool = False) -> str:
        """Return the output of a macro or block: its pieces joined. Raise LimitReached if they are too many."""
        if too_many:
            raise LimitReached(f"makes a text of more than {MAX_ITEMS:,} pieces")
        self.budget.spend(sum(map(len, pieces)) + len(pieces))
        return "".join(pieces)

    def joined(self, values: Sequence[Any]) -> str:
        """Return `a ~ b ~ c`."""
        size = 0
        for value in values:
            if type(value) is not str:
                return self.joined([*map(self.text, values)])
            size += len(value)
        self.budget.spend(size)
        return "".join(values)

    def added(self, values: Sequence[Any]) -> Any:
        """Return `a + b + c`."""
        return operators.add_all(self.budget, values)

    light = staticmethod(light)

    def made(self, value: Any) -> Any:
        """Return a list, tuple or dict that the template wrote, after counting it."""
        self.budget.spend(ITEM + len(value))
        return value

    def cut(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """Return `value[start:stop:step]`."""
        if not (type(start) in SCALARS and type(stop) in SCALARS and type(step) in SCALARS):
            raise TypeError("slice indices must be integers or none")
        part = value[start:stop:step]
        self.budget.spend(len(part))
        return part


class SandboxEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates, and looks up and calls for them. Holds no state of a rendering: threads share it."""

    code_generator_class = SandboxCodeGenerator
    context_class = SandboxContext
    intercepted_binops = frozenset(operators.SIGNS)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols"])
        self.filters |= filters.filters()
        self.tests |= filters.tests()
        self.globals |= {"lipsum": _lipsum, "raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self._callable = frozenset(map(id, self.globals.values()))

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        check_tree(source)
        code = super()._generate(source, *args, **kwargs)
        if len(code) > MAX_CODE:
            raise LimitReached(f"becomes a program of more than {MAX_CODE:,} characters")
        return code

    concat = staticmethod(joined)  # for `self.block()`

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return the result of an operator."""
        return operators.binary(context.budget, operator, left, right)

    def wrap_str_format(self, value: Any) -> None:
        """Return None: `format` is bounded where it is called, as all methods are."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return `obj.attribute`. Messages are dicts, which have few attributes: no need to try them first."""
        if type(obj) is dict and attribute not in _DICT_NAMES:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return `obj[argument]`, which hashes the argument."""
        if type(argument) not in SCALARS:
            weigh(argument)
        return super().getitem(obj, argument)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Return what a template's call returns. Raise SecurityError for what templates may not call."""
        if len(args) + len(kwargs) > ITEM:
            context.budget.spend_items(len(args) + len(kwargs))
        if isinstance(obj, (Macro, MethodType, BuiltinMethodType)):
            kwargs.pop("_loop_vars", None)  # jinja2 passes them for functions that ask for the context
            kwargs.pop("_block_vars", None)
            if isinstance(obj, Macro):
                return obj(context.eval_ctx, *args, **kwargs)
            return call_method(context.budget, self, obj, args, kwargs)
        if isinstance(obj, _CALLABLE):
            return context.call(obj, *args, **kwargs)
        if id(obj) not in self._callable:
            raise SecurityError(f"a chat template cannot call an object of type {type(obj).__name__!r}")
        for each in (*args, *kwargs.values()):
            light(each)
        return context.budget.made(context.call(obj, *args, **kwargs))


@cache
def _environment() -> SandboxEnvironment:
    return SandboxEnvironment()


class Program:
    """A compiled template. Raises LimitReached, jinja2's TemplateError, and whatever else jinja2 and Python raise for a
    source that they cannot compile."""

    def __init__(self, source: str) -> None:
        self._template = _environment().from_string(source)

    def render(self, variables: Mapping[str, Any]) -> str:
        """Return the text that the template makes of these variables. Raise LimitReached, and whatever a program may
        raise."""
        context = self._template.new_context(dict(variables))
        context.given = frozenset(map(id, variables.get("tools") or ()))  # type: ignore[attr-defined]
        # Not `Template.render`, which compiles a line of code for every frame of a traceback.
        return joined(self._template.root_render_func(context))


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _MAX_PATTERN or _LONG_WIDTH.search(pattern):
        raise LimitReached("formats a date with a pattern that is too long")
    return datetime.datetime.now().strftime(pattern)


def _lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    if n * max > _MAX_LIPSUM * ITEM or max > _MAX_LIPSUM:
        raise LimitReached(f"makes a text of more than {_MAX_LIPSUM * ITEM:,} words")
    return generate_lorem_ipsum(n, html, min, max)
