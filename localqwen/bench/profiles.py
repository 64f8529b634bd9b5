"""Profiles of devices: a workload and the limits that a model must keep. There are built-in ones and the user's own."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from typing import Any

from localqwen import units
from localqwen.bench import workloads
from localqwen.bench.history import Benchmark
from localqwen.bench.samples import Row, rows
from localqwen.bench.workloads import Workload
from localqwen.errors import ConfigError, UsageError
from localqwen.machine.limits import Limits
from localqwen.models import store

#: Limit -> (unit, whether the value must stay below it).
LIMITS = {
    "threads": ("threads", True),
    "memory": ("bytes", True),
    "first_token_ms": ("ms", True),
    "first_answer_ms": ("ms", True),
    "tokens_per_second": ("tokens/s", False),
    "joules_per_token": ("J", True),
}


@dataclass(frozen=True)
class Profile:
    """A device: a workload and its limits. `limits` are named as in LIMITS, memory in bytes. `source` is the file of
    the profile."""

    name: str
    workload: Workload
    limits: Mapping[str, float]
    source: str = ""

    @property
    def process_limits(self) -> Limits:
        """Return the limits that a process can be given: processors (as many as threads are allowed) and memory."""
        threads, memory = self.limits.get("threads"), self.limits.get("memory")
        return Limits(None if threads is None else int(threads), None if memory is None else int(memory))


def profiles() -> dict[str, Profile]:
    """Return our profiles and the user's, which may replace ours. Raise ConfigError if a file has errors."""
    ours = resources.files("localqwen.bench").joinpath("profiles.toml").read_text(encoding="utf-8")
    found = _read(ours, "localqwen")
    path = store.config_file().with_name("profiles.toml")
    if path.exists():
        try:
            found |= _read(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise ConfigError(f"cannot read {path}: {exc}", "correct or remove that file") from exc
    return found


def named(name: str) -> Profile:
    """Return the profile with this name. Raise UsageError if there is none."""
    found = profiles()
    if name not in found:
        near = get_close_matches(name, found, 1)
        hint = f"did you mean {near[0]}?" if near else f"profiles: {', '.join(found)}"
        raise UsageError(f"there is no profile {name!r}", hint)
    return found[name]


def _read(text: str, source: str) -> dict[str, Profile]:
    return {name: _Table(text, name, source).profile(table) for name, table in tomllib.loads(text).items()}


@dataclass(frozen=True)
class _Table:
    """One profile in a file; an error in it names the line and the key."""

    text: str
    name: str
    source: str

    def profile(self, table: Any) -> Profile:
        if not isinstance(table, dict):
            raise self._wrong(self.name, f"{self.name} is not a table", f"begin a profile with [{self.name}]")
        settings = dict(table)
        limits = settings.pop("limits", {})
        if not isinstance(limits, dict):
            raise self._wrong("limits", f"limits is {limits!r}", "write limits = { first_answer_ms = 1500 }")
        kept = {key: self._limit(key, value) for key, value in limits.items()}
        base = self._base(settings.pop("workload", None))
        for key, value in settings.items():
            wrong = workloads.problem(key, value)
            if wrong:
                raise self._wrong(key, *wrong)
        try:
            workload = workloads.from_table(self.name, settings, base)
        except UsageError as exc:
            raise self._wrong("", exc.message, exc.hint) from exc
        return Profile(self.name, workload, kept, self.source)

    def _base(self, name: Any) -> Workload | None:
        """Return the built-in workload that `workload = "voice-assistant"` names; the profile may change its
        settings."""
        known = workloads.known()
        if name is None or name in known:
            return known.get(name)
        near = get_close_matches(str(name), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"possible: {', '.join(known)}"
        raise self._wrong("workload", f"there is no workload {name!r}", hint)

    def _limit(self, key: str, value: Any) -> float:
        if key not in LIMITS:
            near = get_close_matches(key, LIMITS, 1)
            hint = f"did you mean {near[0]}?" if near else f"limits: {', '.join(LIMITS)}"
            raise self._wrong(key, f"there is no limit {key!r}", hint)
        if key == "memory" and isinstance(value, str):
            return self._size(value)
        whole = int if key == "threads" else int | float
        if isinstance(value, bool) or not isinstance(value, whole) or not 0 < value < math.inf:
            kind = "whole number" if key == "threads" else "number"
            raise self._wrong(key, f"{key} is {value!r}", f"it must be a {kind} above 0")
        return float(value)

    def _size(self, text: str) -> float:
        size = units.parse_size(text)
        if size is None:
            raise self._wrong("memory", f"memory {text!r} is not a size", 'write it like "5GB"')
        return float(size)

    def _wrong(self, key: str, message: str, hint: str) -> ConfigError:
        line = self._line(key)
        return ConfigError(f"{self.source}{f', line {line}' if line else ''}: [{self.name}] {message}", hint)

    def _line(self, key: str) -> int | None:
        """Return the line number of a key, else that of the profile's head, from 1. The parser of the standard library
        reports none."""
        head, found = None, None
        inside = False
        for number, line in enumerate(self.text.splitlines(), 1):
            opened = re.match(r"\s*\[\s*[\"']?([^\"'\].]+)", line)
            if opened:
                inside = opened.group(1).strip() == self.name
                head = head or (number if inside else None)
            elif inside and key and re.search(rf"(^|[\s{{,.\"'])({re.escape(key)})[\"']?\s*=", line):
                found = found or number
        return found or head


@dataclass(frozen=True)
class Verdict:
    """The result of one limit. `measured` is None if nothing was measured; then the limit fails."""

    subject: str
    limit: str
    allowed: float
    measured: float | None
    passed: bool


def judge(profile: Profile, run: Benchmark) -> list[Verdict]:
    """Return a verdict for every limit and every subject. Waiting times are compared by their 95th percentile over
    turns and repeats, because people remember the slow ones; speeds and energy by their median."""
    found = rows(run.samples)
    return [
        _verdict(subject.label, limit, allowed, _measured(limit, [r for r in found if r.subject == subject.label], run))
        for subject in run.subjects
        for limit, allowed in profile.limits.items()
    ]


def _verdict(subject: str, limit: str, allowed: float, measured: float | None) -> Verdict:
    below = LIMITS[limit][1]
    passed = measured is not None and (measured <= allowed if below else measured >= allowed)
    return Verdict(subject, limit, allowed, measured, passed)


def _measured(limit: str, found: list[Row], run: Benchmark) -> float | None:
    if limit == "threads":
        threads = run.subject(found[0].subject).threads if found else 0  # a server and a GPU report none
        return float(threads) if threads else None
    kind, metric = ("memory", "peak_memory") if limit == "memory" else ("workload", limit)
    values = [sample.values.get(metric) for row in found if row.test.kind == kind for sample in row.samples]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):  # a missing answer is not a fast one
        return None
    from localqwen.bench.stats import percentile

    return max(known) if limit == "memory" else percentile(known, 95 if limit.endswith("_ms") else 50)
