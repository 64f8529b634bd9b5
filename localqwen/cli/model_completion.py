"""What the shell completes in place of a model's name."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem


def complete_names(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    from localqwen.models import registry

    return [CompletionItem(name) for name in registry.models() if name.startswith(typed.lower())]
