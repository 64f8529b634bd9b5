"""The names of GGUF files: `NAME-00001-of-00003.gguf` for the parts of a split model, and the quantization in them."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

from localqwen.errors import FormatError

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_QUANT = re.compile(r"[-._]([it]?q\d\w*|mxfp4\w*|bf16|f16|f32)$", re.IGNORECASE)
#: A name may claim 99,999 parts; nobody cuts a model into more than this.
_MAX_PARTS = 1000


class Part(NamedTuple):
    """What a file's name says: it is number `number`, from 1, of `total` files of the model `stem`."""

    stem: str
    number: int
    total: int


def part(file: PurePath) -> Part:
    """Return what the name says; a file that is not one of several parts is number 1 of 1."""
    match = _PART.fullmatch(file.stem)
    if match and 1 <= int(match["number"]) <= int(match["count"]) > 1:
        return Part(match["stem"], int(match["number"]), int(match["count"]))
    return Part(file.stem, 1, 1)


def part_name(stem: str, number: int, count: int) -> str:
    """Return the name of part `number`, from 1, as llama.cpp writes it (llama_split_path)."""
    return f"{stem}-{number:05}-of-{count:05}.gguf"


def present(file: Path) -> list[Path]:
    """Return the parts that exist of the model that this file belongs to, in order."""
    stem, _, count = part(file)
    if count == 1:
        return [file]
    found = file.parent.glob(f"{glob.escape(stem)}-?????-of-{count:05}.gguf")
    return sorted(path for path in found if part(path).stem == stem)


def complete(file: Path) -> list[Path]:
    """Return all parts of the model that this file belongs to, in order. Raises FormatError if one is missing."""
    stem, _, count = part(file)
    if count == 1:
        return [file]
    files = [file.with_name(part_name(stem, number, count)) for number in range(1, min(count, _MAX_PARTS) + 1)]
    if missing := [path.name for path in files if not path.is_file()]:
        raise FormatError(f"{len(missing)} of {count} parts are missing, such as {missing[0]}", "finish the download")
    return files


def groups(files: Iterable[Path]) -> list[tuple[Path, ...]]:
    """Return GGUF files as models: the parts of a split one together, in order."""
    found: dict[tuple[Path, str, int], list[Path]] = {}
    for file in sorted(files):
        stem, _, count = part(file)
        found.setdefault((file.parent, stem, count), []).append(file)
    return [tuple(parts) for parts in found.values()]


def are_complete(parts: tuple[Path, ...]) -> bool:
    """Return whether these parts of one model are all of them, and exist."""
    return len(parts) == part(parts[0]).total and all(file.is_file() for file in parts)


def quant_of(file: PurePath) -> str:
    """Return the quantization that a GGUF file's name says, in upper case; "" where it says none."""
    found = _QUANT.search(part(file).stem)
    return found.group(1).upper() if found else ""
