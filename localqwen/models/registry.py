"""The models a user can name: `models.toml` -> Model. Pure data; knows nothing of disks and networks."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from localqwen.errors import ConfigError, ModelNotFound
from localqwen.models import store

Thinking = Literal["switch", "always", "never"]
#: Characters of a name that a message shows; no entry's name is as long.
_SHOWN = 200


@dataclass(frozen=True)
class Gguf:
    """One quantization as an official GGUF file: its name in the repository (* stands for anything), size in bytes and,
    where it is known, sha256."""

    quant: str
    file: str
    bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class Weights:
    """A repository of safetensors and the bytes of its weights."""

    repo: str
    bytes: int


@dataclass(frozen=True)
class Model:
    """One entry of models.toml. `thinking`: the answer can be switched, always thinks, or never does.

    `default` is the quantization of the bare name. `native`, `longest` and `yarn` are context lengths in tokens:
    trained for, allowed by the config, reachable with rope scaling (0: not advised). `made` are the sizes in bytes of
    the GGUF files that our converter writes, by quantization. The demo has no repositories and no sizes.
    """

    name: str
    description: str
    thinking: Thinking
    licence: str
    default: str = ""
    aliases: tuple[str, ...] = ()
    preferred: bool = False
    parameters: int = 0
    active: int = 0
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    width: int = 0
    native: int = 0
    longest: int = 0
    yarn: int = 0
    weights: Weights | None = None
    gguf_repo: str = ""
    gguf: Mapping[str, Gguf] = field(default_factory=dict)
    made: Mapping[str, int] = field(default_factory=dict)
    mlx: Mapping[str, Weights] = field(default_factory=dict)
    other: Mapping[str, str] = field(default_factory=dict)
    sampling: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def is_built_in(self) -> bool:
        """It comes with the package: nothing of it is pulled."""
        return self.weights is None and not self.gguf

    @property
    def family(self) -> str:
        return self.name.partition(":")[0]

    @property
    def mixture(self) -> bool:
        """A mixture of experts: a token passes through a part of the weights."""
        return self.active < self.parameters

    @property
    def kv_elements_per_token(self) -> int:
        return self.layers * self.kv_heads * self.head_dim * 2

    @property
    def quants(self) -> tuple[str, ...]:
        """Every quantization that can be named, official or converted here, the smallest file first."""
        return tuple(sorted({*self.gguf, *self.made}, key=lambda quant: (self.gguf_bytes(quant), quant)))

    def gguf_bytes(self, quant: str) -> int:
        """Return the size of the GGUF file of that quantization."""
        return self.gguf[quant].bytes if quant in self.gguf else self.made[quant]

    def download_bytes(self, quant: str) -> int:
        """Return what a pull transfers: the official file, or the official weights that are then converted."""
        if quant in self.gguf or self.weights is None:
            return self.gguf_bytes(quant)
        return self.weights.bytes


@cache
def models() -> Mapping[str, Model]:
    """Return every entry by name, the user's own laid over ours. Raise ConfigError."""
    entries = _parse(_source(), "models.toml")
    own = store.config_file().with_name("models.toml")
    try:
        entries |= _parse(own.read_text(encoding="utf-8"), str(own))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read {own}: {exc}", "correct or remove that file") from exc
    return {name: _model(name, entries) for name in entries}


def _parse(text: str, where: str) -> dict[str, dict[str, Any]]:
    try:
        entries = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{where} is not valid TOML: {exc}", "correct or remove that file") from exc
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise ConfigError(f'{where}: {name} stands outside an entry; an entry begins with ["family:size"]')
    return {name.lower(): {**entry, "_where": where} for name, entry in entries.items()}


def _source() -> str:
    """Return models.toml: it stands at the top of a checkout and inside an installed package."""
    packaged = resources.files("localqwen").joinpath("models.toml")
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "models.toml").read_text(encoding="utf-8")


