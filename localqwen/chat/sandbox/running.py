"""One way to run a template's program: within its time, and every failure of it is a TemplateError."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from localqwen.chat.time_limit import TimeExceeded, within
from localqwen.errors import TemplateError

R = TypeVar("R")

#: What to do about a template that was stopped.
TRUST = "use a model file whose chat template you trust, or send shorter messages"
#: The most characters of a template's own words in an error.
_MAX_SHOWN = 300


def run(work: Callable[[], R], seconds: float, *, compiling: bool) -> R:
    """Return what `work` returns, which compiles or renders a template. Raise TemplateError if it fails in any way, or
    takes more than `seconds`."""
    try:
        return within(seconds, work)
    except TimeExceeded:
        what = "compiling it" if compiling else "rendering these messages"
        failure = TemplateError(f"the model's chat template was stopped: {what} took more than {seconds:g} s", TRUST)
    # A template is a program that somebody else wrote: it can raise whatever jinja2 and Python raise. This catches what
    # the template raises and nothing else; `work` is its code alone.
    except Exception as exc:
        failure = _failure(exc, compiling)
    # Raised here, without the exception behind it: its traceback holds all that the template has made.
    raise failure


def _failure(exc: Exception, compiling: bool) -> TemplateError:
    """Return the TemplateError for what a template has raised."""
    from jinja2 import TemplateSyntaxError

    from localqwen.chat.sandbox.budget import LimitReached

    match exc:
        case TemplateSyntaxError():
            return TemplateError(
                f"the model's chat template is not valid (line {exc.lineno}): {shown(exc.message or '')}"
            )
        case LimitReached():
            return TemplateError(f"the model's chat template {exc}", TRUST)
        case RecursionError():
            return TemplateError("the model's chat template calls itself too often, or is nested too deep", TRUST)
        case MemoryError():
            return TemplateError("the model's chat template needs more memory than there is", TRUST)
    if compiling:
        return TemplateError(f"the model's chat template cannot be compiled: {_reason(exc)}", TRUST)
    return TemplateError(
        f"the model's chat template refused these messages: {_reason(exc)}",
        "check the roles and the order of the messages",
    )


def _reason(exc: Exception) -> str:
    """Return an exception's text, or its type if the text could be endless: it may hold a template's containers."""
    if isinstance(exc, SyntaxError):  # Python's, of the code that jinja2 makes
        return shown(exc.msg)
    plain = all(isinstance(each, (str, int, float, type(None))) for each in exc.args)
    return shown(str(exc) if plain else "") or type(exc).__name__


def shown(text: str) -> str:
    """Return what a template says, as part of a message: cut, in one line, without control characters."""
    start = "".join(character if character.isprintable() else " " for character in text[:_MAX_SHOWN])
    return start + "…" if len(text) > _MAX_SHOWN else start
