"""Find the source of a conversion: a path, or a model's official weights, which are pulled after asking."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import click

from localqwen.errors import NotPulled, UsageError
from localqwen.models.names import LocalPath, Named, Repository

_PART = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Source:
    """A folder or a GGUF file, and the model's name, which begins the name of the output."""

    path: Path
    name: str


def find(text: str, *, yes: bool) -> Source:
    """Return the source that a text means, pulled if necessary.

    Raise ModelNotFound for an unknown name, NotPulled if nobody can be asked, UsageError, HubError.
    """
    from localqwen.models import converted, inventory, names

    path = Path(os.path.expanduser(text))
    if os.path.exists(path):
        return Source(path, _model_name(path.resolve()))
    reference = names.parse(text)
    match reference:
        case LocalPath(missing):
            return Source(missing, missing.name)  # the converter raises the error
        case Named(model) if model.is_built_in:
            return Source(converted.demo_checkpoint(), model.name)
        case Named(model, quant) if quant != model.default:
            raise UsageError(f"{text} names a quantization", f"localqwen convert {model.name} --quant {quant.lower()}")
        case Named(model):
            assert model.weights is not None
            wanted = Repository("hf", model.weights.repo)
        case Repository():
            wanted = reference
    present = inventory.complete_checkpoint(wanted.repo)
    return Source(present or _pulled(wanted, text, yes=yes), wanted.repo.rpartition("/")[2])


def _pulled(wanted: Repository, text: str, *, yes: bool) -> Path:
    from localqwen.cli import ensure_model
    from localqwen.models import pull

    absent = NotPulled(f"the weights in {wanted.text} are not on this machine", f"localqwen convert {text} --yes")
    asks = not yes and sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    if not yes and not asks:
        raise absent
    planned = replace(pull.plan(wanted), convert=False)
    sys.stderr.write(f"{wanted.text} is not on disk: {ensure_model.announcement(planned)}\n")
    if asks and not click.confirm("Pull it now?", default=True, err=True):
        raise absent
    return ensure_model.show_pull(planned)


def _model_name(path: Path) -> str:
    """Return the name of a folder, or of a GGUF file without its quantization and the number of its part."""
    from localqwen.models import converted

    if path.suffix != ".gguf":
        return path.name
    stem = _PART.sub("", path.stem)
    endings = "|".join((*converted.converter().QUANTIZATIONS, "copy"))
    return re.sub(rf"[-.]({endings})$", "", stem, flags=re.IGNORECASE)
