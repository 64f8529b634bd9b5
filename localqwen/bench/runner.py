"""One run of the benchmark: each model in its own process, tests in an interleaved order, samples as they come."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import Any

from localqwen._version import __version__
from localqwen.bench import bandwidth, history, quality, targets
from localqwen.bench.history import Benchmark, Log, Recording
from localqwen.bench.samples import Sample, Subject, Test
from localqwen.bench.speed import context_needed
from localqwen.bench.worker import Target, Worker, interleaved
from localqwen.chat.load_options import LoadOptions
from localqwen.errors import NotEnoughMemory, Unsupported, UsageError
from localqwen.formats import model_header, yarn
from localqwen.formats.model_header import ModelHeader
from localqwen.machine import Machine, this_machine
from localqwen.machine.limits import NO_LIMITS, Limits
from localqwen.models import converted, fit
from localqwen.models.resolve import MLX, ResolvedModel

#: Called with what is being done, the samples so far and their total.
Report = Callable[[str, int, int], None]
_CONTEXT_STEP = 256
_TOGETHER = "all models were in memory together and took turns test by test"
_APART = "the models do not fit into memory together: each was loaded again for every repeat"


@dataclass(frozen=True)
class Plan:
    """What to measure. Every model is measured with every number of threads; None leaves it to the machine.

    A model that is measured on several engines is in `models` once for each; `label_engines` puts the engine into the
    labels. `context_length` is what chat and workloads need, in tokens; raw speed adds what its tests need. `options`
    apply to all models; their threads, context and parallel answers come from the plan."""

    models: Sequence[ResolvedModel]
    tests: Sequence[Test]
    repeats: int = 5
    label_engines: bool = False
    threads: Sequence[int | None] = (None,)
    context_length: int = 0
    options: LoadOptions = field(default_factory=LoadOptions)
    limits: Limits = NO_LIMITS
    details: Mapping[str, Any] | None = None  # for chat, workloads and endurance: what the worker needs to know

    def __post_init__(self) -> None:
        if not self.tests:
            raise UsageError("there is nothing to measure", "give a --prompt or a --generate above 0")

    @property
    def context(self) -> int:
        """Return the tokens per run, the same for every test, so that the cost of the context is the same too."""
        needed = max([self.context_length, *map(context_needed, self.tests)])
        return -(-needed // _CONTEXT_STEP) * _CONTEXT_STEP

    @property
    def max_runs(self) -> int:
        """Return the most answers at once."""
        return max(test.batch for test in self.tests)


def describe_machine(machine: Machine | None = None) -> dict[str, Any]:
    """Return the machine for the head of a run. Nothing in it names a person or a network."""
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
    """Return the versions of everything that can change a speed, without packages that are not installed."""
    found = {"localqwen": __version__, "python": platform.python_version()}
    for package in ("llama_cpp_python", "mlx", "mlx-lm"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def begin(settings: Mapping[str, Any], *, limits: str = "", profile: str = "") -> Benchmark:
    """Return an empty run that begins now on this machine. `limits` are those of its processes, in words."""
    now = history.now()
    return Benchmark(
        id=history.new_id(now),
        created=now.isoformat(timespec="seconds"),
        machine=describe_machine(),
        versions=versions(),
        settings=dict(settings),
        held=limits,
        profile=profile,
    )


class Runner(Recording):
    """Measures a plan into `run`, which always has everything that was measured so far, also after Ctrl-C."""

    def __init__(self, plan: Plan, run: Benchmark, log: Log, report: Report) -> None:
        super().__init__(run, log)
        self.plan, self._report = plan, report
        self._targets: list[Target] = []

    def measure(self) -> None:
        """Run all tests. Raise what loading or measuring a model raises; the samples before that stay in `run`."""
        self._describe()
        if self.plan.options.adapter:
            self._note(f"with the adapter {self.plan.options.adapter}")
        if self.plan.options.kv_quant:
            self._note(f"keys and values in {self.plan.options.kv_quant} bits")
        with ExitStack() as stack:
            if self._fit_together():
                self._turns([stack.enter_context(self._open(target)) for target in self._targets])
            else:
                self._apart()

    def add_quality(self, reference: ResolvedModel | None, text: str) -> None:
        """Measure quality against the reference, or against the largest of the models.

        Call it after `measure`, so that nothing else is in memory."""
        pairs = zip((target.model for target in self._targets), self.run.subjects, strict=True)
        once = {(model.name, subject.engine): (model, subject) for model, subject in reversed([*pairs])}
        models, options = [*reversed(once.values())], replace(self.plan.options, threads=self.plan.threads[0])
        for sample in quality.measure(reference, models, text, self._report, options):
            self._keep(sample)

    def _describe(self) -> None:
        """Describe and check all models before anything is loaded, so that an error comes in the first second."""
        for target in _targets(self.plan):
            self._report(f"reading {target.label}", 0, 0)
            subject = targets.describe(target.model, label=target.label, kv=self._kv)
            self._check(target.model)
            self._targets.append(target)
            self.run = replace(self.run, subjects=(*self.run.subjects, subject))
        threads = max(filter(None, self.plan.threads), default=0) or this_machine().cores
        self._report("measuring memory bandwidth", 0, 0)
        measured = bandwidth.measured(min(threads, self.plan.limits.cpus or threads))
        self.run = replace(self.run, subjects=tuple(replace(each, bandwidth=measured) for each in self.run.subjects))

    @property
    def _kv(self) -> str:
        """Return the type of keys and values."""
        return fit.kv_type(self.plan.options.kv_quant)

    def _check(self, model: ResolvedModel) -> None:
        path = model.path()
        header = model_header.read(path)
        try:
            scaling = fit.stretched(header, self.plan.context)
        except UsageError as exc:
            raise Unsupported(
                f"the tests need a context of {self.plan.context:,} tokens, {path.name} supports "
                f"{yarn.reach(header.context_length, header.scaling):,}",
                "use a smaller --depth, --prompt, --generate or --workload",
            ) from exc
        if scaling is not None:
            self._note(f"{path.name}: {scaling.warning}")
        with converted.adapted(self.plan.options.adapter, path, for_mlx=model.engine == MLX):
            pass  # entering raises if the adapter does not fit the model
        if not self.plan.options.force:
            fit.check(header, self.plan.context, this_machine(), self._kv, max_runs=self.plan.max_runs)
            self._check_limits(header)

    def _check_limits(self, header: ModelHeader) -> None:
        """Raise NotEnoughMemory if the tests need more than the limits allow, which is less than the machine has."""
        needed = fit.needed_bytes(header, self.plan.context * self.plan.max_runs, self._kv)
        allowed = self.plan.limits.memory
        if allowed is not None and needed > allowed:
            raise NotEnoughMemory(
                f"{header.path.name} needs about {needed / 1e9:.2f} GB for these tests, it is limited to "
                f"{allowed / 1e9:.2f} GB",
                "use a smaller model or quantization, or measure it anyway with --force",
            )

    def _fit_together(self) -> bool:
        if len(self._targets) == 1:
            return True
        together = sum(self._needed(subject) for subject in self.run.subjects)
        fits = fit.fits(together, this_machine().available_memory)
        self._note(_TOGETHER if fits else _APART)
        return fits

    def _needed(self, subject: Subject) -> int:
        return fit.OVERHEAD_BYTES + subject.bytes + int(self.plan.context * self.plan.max_runs * subject.kv_bytes)

    def _open(self, target: Target) -> Worker:
        self._report(f"loading {target.label}", 0, 0)
        worker = Worker(target)
        self._opened(target.label, worker.facts)
        return worker

    def _opened(self, label: str, facts: Mapping[str, Any]) -> None:
        """Complete a subject with what its engine reports, and log it once."""
        known = self.run.subject(label)
        values = {name: facts[name] for name in ("engine", "threads", "context_length", "settings")}
        subject = replace(known, **values)
        if not known.context_length:
            self._log.subject(subject)
        changed = tuple(subject if each.label == label else each for each in self.run.subjects)
        self.run = replace(self.run, subjects=changed)
        self._keep(Sample(label, Test("load"), {"load_ms": facts["load_ms"]}))

    def _turns(self, workers: Sequence[Worker]) -> None:
        plan = self.plan
        total = plan.repeats * len(plan.tests) * len(workers)
        self._note_sensors(workers[0])
        for done, (repeat, number, test) in enumerate(interleaved(plan.tests, plan.repeats, len(workers))):
            self._measure(workers[number], test, repeat, done, total)
        for worker in workers:
            self._memory(worker)

    def _apart(self) -> None:
        plan = self.plan
        total, done = plan.repeats * len(plan.tests) * len(self._targets), 0
        for repeat in range(plan.repeats):
            for target in self._targets:
                with self._open(target) as worker:
                    if not done:
                        self._note_sensors(worker)
                    for test in plan.tests:
                        self._measure(worker, test, repeat, done, total)
                        done += 1
                    self._memory(worker)

    def _note_sensors(self, worker: Worker) -> None:
        if any(test.kind == "sustain" for test in self.plan.tests):
            sources = worker.sensors()
            found = [f"{what}: {sources.get(what, 'not available')}" for what in ("temperature", "clock", "energy")]
            self._note("; ".join(found))

    def _measure(self, worker: Worker, test: Test, repeat: int, done: int, total: int) -> None:
        self._report(f"{worker.target.label}: {test.label}, repeat {repeat + 1} of {self.plan.repeats}", done, total)
        for sample in worker.measure(test, repeat, **(self.plan.details or {})):
            self._keep(sample)

    def _memory(self, worker: Worker) -> None:
        label = worker.target.label
        subject = self.run.subject(label)
        values = {"kv_bytes": subject.kv_bytes * subject.context_length * self.plan.max_runs}
        peak = worker.peak_memory()
        self._keep(Sample(label, Test("memory"), values if peak is None else {"peak_memory": peak, **values}))


def _targets(plan: Plan) -> Iterator[Target]:
    """Yield the targets. Labels name what differs: the model, and engine and threads if there are several."""
    seen: dict[str, int] = {}
    for model in plan.models:
        for threads in plan.threads:
            label = model.display
            label += f" {model.engine}" if plan.label_engines else ""
            label += f" {threads} thread{'s' * (threads != 1)}" if len(plan.threads) > 1 else ""
            seen[label] = seen.get(label, 0) + 1
            label += f" #{seen[label]}" if seen[label] > 1 else ""
            options = replace(plan.options, threads=threads, context_length=plan.context, parallel=plan.max_runs)
            yield Target(model, label, options, plan.limits)


def settings_of(plan: Plan) -> dict[str, Any]:
    """Return the settings of a plan for the head of a run."""
    return {
        "tests": [asdict(test) for test in plan.tests],
        "repeats": plan.repeats,
        "context_length": plan.context,
        "max_runs": plan.max_runs,
        "limits": plan.limits.to_json(),
        **{name: value for name in ("adapter", "kv_quant") if (value := getattr(plan.options, name))},
    }
