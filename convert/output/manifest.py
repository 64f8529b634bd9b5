"""The manifest of a converted model: a JSON file that says what it was made of, how, and with which versions.

Beside a GGUF file it is `<file>.gguf.json`, in an MLX folder `localqwen.json`. `quality` is empty until something is
measured: `record_quality`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from convert.output.hashing import Digest
from localqwen._version import __version__
from localqwen.errors import ConversionError, OutputError

FOLDER_NAME = "localqwen.json"
#: The folders of huggingface_hub's cache: models--OWNER--NAME/snapshots/REVISION.
_SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)/snapshots/(?P<revision>[^/]+)")


def file_of(model: Path) -> Path:
    """Return the path of the manifest of a GGUF file or an MLX folder."""
    return model / FOLDER_NAME if model.is_dir() else model.with_name(f"{model.name}.json")


def make(
    source: Path,
    *,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, Digest],
    outputs: Mapping[str, Digest],
    packages: Sequence[str],
) -> dict[str, Any]:
    """Return a manifest. `recipe` is what repeats the conversion; the installed versions of `packages` are recorded.

    `inputs` and `outputs` are digests by file name.
    """
    return {
        "source": source_name(source),
        "recipe": dict(recipe),
        "inputs": {name: digest.json() for name, digest in inputs.items()},
        "outputs": {name: digest.json() for name, digest in outputs.items()},
        "versions": {"localqwen": __version__, **_versions(packages)},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quality": {},
    }


def source_name(folder: Path) -> str:
    """Return `owner/name@revision` for a snapshot in a hub's cache, otherwise the absolute path of the folder."""
    path = folder.absolute()
    found = _SNAPSHOT.fullmatch("/".join(path.parts[-3:]))
    return f"{found['owner']}/{found['name']}@{found['revision']}" if found else str(path)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def write(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest whole or not at all. Raise OutputError."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        part.write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as exc:
        raise OutputError(f"{path} cannot be written: {exc.strerror}", "check the folder and its space") from exc
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def read(model: Path) -> dict[str, Any]:
    """Return the manifest of a converted file or folder. Raise ConversionError if it has none that can be read."""
    path = file_of(model)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConversionError(f"{model} has no manifest {path.name}", "localqwen convert writes one") from exc
    except (OSError, ValueError) as exc:
        raise ConversionError(f"{path} cannot be read: {exc}", "convert again") from exc
    if not isinstance(manifest, dict):
        raise ConversionError(f"{path} is not a JSON object", "convert again")
    return manifest


def record_quality(model: Path, values: Mapping[str, Any]) -> None:
    """Add measured numbers, such as {"perplexity": 12.3}, to the manifest of a converted file or folder.

    Earlier numbers under other names stay. Raise ConversionError if there is no manifest.
    """
    manifest = read(model)
    before = manifest.get("quality")
    manifest["quality"] = {**(before if isinstance(before, dict) else {}), **values}
    write(file_of(model), manifest)
