"""Saves every run of the benchmark as a file of JSON lines, one line as soon as each sample is measured.

The first line is the head (machine, versions, subjects), the next lines are one sample each, and a last line says that
the run is complete. So a run that was stopped, even by a power cut, keeps its samples; the missing last line marks it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from localqwen.bench.samples import Sample, Subject
from localqwen.errors import ModelNotFound, StorageError, UsageError
from localqwen.models import store

FORMAT = "localqwen-bench"
VERSION = 1


@dataclass(frozen=True)
class Benchmark:
    """A saved run. `held` names the limits of the process, "" if there were none; `notes` are for the reader; `damaged`
    counts lines that could not be read; `verdicts` are those of a profile's limits."""

    id: str
    created: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    subjects: tuple[Subject, ...] = ()
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()
    held: str = ""
    profile: str = ""
    verdicts: tuple[Mapping[str, Any], ...] = ()
    complete: bool = False
    damaged: int = field(default=0, compare=False)

    def subject(self, label: str) -> Subject:
        """Return the subject with this label."""
        return next(subject for subject in self.subjects if subject.label == label)

    def with_sample(self, sample: Sample) -> Benchmark:
        """Return the run with one more sample."""
        return replace(self, samples=(*self.samples, sample))

    def head(self) -> dict[str, Any]:
        """Return the first line of the file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "id": self.id,
            "created": self.created,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "settings": dict(self.settings),
            "held": self.held,
            "profile": self.profile,
        }


def new_id(now: datetime) -> str:
    """Return an id that sorts by time; its end distinguishes two runs in the same second."""
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def now() -> datetime:
    """Return the present time in UTC."""
    return datetime.now(UTC)


def folder() -> Path:
    """Return the folder of all runs."""
    return store.home() / "bench"


class Log:
    """Writes a run to a file while it goes on. A full disk ends the log but never the run; `failure` reports it. Use
    with `with`."""

    def __init__(self, benchmark: Benchmark, where: Path | None) -> None:
        self.failure: StorageError | None = None
        self.path = where / f"{benchmark.id}.jsonl" if where else None
        self._file: TextIO | None = None
        self.samples = 0
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("w", encoding="utf-8")
            except OSError as exc:
                self._fail(exc)
        self._write(benchmark.head())

    def subject(self, subject: Subject) -> None:
        """Write a subject."""
        self._write({"subject_of_run": asdict(subject)})

    def sample(self, sample: Sample) -> None:
        """Write a sample."""
        self._write(sample.to_json())
        self.samples += 1

    def note(self, text: str) -> None:
        """Write a note."""
        self._write({"note": text})

    def end(self, verdicts: Iterable[Mapping[str, Any]] = ()) -> None:
        """Write the last line: the run is complete."""
        self._write({"end": now().isoformat(timespec="seconds"), "verdicts": [dict(each) for each in verdicts]})

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as exc:
            self._fail(exc)

    def _fail(self, exc: OSError) -> None:
        self.failure = StorageError(f"cannot write {self.path}: {exc.strerror}", "free some space, or use --no-save")
        self._file = None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is None or self.path is None:
            return
        self._file.close()
        if not self.samples:  # nothing was measured, so nothing is saved
            self.path.unlink()


class Recording:
    """A run that is being measured: `run` has what was measured so far, and so has the log on disk."""

    def __init__(self, run: Benchmark, log: Log) -> None:
        self.run, self._log = run, log

    def _keep(self, sample: Sample) -> None:
        self.run = self.run.with_sample(sample)
        self._log.sample(sample)

    def _note(self, text: str) -> None:
        self.run = replace(self.run, notes=(*self.run.notes, text))
        self._log.note(text)


def read(path: Path) -> Benchmark:
    """Return a run from its file; lines that cannot be read are skipped and counted. Raise StorageError if the file
    cannot be read, UsageError if its head is damaged or of another kind: without the head the samples mean nothing."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as exc:
        raise StorageError(f"cannot read {path}: {exc.strerror}", "localqwen bench list") from exc
    found = _head(lines[0] if lines else "", path)
    for line in lines[1:]:
        try:
            found = _with_record(found, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            found = replace(found, damaged=found.damaged + 1)
    return found


def _head(line: str, path: Path) -> Benchmark:
    try:
        head = json.loads(line)
        if head["format"] != FORMAT or head["version"] > VERSION:
            raise ValueError
        names = ("id", "created", "machine", "versions", "settings", "held", "profile")
        return Benchmark(**{name: head[name] for name in names})
    except (ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{path} is damaged, or not a run of localqwen bench", f"remove it: {path}") from exc


def _with_record(run: Benchmark, record: Mapping[str, Any]) -> Benchmark:
    if "subject_of_run" in record:
        return replace(run, subjects=(*run.subjects, Subject(**record["subject_of_run"])))
    if "note" in record:
        return replace(run, notes=(*run.notes, str(record["note"])))
    if "end" in record:
        return replace(run, complete=True, verdicts=tuple(record["verdicts"]))
    return run.with_sample(Sample.from_json(record))


def runs(where: Path | None = None) -> tuple[list[Benchmark], list[str]]:
    """Return all runs, the newest first, and messages about files that could not be read."""
    found, complaints = [], []
    for path in sorted((where or folder()).glob("*.jsonl"), reverse=True):
        try:
            run = read(path)
        except (UsageError, StorageError) as error:
            complaints.append(error.message)
            continue
        found.append(run)
        complaints += [_damage(run, path)] if run.damaged else []
    return found, complaints


def _damage(run: Benchmark, path: Path) -> str:
    lines = "a line" if run.damaged == 1 else f"{run.damaged} lines"
    return f"{lines} of {path} cannot be read and {'is' if run.damaged == 1 else 'are'} ignored"


def find(wanted: str, where: Path | None = None) -> tuple[Benchmark, list[str]]:
    """Return a run, and messages about it. `name` is its id, the beginning of its id, `last`, `last-1`, …, or a file.

    Raise ModelNotFound if there is none, UsageError if several ids begin with `name`.
    """
    path = Path(wanted)
    if path.is_file():
        run = read(path)
        return run, [_damage(run, path)] if run.damaged else []
    paths = sorted((where or folder()).glob("*.jsonl"), reverse=True)
    if wanted == "last" or (wanted.startswith("last-") and wanted[5:].isdigit()):
        chosen = paths[int(wanted[5:] or 0) :][:1]
    else:
        chosen = [each for each in paths if each.stem.startswith(wanted)]
    if len(chosen) > 1:
        raise UsageError(f"{len(chosen)} runs begin with {wanted!r}", f"name one: {', '.join(p.stem for p in chosen)}")
    if not chosen:
        raise ModelNotFound(f"there is no run {wanted!r}", "localqwen bench list")
    run = read(chosen[0])
    return run, [_damage(run, chosen[0])] if run.damaged else []
