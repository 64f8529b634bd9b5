"""`localqwen completion`: the script with which a shell completes our commands and flags."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    bash   localqwen completion bash > ~/.local/share/bash-completion/completions/localqwen
    zsh    localqwen completion zsh > "${fpath[1]}/_localqwen"
    fish   localqwen completion fish > ~/.config/fish/completions/localqwen.fish
    """
    from click.shell_completion import get_completion_class

    from localqwen.cli import cli

    script = get_completion_class(shell)
    assert script is not None  # click has a class for each of these shells
    click.echo(script(cli, {}, "localqwen", "_LOCALQWEN_COMPLETE").source())
