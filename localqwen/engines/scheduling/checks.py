"""What every engine refuses before any work."""

from __future__ import annotations

from collections.abc import Sequence

from localqwen.errors import ContextTooLong, EngineError, UsageError


def check_open(closed: bool) -> None:
    """Raise EngineError for a call after `Engine.close`: the library's memory is gone, and reading it would end the
    process."""
    if closed:
        raise EngineError("the engine is closed", "open the model again")


def check_prompt(prompt: Sequence[int], max_tokens: int, context_length: int) -> None:
    """Raise UsageError for an empty prompt or a negative number, ContextTooLong where no token fits behind the
    prompt."""
    if not prompt or max_tokens < 0:
        raise UsageError(f"a run needs a prompt and a number of tokens, not {len(prompt)} and {max_tokens}")
    if len(prompt) >= context_length:
        raise ContextTooLong(len(prompt), context_length)


def check_evaluation(tokens: Sequence[int], context_length: int, *, live: bool) -> None:
    """Raise EngineError for an evaluation while a run is live, and ContextTooLong."""
    if live:
        raise EngineError("the engine cannot evaluate a text while a run is live", "cancel the runs first")
    if len(tokens) > context_length:
        raise ContextTooLong(len(tokens), context_length)
