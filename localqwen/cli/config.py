"""The user's defaults: `config.toml` and LOCALQWEN_* variables become click's `default_map`.

The order, for --ctx: the flag, then LOCALQWEN_RUN_CTX, LOCALQWEN_CTX, `ctx` in the table `[run]`, `ctx` at the top of
the file. Keys are the flags' long names; dashes and underscores mean the same.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from localqwen.errors import ConfigError
from localqwen.models import store

#: A key that is not a flag: the model that `localqwen chat` loads if it is given none.
MODEL = "model"


class ConfiguredCommand(click.Command):
    """A command whose flags take their defaults from the user's configuration."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Return a context with the user's defaults."""
        if parent is not None and not {"--help", "-h"} & set(args):  # so that help works even if the file has errors
            extra.setdefault("default_map", defaults(self, parent))
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; an error gets this command's context, so that its hint names the command."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # click leaves it out of some errors; the hint names this command's help
            raise


def defaults(command: click.Command, parent: click.Context | None) -> dict[str, Any]:
    """Return the values of the user's file and environment, by the name of the parameter. Raise ConfigError."""
    options = options_of(command)
    path = store.config_file()
    table = _read(path)
    if table:
        _check(table, path, _all_commands(parent))
    found: dict[str, Any] = {}
    for source in (table, table.get(command.name or "", {})):
        for key, value in source.items():
            option = options.get(_normal(key))
            if option is not None and not isinstance(value, dict):
                found[option.name or ""] = value
    return {**found, **_from_environment(command, options)}


def default_model() -> str | None:
    """Return the configured model: LOCALQWEN_MODEL, else `model` in `[chat]`, else at the top of the file."""
    table = _read(store.config_file())
    return os.environ.get("LOCALQWEN_MODEL") or table.get("chat", {}).get(MODEL) or table.get(MODEL)


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Return the options of a command by their key in the file: the long name with underscores."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    return {_normal(max(option.opts, key=len).lstrip("-")): option for option in options}


def _normal(key: str) -> str:
    return key.replace("-", "_")


def _all_commands(parent: click.Context | None) -> dict[str, click.Command]:
    if parent is None or not isinstance(parent.command, click.Group):
        return {}
    group = parent.command
    return {name: found for name in group.list_commands(parent) if (found := group.get_command(parent, name))}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}", "check that file's permissions") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path} is not UTF-8 text", "save that file as UTF-8") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path} is not valid TOML: {exc}", 'put texts into quotes: model = "demo"') from exc


def _check(table: Mapping[str, Any], path: Path, commands: Mapping[str, click.Command]) -> None:
    """Check every key of the file, also those of other commands, so that a typing error is reported at once."""
    everywhere: dict[str, click.Option] = {}
    for command in commands.values():
        for key, option in options_of(command).items():
            if key not in everywhere or _wanted(everywhere[key]) in _LISTS:  # a list is valid if one command takes it
                everywhere[key] = option
    for key, value in table.items():
        if isinstance(value, dict):
            _check_table(key, value, path, commands)
        else:
            known = [*everywhere, MODEL, *(f"[{name}]" for name in commands)]
            _check_value(key, value, everywhere.get(_normal(key)), known, f"{path}: {key}")


def _check_table(name: str, table: Mapping[str, Any], path: Path, commands: Mapping[str, click.Command]) -> None:
    if name not in commands:
        raise ConfigError(f"{path}: [{name}] is unknown", _possible(name, list(commands), "[{}]"))
    own = options_of(commands[name])
    for key, value in table.items():
        known = [*own, MODEL] if name == "chat" else list(own)
        _check_value(key, value, own.get(_normal(key)), known, f"{path}: [{name}] {key}")


def _possible(key: str, known: list[str], form: str = "{}") -> str:
    near = get_close_matches(_normal(key), known, 1)
    return (
        f"did you mean {form.format(near[0])}?" if near else f"possible: {', '.join(map(form.format, sorted(known)))}"
    )


def _check_value(key: str, value: Any, option: click.Option | None, known: list[str], where: str) -> None:
    if _normal(key) == MODEL and MODEL in known:
        if not isinstance(value, str):
            raise ConfigError(f"{where} is not a text", 'write model = "demo"')
        return
    if option is None:
        raise ConfigError(f"{where} is unknown", _possible(key, known))
    wanted = _wanted(option)
    if not _has_type(value, wanted, option.multiple):
        raise ConfigError(f"{where} is {value!r}, it must be {_WORDS[wanted]}", "see the flag in --help")
    _convert(option, value, where)


#: click's name of a type -> what its value looks like in TOML.
_WORDS = {
    "boolean": "true or false", "integer": "a whole number", "float": "a number", "text": "a text in quotes",
    "integers": "a whole number or a list of them", "texts": "a text in quotes or a list of them",
}  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {
    "boolean": (bool,), "integer": (int,), "float": (int, float), "text": (str,), "integers": (int,), "texts": (str,),
}  # fmt: skip
#: Types of flags with several values (`--prompt 128,512`); in another command the same key may take a single value.
_LISTS = ("integers", "texts")


def _wanted(option: click.Option) -> str:
    name = option.type.name.split(" ")[0]  # "integer range" is an "integer"
    return name if name in _WORDS else "text"


def _has_type(value: Any, wanted: str, multiple: bool) -> bool:
    if (multiple or (wanted in _LISTS and value)) and isinstance(value, list):
        return not any(isinstance(item, list) for item in value) and all(
            _has_type(item, wanted, False) for item in value
        )
    return isinstance(value, _TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))


def _convert(option: click.Option, value: Any, where: str) -> Any:
    """Return the value in the option's type. A single text is allowed in place of a list."""
    given = (value,) if option.multiple and not isinstance(value, list) else value
    try:
        return option.type_cast_value(click.Context(click.Command("config")), given)
    except click.BadParameter as exc:
        raise ConfigError(f"{where}: {exc.message.removesuffix('.')}", "see the flag in --help") from exc


def _from_environment(command: click.Command, options: Mapping[str, click.Option]) -> dict[str, Any]:
    found = {}
    for key, option in options.items():
        for variable in (f"LOCALQWEN_{command.name}_{key}".upper(), f"LOCALQWEN_{key}".upper()):
            if text := os.environ.get(variable):
                found[option.name or ""] = _convert(option, text, variable)
                break
    return found