#: What an entry takes from the one it is `like`: the shape of the network, never a name or a repository.
_SHAPE = ("parameters", "active", "layers", "heads", "kv_heads", "head_dim", "width", "native", "longest", "yarn")


def _model(name: str, entries: Mapping[str, Mapping[str, Any]]) -> Model:
    """Make an entry. Raise ConfigError that names it and what is wrong with it."""
    entry = dict(entries[name])
    where = f"{entry.pop('_where')}: [{name!r}]"
    like = entry.pop("like", None)
    if like is not None and (like == name or like not in entries or "like" in entries[like]):
        raise ConfigError(f"{where} is like {like!r}, which is no entry with a shape", "name one that has its own")
    try:
        known = _model(like, entries) if like else None
        return _checked(_build(name, entry, known), where)
    except (TypeError, KeyError, ValueError, AttributeError) as exc:
        raise ConfigError(f"{where} is not a model: {exc}", "compare it with the entries that ship") from exc


def _build(name: str, entry: dict[str, Any], like: Model | None) -> Model:
    values = {key: getattr(like, key) for key in _SHAPE} if like else {}
    gguf = dict(entry.pop("gguf", {}))
    values |= entry
    values["gguf_repo"] = gguf.pop("repo", "")
    values["gguf"] = {quant: Gguf(quant, **file) for quant, file in gguf.items()}
    values["made"] = {**_sizes(like), **entry.get("made", {})}
    values["mlx"] = {bits: Weights(**repo) for bits, repo in entry.get("mlx", {}).items()}
    values["weights"] = Weights(**entry["weights"]) if "weights" in entry else None
    values["aliases"] = tuple(entry.get("aliases", ()))
    values["active"] = values.get("active") or values.get("parameters", 0)
    return Model(name=name, **values)


def _sizes(like: Model | None) -> dict[str, int]:
    return {quant: like.gguf_bytes(quant) for quant in like.quants} if like else {}


def _checked(model: Model, where: str) -> Model:
    if model.thinking not in ("switch", "always", "never"):
        raise ConfigError(f"{where} has thinking {model.thinking!r}", "it is switch, always or never")
    if model.quants and model.default not in model.quants:
        raise ConfigError(f"{where} has the default {model.default!r}", f"it is one of {', '.join(model.quants)}")
    numbers = [getattr(model, each.name) for each in dataclasses.fields(Model) if each.name in _SHAPE]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ConfigError(f"{where} has a number that is not whole", "write lengths and counts as whole numbers")
    return model


def find(name: str) -> Model | None:
    """Return the entry of exactly that name or alias, in any case."""
    lowered = name.lower()
    return models().get(lowered) or next((model for model in models().values() if lowered in model.aliases), None)


def families() -> tuple[str, ...]:
    """Return the families that can be pulled, in the order of models.toml."""
    return tuple(dict.fromkeys(model.family for model in models().values() if model.weights or model.gguf))


def suggest(name: str) -> list[str]:
    """Return names that look like this one, best first."""
    known = [*models(), *families(), *(alias for model in models().values() for alias in model.aliases)]
    return difflib.get_close_matches(name[:_SHOWN].lower(), known, n=3, cutoff=0.5)


def longest_name() -> int:
    """Return the number of characters of the longest name or alias."""
    return max(len(name) for model in models().values() for name in (model.name, *model.aliases))


def quoted(name: str) -> str:
    """Return a name as a message quotes it: control characters escaped, cut where it is very long."""
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…")


def shown(name: str) -> str:
    """Return a name as it is where a terminal can show it, else as `quoted`."""
    return name if name.isprintable() and len(name) <= _SHOWN else quoted(name)


def unknown(name: str) -> ModelNotFound:
    """Return the error of a name that is neither a model nor a path."""
    close = suggest(name)
    hint = f"did you mean {close[0]}? " if close else ""
    return ModelNotFound(
        f"there is no model {quoted(name)}",
        f"{hint}models by name: {', '.join(models())}; or give a .gguf file or a checkpoint folder",
    )
