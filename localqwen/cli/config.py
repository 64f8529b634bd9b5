"""The defaults that a user keeps: `config.toml` and LOCALQWEN_* variables, made into click's `default_map`.

A flag on the command line wins over LOCALQWEN_RUN_CTX, that over LOCALQWEN_CTX, that over `ctx` in the table `[run]`,
that over `ctx` at the top of the file. Keys are the flags' long names; dashes and underscores are the same.
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

#: A key that is no flag: the model of `localqwen chat` without one.
MODEL = "model"


class ConfiguredCommand(click.Command):
    """A command whose flags take their defaults from the user's configuration."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if parent is not None and not {"--help", "-h"} & set(args):  # help works with a broken file
            extra.setdefault("default_map", defaults(self, parent))
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # click forgets it for some: the hint names this command's help
            raise


def defaults(command: click.Command, parent: click.Context | None) -> dict[str, Any]:
    """Parameter name -> the value that the user's file or environment gives it. Raises ConfigError."""
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
    """The configured model: LOCALQWEN_MODEL, else `model` of `[chat]`, else of the top of the file."""
    table = _read(store.config_file())
    return os.environ.get("LOCALQWEN_MODEL") or table.get("chat", {}).get(MODEL) or table.get(MODEL)


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Key in the file -> option: the long name with underscores."""
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
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}", "check that file's permissions") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path} is not UTF-8 text", "save that file as UTF-8") from exc
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path} is not valid TOML: {exc}", 'texts stand in quotes: model = "demo"') from exc


def _check(table: Mapping[str, Any], path: Path, commands: Mapping[str, click.Command]) -> None:
    """Every key of the file, also those of other commands: a typing error should not wait until it matters."""
    everywhere: dict[str, click.Option] = {}
    for command in commands.values():
        for key, option in options_of(command).items():
            if key not in everywhere or _wanted(everywhere[key]) in _LISTS:  # what suits one value suits all commands
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


#: click's kind of a value -> what a TOML value of it looks like.
_WORDS = {
    "boolean": "true or false", "integer": "a whole number", "float": "a number", "text": "a text in quotes",
    "integers": "a whole number or a list of them", "texts": "a text in quotes or a list of them",
}  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {
    "boolean": (bool,), "integer": (int,), "float": (int, float), "text": (str,), "integers": (int,), "texts": (str,),
}  # fmt: skip
#: Flags of one command that take several values, `--prompt 128,512`; elsewhere the same key may take a single one.
_LISTS = ("integers", "texts")


def _wanted(option: click.Option) -> str:
    name = option.type.name.split(" ")[0]  # "integer range" has the type of "integer"
    return name if name in _WORDS else "text"


def _has_type(value: Any, wanted: str, multiple: bool) -> bool:
    if (multiple or (wanted in _LISTS and value)) and isinstance(value, list):
        return not any(isinstance(item, list) for item in value) and all(
            _has_type(item, wanted, False) for item in value
        )
    return isinstance(value, _TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))


def _convert(option: click.Option, value: Any, where: str) -> Any:
    """The value as the option's type has it. A single text is fine where several may stand."""
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
