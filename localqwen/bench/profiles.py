"""Profiles of devices: a workload and limits that a model must keep there. Ours, and the user's own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from typing import Any

from localqwen.bench import workloads
from localqwen.bench.history import Benchmark
from localqwen.bench.limits import Limits
from localqwen.bench.samples import Row, rows
from localqwen.bench.workloads import Workload
from localqwen.errors import ConfigError, UsageError
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
_UNITS = {"GB": 10**9, "MB": 10**6, "GiB": 1 << 30, "MiB": 1 << 20}


@dataclass(frozen=True)
class Profile:
    """`limits` are by the names of LIMITS, memory in bytes. `source` says where it stands."""

    name: str
    workload: Workload
    limits: Mapping[str, float]
    source: str = ""

    @property
    def held(self) -> Limits:
        """What a process can be held to: as many processors as threads are allowed, and the memory."""
        threads, memory = self.limits.get("threads"), self.limits.get("memory")
        return Limits(None if threads is None else int(threads), None if memory is None else int(memory))


def profiles() -> dict[str, Profile]:
    """Ours, then the user's, which may take their place. Raises ConfigError for a file of another shape."""
    ours = resources.files("localqwen.bench").joinpath("profiles.toml").read_text(encoding="utf-8")
    found = _read(ours, "localqwen")
    path = store.config_file().with_name("profiles.toml")
    if path.exists():
        try:
            found |= _read(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
            raise ConfigError(f"cannot read {path}: {exc}", "repair or remove that file") from exc
    return found


def named(name: str) -> Profile:
    found = profiles()
    if name not in found:
        near = get_close_matches(name, found, 1)
        hint = f"did you mean {near[0]}?" if near else f"profiles: {', '.join(found)}"
        raise UsageError(f"there is no profile {name!r}", hint)
    return found[name]


def _read(text: str, source: str) -> dict[str, Profile]:
    return {name: _profile(name, table, source) for name, table in tomllib.loads(text).items()}


def _profile(name: str, table: Any, source: str) -> Profile:
    where = f"the profile {name} of {source}"
    if not isinstance(table, dict):
        raise ConfigError(f"{source}: {name} is no table", f"a profile is written [{name}]")
    settings = dict(table)
    limits = {key: _limit(key, value, where) for key, value in settings.pop("limits", {}).items()}
    base = settings.pop("workload", None)
    try:
        workload = workloads.named([base])[0] if base else workloads.from_table(name, settings)
    except UsageError as exc:
        raise ConfigError(f"{where}: {exc.message}", exc.hint) from exc
    return Profile(name, workload, limits, source)


def _limit(key: str, value: Any, where: str) -> float:
    if key not in LIMITS:
        near = get_close_matches(key, LIMITS, 1)
        hint = f"did you mean {near[0]}?" if near else f"limits: {', '.join(LIMITS)}"
        raise ConfigError(f"{where}: there is no limit {key!r}", hint)
    if key == "memory" and isinstance(value, str):
        unit = next((unit for unit in _UNITS if value.endswith(unit)), None)
        text = value.removesuffix(unit).strip() if unit else ""
        if unit is None or not text.replace(".", "", 1).isdecimal():
            raise ConfigError(f"{where}: memory {value!r} is no size", 'write it like "5GB"')
        return float(text) * _UNITS[unit]
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ConfigError(f"{where}: {key} is {value!r}", "a limit is a number above 0")
    return float(value)


@dataclass(frozen=True)
class Verdict:
    """`measured` is None where nothing was measured; then nothing passes."""

    subject: str
    limit: str
    allowed: float
    measured: float | None
    passed: bool


def judge(profile: Profile, run: Benchmark) -> list[Verdict]:
    """Every limit for every subject. Waits are judged by their 95th percentile over turns and repeats, because people
    remember the slow ones; speeds and energy by their median."""
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
        return float(run.subject(found[0].subject).threads) if found else None
    kind, metric = ("memory", "peak_memory") if limit == "memory" else ("workload", limit)
    values = [sample.values.get(metric) for row in found if row.test.kind == kind for sample in row.samples]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):  # an answer that never came is no fast answer
        return None
    from localqwen.bench.stats import percentile

    return max(known) if limit == "memory" else percentile(known, 95 if limit.endswith("_ms") else 50)
