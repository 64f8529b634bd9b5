"""The models a user can name: `models.toml` -> Model."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from localqwen.errors import ModelNotFound


@dataclass(frozen=True)
class Model:
    """One entry of models.toml. `thinking`: the answer can be switched, always thinks, or never does."""

    name: str
    description: str
    thinking: Literal["switch", "always", "never"]
    licence: str


@cache
def models() -> Mapping[str, Model]:
    """Every entry by name."""
    return {name: Model(name=name, **entry) for name, entry in tomllib.loads(_source()).items()}


def _source() -> str:
    """models.toml stands at the top of a checkout and inside an installed package."""
    packaged = resources.files("localqwen").joinpath("models.toml")
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "models.toml").read_text(encoding="utf-8")


def lookup(name: str) -> Model | None:
    """The entry of that name (any case), None for a path or an unknown name."""
    return models().get(name.lower())


def suggest(name: str) -> list[str]:
    """Names that look like this one, best first."""
    return difflib.get_close_matches(name.lower(), list(models()), n=3, cutoff=0.5)


def unknown(name: str) -> ModelNotFound:
    """The error for a name that is neither a model nor a path."""
    close = suggest(name)
    hint = f"did you mean {close[0]}? " if close else ""
    return ModelNotFound(
        f"there is no model {name!r}",
        f"{hint}models by name: {', '.join(models())}; or give a .gguf file or a checkpoint folder",
    )


def display_name(name: str) -> str:
    """What a user sees: the model's name, or the file's or folder's without its ending."""
    if lookup(name):
        return name.lower()
    path = Path(name).expanduser()
    return path.stem if path.suffix == ".gguf" else path.resolve().name
