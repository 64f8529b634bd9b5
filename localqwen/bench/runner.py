"""One run of the benchmark: models in processes of their own, tests in an interleaved order, samples as they come."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any

from localqwen._version import __version__
from localqwen.bench import bandwidth, history, qualities, targets
from localqwen.bench.history import Benchmark, Log, Recording
from localqwen.bench.samples import Sample, Subject, Test
from localqwen.bench.speed import context_needed
from localqwen.bench.worker import Opening, Worker, interleaved
from localqwen.engines import selection
from localqwen.errors import NotEnoughMemory, Unsupported, UsageError
from localqwen.machine import Machine, this_machine
from localqwen.machine.limits import NO_LIMITS, Limits
from localqwen.models import checkpoint_header, converted, fit, gguf_header, yarn
from localqwen.models.gguf_header import GgufHeader

#: Told what is going on, and how many samples of how many are there.
Tell = Callable[[str, int, int], None]
_CONTEXT_STEP = 256
_TOGETHER = "all models were in memory together and took turns test by test"
_APART = "the models do not fit into memory together: each was loaded anew for every repeat"


@dataclass(frozen=True)
class Plan:
    """What to measure. Every model is measured on every engine and with every number of threads; None leaves those to
    the machine. `context_length` is what chat and workloads need; raw speed takes what its tests need. `adapter` is a
    folder with a LoRA adapter, applied to all models."""

    models: Sequence[str]
    tests: Sequence[Test]
    repeats: int = 5
    engines: Sequence[str | None] = (None,)
    threads: Sequence[int | None] = (None,)
    context_length: int = 0
    force: bool = False
    adapter: str | None = None
    limits: Limits = NO_LIMITS
    options: Mapping[str, Any] | None = None  # for chat, workloads and endurance: what the child needs to know

    def __post_init__(self) -> None:
        if not self.tests:
            raise UsageError("there is nothing to measure", "give a --prompt or a --generate above 0")

    @property
    def context(self) -> int:
        """Tokens per run, the same for every test: what a context costs is then the same too."""
        needed = max([self.context_length, *map(context_needed, self.tests)])
        return -(-needed // _CONTEXT_STEP) * _CONTEXT_STEP

    @property
    def max_runs(self) -> int:
        return max(test.batch for test in self.tests)


def describe_machine(machine: Machine | None = None) -> dict[str, Any]:
    """For the head of a run: nothing in it names a person or a network."""
    found = machine or this_machine()
    return {
        "system": found.system,
        "release": platform.release(),
        "architecture": found.architecture,
        "chip": found.chip,
        "cores": found.cores,
        "memory": found.memory,
    }


def versions() -> dict[str, str]:
    """Of what can change a speed. Packages that are not here are left out."""
    found = {"localqwen": __version__, "python": platform.python_version()}
    for package in ("llama_cpp_python", "mlx", "mlx-lm"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def begin(settings: Mapping[str, Any], *, held: str = "", profile: str = "") -> Benchmark:
    """An empty run of this moment on this machine."""
    now = history.now()
    return Benchmark(
        id=history.new_id(now),
        created=now.isoformat(timespec="seconds"),
        machine=describe_machine(),
        versions=versions(),
        settings=dict(settings),
        held=held,
        profile=profile,
    )


class Runner(Recording):
    """Measures a plan into `run`, which holds what was measured so far at any moment, also after Ctrl-C."""

    def __init__(self, plan: Plan, run: Benchmark, log: Log, tell: Tell) -> None:
        super().__init__(run, log)
        self.plan, self._tell = plan, tell
        self._openings: list[Opening] = []

    def measure(self) -> None:
        """Raises what opening or measuring a model raises; samples that came before stay in `run`."""
        self._describe()
        if self.plan.adapter:
            self._note(f"with the adapter {self.plan.adapter}")
        with ExitStack() as stack:
            if self._fit_together():
                self._turns([stack.enter_context(self._open(opening)) for opening in self._openings])
            else:
                self._apart()

    def add_quality(self, reference: str | None, text: str) -> None:
        """Beside the reference, or the largest of the models; after the speed, so that nothing else is in memory."""
        pairs = zip((opening.name for opening in self._openings), self.run.subjects, strict=True)
        once = {(name, subject.engine): (name, subject) for name, subject in reversed([*pairs])}
        models, threads = [*reversed(once.values())], self.plan.threads[0]
        for sample in qualities.measure(reference, models, text, self._tell, threads=threads, force=self.plan.force):
            self._keep(sample)

    def _describe(self) -> None:
        """Before anything is loaded: what does not exist or does not fit is told in the first second."""
        for opening in _openings(self.plan):
            self._tell(f"reading {opening.label}", 0, 0)
            engine = selection.choose_for(opening.name, opening.engine).engine
            subject = targets.describe(opening.name, engine, label=opening.label)
            self._check(opening.name, engine)
            self._openings.append(opening)
            self.run = replace(self.run, subjects=(*self.run.subjects, subject))
        threads = max(filter(None, self.plan.threads), default=0) or this_machine().cores
        self._tell("measuring memory bandwidth", 0, 0)
        measured = bandwidth.measured(min(threads, self.plan.limits.cpus or threads))
        self.run = replace(self.run, subjects=tuple(replace(each, bandwidth=measured) for each in self.run.subjects))

    def _check(self, name: str, engine: str) -> None:
        path = converted.provide(name, engine=engine)
        header = checkpoint_header.read(path) if path.is_dir() else gguf_header.read(path)
        try:
            scaling = fit.stretched(header, self.plan.context)
        except UsageError as exc:
            raise Unsupported(
                f"the tests need a context of {self.plan.context:,} tokens, {path.name} was made for "
                f"{yarn.reach(header.context_length, header.scaling):,}",
                "take away from --depth, --prompt, --generate or --workload",
            ) from exc
        if scaling is not None:
            self._note(f"{path.name}: {scaling.warning}")
        with converted.adapted(self.plan.adapter, path, engine=engine):
            pass  # it fits, or says why not
        if not self.plan.force:
            fit.check(header, self.plan.context, this_machine(), max_runs=self.plan.max_runs)
            self._check_held(header)

    def _check_held(self, header: GgufHeader) -> None:
        """What is held has less than the machine."""
        needed, allowed = fit.needed_bytes(header, self.plan.context * self.plan.max_runs), self.plan.limits.memory
        if allowed is not None and needed > allowed:
            raise NotEnoughMemory(
                f"{header.path.name} needs about {needed / 1e9:.2f} GB for these tests, it is held to "
                f"{allowed / 1e9:.2f} GB",
                "use a smaller model or quantisation, or measure it all the same with --force",
            )

    def _fit_together(self) -> bool:
        if len(self._openings) == 1:
            return True
        together = sum(self._needed(subject) for subject in self.run.subjects)
        fits = fit.fits(together, this_machine().available_memory)
        self._note(_TOGETHER if fits else _APART)
        return fits

    def _needed(self, subject: Subject) -> int:
        return fit.OVERHEAD_BYTES + subject.bytes + int(self.plan.context * self.plan.max_runs * subject.kv_bytes)

    def _open(self, opening: Opening) -> Worker:
        self._tell(f"loading {opening.label}", 0, 0)
        worker = Worker(opening)
        self._opened(opening.label, worker.facts)
        return worker

    def _opened(self, label: str, facts: Mapping[str, Any]) -> None:
        """The engine says what it took: its subject is complete with that, and written down once."""
        known = self.run.subject(label)
        told = {name: facts[name] for name in ("engine", "threads", "context_length", "settings")}
        subject = replace(known, **told)
        if not known.context_length:
            self._log.subject(subject)
        changed = tuple(subject if each.label == label else each for each in self.run.subjects)
        self.run = replace(self.run, subjects=changed)
        self._keep(Sample(label, Test("load"), {"load_ms": facts["load_ms"]}))

    def _turns(self, workers: Sequence[Worker]) -> None:
        plan = self.plan
        total = plan.repeats * len(plan.tests) * len(workers)
        self._tell_sensors(workers[0])
        for done, (repeat, number, test) in enumerate(interleaved(plan.tests, plan.repeats, len(workers))):
            self._measure(workers[number], test, repeat, done, total)
        for worker in workers:
            self._memory(worker)

    def _apart(self) -> None:
        plan = self.plan
        total, done = plan.repeats * len(plan.tests) * len(self._openings), 0
        for repeat in range(plan.repeats):
            for opening in self._openings:
                with self._open(opening) as worker:
                    if not done:
                        self._tell_sensors(worker)
                    for test in plan.tests:
                        self._measure(worker, test, repeat, done, total)
                        done += 1
                    self._memory(worker)

    def _tell_sensors(self, worker: Worker) -> None:
        if any(test.kind == "sustain" for test in self.plan.tests):
            told = worker.sensors()
            found = [f"{what}: {told.get(what, 'not available')}" for what in ("temperature", "clock", "energy")]
            self._note("; ".join(found))

    def _measure(self, worker: Worker, test: Test, repeat: int, done: int, total: int) -> None:
        self._tell(f"{worker.opening.label}: {test.label}, repeat {repeat + 1} of {self.plan.repeats}", done, total)
        for sample in worker.measure(test, repeat, **(self.plan.options or {})):
            self._keep(sample)

    def _memory(self, worker: Worker) -> None:
        label = worker.opening.label
        subject = self.run.subject(label)
        values = {"kv_bytes": subject.kv_bytes * subject.context_length * self.plan.max_runs}
        peak = worker.peak_memory()
        self._keep(Sample(label, Test("memory"), values if peak is None else {"peak_memory": peak, **values}))


def _openings(plan: Plan) -> Iterator[Opening]:
    """Labels tell apart what differs: the model, and where there are several, engine and threads."""
    from localqwen.models import names

    seen: dict[str, int] = {}
    for name in plan.models:
        for engine in plan.engines:
            for threads in plan.threads:
                label = names.display(name)
                label += f" {engine}" if len(plan.engines) > 1 else ""
                label += f" {threads} thread{'s' * (threads != 1)}" if len(plan.threads) > 1 else ""
                seen[label] = seen.get(label, 0) + 1
                label += f" #{seen[label]}" if seen[label] > 1 else ""
                yield Opening(
                    name, label, engine, threads, plan.context, plan.max_runs, plan.force, plan.limits, plan.adapter
                )


def settings_of(plan: Plan) -> dict[str, Any]:
    """What was asked for, for the head of a run."""
    return {
        "tests": [asdict(test) for test in plan.tests],
        "repeats": plan.repeats,
        "context_length": plan.context,
        "max_runs": plan.max_runs,
        "limits": plan.limits.to_json(),
        **({"adapter": plan.adapter} if plan.adapter else {}),
    }
