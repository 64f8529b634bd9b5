"""The only parser of model names: a text becomes an entry of models.toml, a repository of a hub, or a path.

qwen3                    the family: its preferred size if that fits this machine, else the largest that does
qwen3:4b                 an entry, in its default quantization
qwen3:4b-q8_0            the same entry in another quantization, any case
hf:owner/repo[:quant]    any repository of Hugging Face, ms: of ModelScope
path/to/file.gguf        a file or a checkpoint folder
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from localqwen.errors import ModelNotFound, UsageError
from localqwen.models import registry
from localqwen.models.registry import Model

Source = Literal["hf", "modelscope"]
SOURCES: dict[str, Source] = {"hf": "hf", "ms": "modelscope"}

_QUANT_LIKE = re.compile(r"i?q\d|b?f\d|fp\d|\d+bit|awq|gptq", re.IGNORECASE)
#: Owner and name become one folder of the caches, a name with a quantization a file. The hubs allow 96 characters, and
#: no name that begins with a dot.
_REPOSITORY = re.compile(r"(?!\.)[\w.-]{1,96}/(?!\.)[\w.-]{1,96}", re.ASCII)
_QUANT = re.compile(r"[\w.-]{0,40}", re.ASCII)


@dataclass(frozen=True)
class Named:
    """An entry and one of its quantizations, as models.toml writes it.

    `bare` says that the user named no quantization: another engine may then take one of its own. `why` says how a
    family's size was chosen. Neither changes which model is meant, so they do not count for equality.
    """

    model: Model
    quant: str
    why: str = field(default="", compare=False)
    bare: bool = field(default=False, compare=False)

    @property
    def mlx(self) -> bool:
        return self.quant in self.model.mlx and self.quant not in self.model.quants

    @property
    def text(self) -> str:
        """The shortest name that means this."""
        plain = not self.quant or self.quant == self.model.default
        return self.model.name if plain else f"{self.model.name}-{self.quant.lower()}"

    @property
    def display(self) -> str:
        return self.text


@dataclass(frozen=True)
class Repository:
    """A repository `owner/name` of a hub. `quant` is upper case, "" where the user named none. `mlx` asks for its
    safetensors as they are, where it has any."""

    source: Source
    repo: str
    quant: str = ""
    mlx: bool = False

    @property
    def text(self) -> str:
        prefix = next(key for key, source in SOURCES.items() if source == self.source)
        return f"{prefix}:{self.repo}" + (f":{self.quant.lower()}" if self.quant else "")

    @property
    def display(self) -> str:
        return self.text


@dataclass(frozen=True)
class LocalPath:
    path: Path

    @property
    def text(self) -> str:
        """The path, with `./` in front where it would be read as something else."""
        text = str(self.path)
        plain = _is_marked(text) and not text.startswith("~") and _source_of(text) is None
        return text if plain else os.path.join(os.curdir, text)

    @property
    def display(self) -> str:
        """What a user sees of it: short, without folders."""
        if self.path.suffix == ".gguf":
            return self.path.stem
        return (self.path.resolve() if os.path.exists(self.path) else self.path).name


Reference = Named | Repository | LocalPath


def parse(text: str) -> Reference:
    """Return what a text means, whether it exists or not.

    Raise ModelNotFound with did-you-mean and what exists, UsageError for a malformed repository name.
    """
    source = _source_of(text)
    if source is not None:
        return _repository(source, text.partition(":")[2])
    model = registry.find(text)
    if model is not None:
        return Named(model, model.default, bare=True)
    if text.lower() in registry.families():
        return _preferred(text.lower())
    if looks_like_path(text):
        return LocalPath(_expanded(text))
    return _with_quant(text)


def looks_like_path(name: str) -> bool:
    """Whether it is a path that exists, or a text that can be nothing else."""
    return _is_marked(name) or os.path.exists(name)


def _is_marked(name: str) -> bool:
    return name.endswith((".gguf", ".safetensors")) or "/" in name or "\\" in name or name.startswith(("~", "."))


def _expanded(name: str) -> Path:
    try:
        return Path(os.path.expanduser(name))
    except ValueError:  # no system has a user of such a name
        return Path(name)


def _source_of(name: str) -> Source | None:
    prefix, colon, _ = name.partition(":")
    return SOURCES.get(prefix.lower()) if colon else None


def _repository(source: Source, rest: str) -> Repository:
    repo, _, quant = rest.partition(":")
    if not _REPOSITORY.fullmatch(repo) or not _QUANT.fullmatch(quant):
        raise UsageError(
            f"{registry.quoted(rest)} is not a repository",
            "write hf:owner/name or hf:owner/name:q4_k_m (ms: for ModelScope)",
        )
    return Repository(source, repo, quant.upper())


def _preferred(family: str) -> Named:
    from localqwen.machine import this_machine
    from localqwen.models import fit

    model, why = fit.preferred(family, this_machine())
    return Named(model, model.default, why, bare=True)


def _with_quant(name: str) -> Named:
    """The longest beginning that is an entry, and behind it a quantization."""
    cuts = [cut for cut in range(min(len(name), registry.longest_name() + 1)) if name[cut] == "-"]
    for cut in reversed(cuts):
        model = registry.find(name[:cut])
        if model is not None:
            return _quantized(model, name, name[cut + 1 :])
    raise unknown(name)


def _quantized(model: Model, name: str, quant: str) -> Named:
    known = _quant_of(model, quant)
    if known is not None:
        return Named(model, known)
    if _QUANT_LIKE.match(quant):
        raise no_quant(model, quant)
    raise unknown(name)


def with_quant(named: Named, quant: str) -> Named:
    """Return the same model in the quantization that `--quant` names. Raise ModelNotFound."""
    known = _quant_of(named.model, quant)
    if known is None:
        raise no_quant(named.model, quant)
    return Named(named.model, known, named.why)


def _quant_of(model: Model, typed: str) -> str | None:
    """Return a quantization typed in any case as models.toml writes it: GGUF's where MLX has one of that name too."""
    known = {each.lower(): each for each in (*model.mlx, *model.quants)}
    return known.get(typed.lower())


