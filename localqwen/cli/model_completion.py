"""Complete the name of a model in the shell."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


def complete_names(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Return the names of models that begin with the typed text."""
    from localqwen.models import registry

    return [CompletionItem(name) for name in registry.models() if name.startswith(typed.lower())]
