"""Pulling a model: what would be loaded, and loading it. It counts as here only when all of its files are complete.

plan(reference)   asks the hub what the model's files are, and looks how much of them is here
run(plan)         transfers and checks what is missing, then converts where there is no official file of that kind
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from localqwen.errors import HubError, HubRefused, ModelNotFound, StorageError, UsageError
from localqwen.formats import gguf_parts
from localqwen.models import converted, inventory, names, sources, store
from localqwen.models.listing import Listing, RemoteFile
from localqwen.models.names import LocalPath, Named, Reference, Repository, Source

#: The files of a checkpoint; pictures, other frameworks' weights and duplicates stay on the hub.
_CHECKPOINT = ("*.json", "*.safetensors", "*.jinja", "merges.txt", "LICENSE*")
#: Kept free on the disk beyond what a pull takes.
_RESERVE_BYTES = 256 << 20
Stage = Literal["load", "wait", "check", "convert"]


@dataclass(frozen=True)
class Plan:
    """What a pull loads: `total_bytes` of all files, of which `missing_bytes` must come over the network. `quant` is
    what will be here; `convert` says that it is converted on this machine, into a file of about `converted_bytes`."""

    reference: Named | Repository
    source: Source
    listing: Listing
    files: tuple[RemoteFile, ...]
    quant: str
    convert: bool
    folder: Path
    missing_bytes: int
    converted_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def target(self) -> Path:
        """The converted file."""
        return store.converted_file(self.listing.repo, self.listing.commit, self.quant)


@dataclass(frozen=True)
class Step:
    """How far a pull is: bytes of the stage that it is in, over all files."""

    stage: Stage
    name: str
    done_bytes: int
    total_bytes: int


Progress = Callable[[Step], None]


def plan(reference: Reference, *, source: Source | None = None, revision: str | None = None) -> Plan:
    """Ask the hub what a pull would load.

    Raise HubError where it does not answer, HubRefused, ModelNotFound where it has no such file, UsageError for a path.
    """
    match reference:
        case LocalPath(path):
            raise UsageError(f"{path} is a path, there is nothing to pull", "name a model: localqwen list --all")
        case Named():
            return _plan_named(reference, source or "hf", revision)
        case Repository():
            return _plan_repository(reference, revision)


def _plan_named(named: Named, source: Source, revision: str | None) -> Plan:
    model, quant = named.model, named.quant
    if named.mlx:
        return _planned(named, source, model.mlx[quant].repo, revision, quant, _is_checkpoint_file)
    if quant in model.gguf:
        pattern = model.gguf[quant].file
        return _planned(named, source, model.gguf_repo, revision, quant, lambda path: fnmatch.fnmatch(path, pattern))
    names.refuse_built_in(named, "pull")
    assert model.weights is not None
    _check_convertible(model.weights.repo, quant)
    planned = _planned(named, source, model.weights.repo, revision, quant, _is_checkpoint_file)
    return replace(planned, convert=True, converted_bytes=model.made[quant])


def _planned(
    reference: Named | Repository,
    source: Source,
    repo: str,
    revision: str | None,
    quant: str,
    wanted: Callable[[str], bool],
) -> Plan:
    hub = sources.hub(source)
    listed = hub.listing(repo, revision)
    files = tuple(file for file in listed.files if wanted(file.path))
    if not files:
        raise HubRefused(f"{repo} on {hub.host()} has no file for {reference.text}", _what_there_is(listed, source))
    _check_parts(repo, files)
    missing = sum(file.bytes - hub.state(listed, file) for file in files)
    folder = hub.cached(repo).folder
    return Plan(reference, source, listed, files, quant, False, folder, missing)


def _is_checkpoint_file(path: str) -> bool:
    return "/" not in path and any(fnmatch.fnmatch(path, pattern) for pattern in _CHECKPOINT)


def _plan_repository(wanted: Repository, revision: str | None) -> Plan:
    """Plan for its GGUF file of the wanted quantization, else for its checkpoint, to be converted."""
    hub = sources.hub(wanted.source)
    listed = hub.listing(wanted.repo, revision)
    whole = wanted.mlx and any(file.path.endswith(".safetensors") for file in listed.files)
    ggufs = [] if whole else [file for file in listed.files if inventory.is_of_quant(file.path, "")]
    chosen = _chosen(wanted, listed, ggufs) if ggufs else tuple(f for f in listed.files if _is_checkpoint_file(f.path))
    if not ggufs and not any(file.path.endswith(".safetensors") for file in chosen):
        raise ModelNotFound(f"{wanted.repo} holds neither GGUF files nor safetensors", "name another repository")
    quant = gguf_parts.quant_of(Path(chosen[0].path)) if ggufs else wanted.quant or converted.CHECKPOINT_QUANT
    if not ggufs and not whole:
        _check_convertible(wanted.repo, quant)
    missing = sum(file.bytes - hub.state(listed, file) for file in chosen)
    convert = not ggufs and not whole
    made = sum(file.bytes for file in chosen) if convert else 0
    quant = "" if whole else quant
    return Plan(wanted, wanted.source, listed, chosen, quant, convert, hub.cached(wanted.repo).folder, missing, made)


def _chosen(wanted: Repository, listed: Listing, ggufs: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    """Return the files of the wanted quantization: of its models those of which every part is there."""
    by_quant = _by_quant(ggufs)
    quant = wanted.quant or (inventory.USUAL_QUANT if inventory.USUAL_QUANT in by_quant else "")
    if not wanted.quant and len(by_quant) == 1:
        (quant,) = by_quant
    elif quant not in by_quant or not quant:
        said = f"no {wanted.quant}" if wanted.quant else "several quantizations"
        raise ModelNotFound(f"{wanted.repo} has {said}", _what_there_is(listed, wanted.source))
    files = by_quant[quant]
    complete = {str(path) for parts in _models(files) if _is_complete(parts) for path in parts}
    if not complete:
        _check_parts(wanted.repo, files)
    return tuple(file for file in files if file.path in complete)


def _by_quant(files: Sequence[RemoteFile]) -> dict[str, list[RemoteFile]]:
    found: dict[str, list[RemoteFile]] = {}
    for file in files:
        found.setdefault(gguf_parts.quant_of(PurePosixPath(file.path)), []).append(file)
    return found


def _models(files: Sequence[RemoteFile]) -> list[tuple[Path, ...]]:
    return gguf_parts.groups(Path(file.path) for file in files if file.path.endswith(".gguf"))


def _is_complete(parts: tuple[Path, ...]) -> bool:
    return len(parts) == gguf_parts.part(parts[0]).total


def _check_parts(repo: str, files: Sequence[RemoteFile]) -> None:
    """Raise HubRefused for a split model of which the repository does not list every part."""
    for parts in _models(files):
        if not _is_complete(parts):
            found = f"{len(parts)} of {gguf_parts.part(parts[0]).total}"
            raise HubRefused(f"{repo} lists {found} parts of {parts[0].name}", "name another repository")


def _check_convertible(repo: str, quant: str) -> None:
    """Raise ModelNotFound for a quantization that the converter does not know, before the weights are downloaded."""
    known = converted.quantizations()
    if quant.lower() not in known:
        raise ModelNotFound(
            f"{repo} has no GGUF file, and its weights cannot be converted to {quant[:40]}",
            f"quantizations: {', '.join(known)}",
        )


def _what_there_is(listed: Listing, source: Source) -> str:
    """Return a hint with the quantizations of the GGUF files in a repository, or their names if they say none."""
    ggufs = [file for file in listed.files if inventory.is_of_quant(file.path, "")]
    if not ggufs:
        return "localqwen list --all"
    quants = sorted(quant.lower() for quant in _by_quant(ggufs) if quant) or sorted(file.path for file in ggufs)
    return f"it has {', '.join(quants)}: localqwen pull {Repository(source, listed.repo).text}:…"


def check_space(planned: Plan) -> None:
    """Raise StorageError where the disks have no room for what is missing and for its conversion."""
    needs: dict[int, list[tuple[Path, int]]] = {}
    wanted = [(planned.folder, planned.missing_bytes)]
    if planned.convert and not planned.target.exists():
        wanted.append((planned.target, planned.converted_bytes))
    for folder, size in wanted:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        needs.setdefault(existing.stat().st_dev, []).append((existing, size))
    for places in needs.values():
        place, size = places[0][0], sum(size for _, size in places)
        free = shutil.disk_usage(place).free
        if size and size + _RESERVE_BYTES > free:
            raise StorageError(
                f"{planned.reference.text} takes {size / 1e9:.1f} GB more at {place}, {free / 1e9:.1f} GB are free",
                "make room (localqwen list, localqwen rm), or use another disk: HF_HOME=…, LOCALQWEN_HOME=…",
            )


def run(planned: Plan, progress: Progress | None = None) -> Path:
    """Load what is missing, and return what an engine opens.

    Raise HubError, StorageError, ConversionError; what came so far is kept.
    """
    hub = sources.hub(planned.source)
    check_space(planned)
    advance = progress or (lambda step: None)
    finished, paths = 0, []
    for file in planned.files:

        def report(stage: str, done: int, file: RemoteFile = file, finished: int = finished) -> None:
            advance(Step(stage, file.path, finished + done, planned.total_bytes))  # type: ignore[arg-type]

        paths.append(hub.fetch(planned.listing, file, report))
        finished += file.bytes
    hub.remember(planned.listing)
    if planned.convert:
        return _convert(planned, paths[0].parent, advance)
    return min(paths) if paths[0].suffix == ".gguf" else paths[0].parent


def _convert(planned: Plan, folder: Path, advance: Progress) -> Path:
    name = planned.listing.repo.rpartition("/")[2]
    if not planned.target.exists():
        converted.convert(
            folder,
            planned.target,
            quant=planned.quant,
            name=name,
            progress=lambda step: advance(Step("convert", name, step.done_bytes, step.total_bytes)),
        )
    return planned.target


def plan_or_present(reference: Reference, *, source: Source | None = None, revision: str | None = None) -> Plan | Path:
    """Return the plan, or, where the hub does not answer and the model is complete on this disk, its path."""
    try:
        return plan(reference, source=source, revision=revision)
    except HubRefused:
        raise
    except HubError:
        here = inventory.find(reference) if revision is None else None
        if here is None:
            raise
        return here.path


def wanted(reference: Reference, *, engine: str | None = None, quant: str | None = None) -> Reference:
    """Return what `localqwen pull NAME --engine E --quant Q` means. Raise UsageError, ModelNotFound."""
    match reference:
        case Named():
            named = names.with_quant(reference, quant) if quant else reference
            return _for_engine(named, engine, bool(quant))
        case Repository(source, repo, said):
            return Repository(source, repo, (quant or said).upper(), mlx=engine == "mlx" and not quant and not said)
        case LocalPath():
            return reference


def _for_engine(named: Named, engine: str | None, quant_given: bool) -> Named:
    if engine not in ("mlx", "gguf", "llama.cpp", None):
        raise UsageError(f"there is no engine {engine!r}", "engines: mlx, gguf")
    if engine is None or (engine == "mlx") == named.mlx:
        return named
    if engine != "mlx":
        hint = f"leave out --engine, or name one of {', '.join(named.model.quants)}"
        raise UsageError(f"{named.quant} of {named.model.name} is for MLX", hint)
    if not named.model.mlx:
        raise ModelNotFound(
            f"{named.model.name} has no official files for MLX",
            f"localqwen pull {named.model.name} --engine gguf, which llama.cpp runs on a Mac too",
        )
    if quant_given:
        raise names.no_quant(named.model, named.quant)
    return Named(named.model, next(iter(named.model.mlx)), named.why)