def no_quant(model: Model, quant: str) -> ModelNotFound:
    """Return the error of a quantization that the model does not have, with those that it has."""
    if model.other.get(quant.lower()):
        return ModelNotFound(
            f"{model.name} as {quant.upper()} is {model.other[quant.lower()]}, for other programs",
            f"localqwen pull {model.name}; quantizations that run here: {_listed(model)}",
        )
    near = difflib.get_close_matches(quant.upper(), [*model.quants, *model.mlx], 1, 0.5)
    did_you_mean = f"did you mean {model.name}-{near[0].lower()}? " if near else ""
    return ModelNotFound(
        f"there is no quantization {registry.quoted(quant)} of {model.name}",
        f"{did_you_mean}there are: {_listed(model)}",
    )


def _listed(model: Model) -> str:
    names = ", ".join(quant.lower() for quant in model.quants) or "none, it comes in one form"
    return names + (f"; for MLX {', '.join(model.mlx)}" if model.mlx else "")


def unknown(name: str) -> ModelNotFound:
    """Return the error of a name that means nothing: with the sizes of a family that exists, else with all names."""
    family = name.lower().partition(":")[0]
    if family not in registry.families() or ":" not in name:
        return registry.unknown(name)
    close = [near for near in registry.suggest(name) if near.startswith(f"{family}:")]
    did_you_mean = f"did you mean {close[0]}? " if close else ""
    sizes = ", ".join(model.name.partition(":")[2] for model in registry.models().values() if model.family == family)
    return ModelNotFound(f"there is no {registry.shown(name.lower())}", f"{did_you_mean}{family}: comes as {sizes}")


def refuse_built_in(reference: Reference, what: str) -> None:
    """Raise UsageError for the model that comes with the package: nothing of it was pulled."""
    if isinstance(reference, Named) and reference.model.is_built_in:
        name = reference.model.name
        raise UsageError(f"{name} is built in, there is nothing to {what}", f"localqwen run {name} hello")
