"""Measure on the command line: from flags to a plan, a bar while it runs, a report at the end."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from localqwen.cli import INTERRUPTED
from localqwen.cli.format import aligned
from localqwen.cli.progress import counting_bar
from localqwen.errors import LocalqwenError, UsageError

if TYPE_CHECKING:
    from localqwen.bench.history import Benchmark, Log
    from localqwen.bench.profiles import Profile
    from localqwen.bench.runner import Plan
    from localqwen.bench.samples import Test
    from localqwen.bench.workloads import Workload
    from localqwen.cli.loading import Loading
    from localqwen.models.resolve import ResolvedModel

#: Tokens that an endurance run generates before it begins a new answer.
_SUSTAINED_ANSWER = 512


@dataclass(frozen=True)
class BenchRequest:
    """The flags of `localqwen bench`, as click gives them. `typed` are the names of those that were typed, and do not
    come from the configuration."""

    typed: frozenset[str]
    models: tuple[str, ...]
    prompt: list[int]
    generate: int
    depth: list[int]
    batch: list[int]
    chat: bool
    budgets: list[int]
    workload: str | None
    sustain: float | None
    quality: bool
    reference: str | None
    text: Path | None
    profile: str | None
    hold: bool
    url: str | None
    concurrency: list[int]
    repeats: int
    threads: list[int] | None
    engine: str | None
    form: str | None
    llama_bench: bool
    plot: Path | None
    save: bool
    loading: Loading

    @property
    def speed_typed(self) -> bool:
        """Return whether one of the flags of raw speed was typed."""
        return bool(self.typed & {"prompt", "generate", "depth", "batch"})

    @property
    def speed(self) -> bool:
        """Return whether to measure raw speed: if nothing else is requested. Quality is measured in addition to it."""
        return self.speed_typed or not (self.chat or self.workload or self.sustain or self.profile)


class Running(Protocol):
    """A runner of local models, or of a server."""

    @property
    def run(self) -> Benchmark:
        """Return what was measured so far."""
        ...

    def measure(self) -> None:
        """Run all tests."""
        ...


def run(request: BenchRequest) -> int:
    """Measure and show the report. Return the exit code."""
    from localqwen.bench import profiles

    if not request.models and not request.url:
        raise UsageError(
            "there is no model to measure", "localqwen bench demo; to see earlier runs: localqwen bench list"
        )
    if request.quality and request.loading.options.adapter:
        raise UsageError(
            "--quality measures the models as they are on disk, without --adapter", "leave one of them out"
        )
    request = replace(request, form=form_of(request.form, request.llama_bench))
    profile = profiles.named(request.profile) if request.profile else None
    if request.hold and profile is None:
        raise UsageError("--hold needs the limits of a profile", "localqwen bench MODEL --profile phone --hold")
    workloads = _workloads(request, profile)
    if request.url:
        return _measure_server(request, workloads, profile)
    return _measure_models(request, workloads, profile)


def _workloads(request: BenchRequest, profile: Profile | None) -> dict[str, Workload]:
    """Return the workloads by name: the requested ones, that of the profile, and the conversation of --chat."""
    from localqwen.bench import workloads

    found = workloads.named([name.strip() for name in request.workload.split(",")]) if request.workload else []
    found += [profile.workload] if profile else []
    found += [workloads.known()["conversation"]] if request.chat else []
    return {workload.name: workload for workload in found}


def _tests(request: BenchRequest, workloads: dict[str, Workload]) -> list[Test]:
    """Return the tests that are conversations: workloads, and that of --chat in every mode of thinking."""
    from localqwen.bench import chat

    wanted = [workload for name, workload in workloads.items() if not (request.chat and name == "conversation")]
    return [*(workload.test for workload in wanted), *(chat.tests(request.budgets) if request.chat else ())]


def _measure_models(request: BenchRequest, workloads: dict[str, Workload], profile: Profile | None) -> int:
    from localqwen.bench import history, quality, runner

    plan = _plan(request, workloads, profile)
    plan = replace(plan, limits=plan.limits.here())
    if request.quality:
        quality.check_reference(len({(model.name, model.engine) for model in plan.models}), request.reference)
    plan = replace(plan, models=_ensured(plan.models, request.loading))
    reference = _reference(request)
    begun = runner.begin(runner.settings_of(plan), limits=plan.limits.text, profile=profile.name if profile else "")
    with history.Log(begun, history.folder() if request.save else None) as log, counting_bar() as report:
        running = runner.Runner(plan, begun, log, report)

        def steps() -> None:
            running.measure()
            if request.quality:
                running.add_quality(reference, _text(request.text))

        stopped = _until_stopped(steps, log)
        done = _ended(running.run, log, profile, stopped=stopped)
    return _report(request, done, log, stopped=stopped)


def _models(request: BenchRequest, engines: Sequence[str | None]) -> Iterator[ResolvedModel]:
    """Yield every model for every engine."""
    from localqwen.engines import selection
    from localqwen.models import names

    for name in request.models:
        reference = names.parse(name)
        for engine in engines:
            yield selection.resolve(reference, engine, given=name)


def _ensured(models: Sequence[ResolvedModel], loading: Loading) -> list[ResolvedModel]:
    """Return the models with their files; one that is given twice is resolved once."""
    once: dict[tuple[str, str], ResolvedModel] = {}
    for model in models:
        if (model.name, model.engine) not in once:
            once[model.name, model.engine] = loading.ensure(model)
    return [once[model.name, model.engine] for model in models]


def _reference(request: BenchRequest) -> ResolvedModel | None:
    if not (request.quality and request.reference):
        return None
    return request.loading.ensure(request.loading.resolve(request.reference))


def _plan(request: BenchRequest, workloads: dict[str, Workload], profile: Profile | None) -> Plan:
    from localqwen.bench import runner, samples, speed
    from localqwen.machine import limits

    tests = list(speed.tests(request.prompt, request.generate, request.depth, request.batch)) if request.speed else []
    tests += _tests(request, workloads)
    if request.sustain:
        tests.append(samples.Test("sustain", generate=_SUSTAINED_ANSWER, depth=request.depth[0]))
    allowed = profile.limits.get("threads") if profile else None
    threads: list[int | None] = list(request.threads) if request.threads else [_threads(allowed)]
    engines = [name.strip() for name in request.engine.split(",")] if request.engine else [None]
    return runner.Plan(
        models=list(_models(request, engines)),
        tests=tests,
        repeats=request.repeats,
        label_engines=len(engines) > 1,
        threads=threads,
        context_length=max((workload.context_needed for workload in workloads.values()), default=0),
        options=request.loading.options,
        limits=profile.process_limits if profile and request.hold else limits.NO_LIMITS,
        details={
            "workloads": {name: asdict(workload) for name, workload in workloads.items()},
            "seconds": request.sustain,
        },
    )


def _threads(allowed: float | None) -> int | None:
    """Return as many threads as the profile allows, or None if this machine has no more than that."""
    from localqwen.machine import usable_cores

    return int(allowed) if allowed is not None and allowed < usable_cores() else None


def _text(path: Path | None) -> str:
    from localqwen.bench import quality

    if path is None:
        return quality.bundled_text()
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read {path}: {exc}", "give --text a file of UTF-8 text") from exc


def _measure_server(request: BenchRequest, workloads: dict[str, Workload], profile: Profile | None) -> int:
    from localqwen.bench import history, runner
    from localqwen.bench.remote import RemoteModel
    from localqwen.bench.remote_runner import RemoteRunner

    adapter, kv_quant = request.loading.options.adapter, "kv_quant" in request.typed
    flags = {"--sustain": request.sustain, "--quality": request.quality, "--adapter": adapter, "--kv-quant": kv_quant}
    refused = [flag for flag, given in flags.items() if given]
    if refused or request.speed_typed or request.hold:
        raise UsageError(
            f"a server is measured by its answers: {', '.join(refused) or 'no raw speed, no --hold'} with --url",
            "--chat, --workload or --profile",
        )
    tests = [replace(test, batch=batch) for batch in request.concurrency for test in _tests(request, workloads)]
    model = RemoteModel(request.url or "", *request.models[:1], key=os.environ.get("LOCALQWEN_BENCH_KEY", ""))
    settings = {"url": model.url, "repeats": request.repeats, "tests": [asdict(test) for test in tests]}
    begun = runner.begin(settings, profile=profile.name if profile else "")
    with history.Log(begun, history.folder() if request.save else None) as log, counting_bar() as report:
        running = RemoteRunner(model, tests, workloads, request.repeats, begun, log, report)
        stopped = _until_stopped(running.measure, log)
        done = _ended(running.run, log, profile, stopped=stopped)
    model.close()
    return _report(request, done, log, stopped=stopped)


def _until_stopped(measure: Callable[[], None], log: Log) -> bool:
    """Measure, and return whether Ctrl-C stopped it. Name the saved run if an error ends it, and raise the error."""
    try:
        measure()
    except KeyboardInterrupt:
        return True
    except LocalqwenError:
        if log.path is not None and log.samples:
            sys.stderr.write(f"the samples so far are saved: localqwen bench show {log.path.stem}\n")
        raise
    return False


def _ended(done: Benchmark, log: Log, profile: Profile | None, *, stopped: bool) -> Benchmark:
    from localqwen.bench import profiles

    if stopped:
        return done
    verdicts = tuple(asdict(verdict) for verdict in profiles.judge(profile, done)) if profile else ()
    log.end(verdicts)
    return replace(done, complete=True, verdicts=verdicts)


def _report(request: BenchRequest, done: Benchmark, log: Log, *, stopped: bool) -> int:
    show(done, request.form, llama_bench=request.llama_bench)
    if log.failure is not None:
        sys.stderr.write(f"warning: the run is not saved: {log.failure.message}\n")
    elif request.save and log.samples:
        sys.stderr.write(f"saved: localqwen bench show {done.id}\n")
    if request.plot:
        from localqwen.bench import report

        sys.stderr.write(f"charts: {report.write([done], request.plot.expanduser())[0]}\n")
    if stopped:
        return INTERRUPTED
    return 0 if all(verdict["passed"] for verdict in done.verdicts) else 1


def form_of(form: str | None, llama_bench: bool) -> str | None:
    """Return the format of a report. Raise UsageError for --llama-bench with anything but JSON."""
    if llama_bench and form not in (None, "json"):
        raise UsageError(f"--llama-bench writes JSON, not {form}", "--llama-bench, or --json --llama-bench")
    return "json" if llama_bench else form


def show(run: Benchmark, form: str | None, *, llama_bench: bool = False) -> None:
    """Write the report to stdout: "json", "csv", "markdown", or None for a page of text."""
    from localqwen.bench import tables

    match form:
        case "json":
            sys.stdout.write(json.dumps(_object(run, llama_bench), ensure_ascii=False, indent=1) + "\n")
        case "csv":
            csv.writer(sys.stdout, lineterminator="\n").writerows(tables.csv_rows(run))
        case "markdown":
            sys.stdout.write(page(run, tables.markdown) + "\n")
        case _:
            sys.stdout.write(page(run, _columns) + "\n")


def _object(run: Benchmark, llama_bench: bool) -> Any:
    from localqwen.bench import llama_bench as foreign
    from localqwen.bench import tables

    return foreign.tests(run) if llama_bench else tables.as_json(run)


def _columns(lines: Sequence[tuple[str, ...]]) -> str:
    head, *body = lines
    shown = tuple(cell.upper() if cell.islower() else cell for cell in head)
    text = aligned([shown, *body])
    if sys.stdout.isatty() and max(map(len, text.splitlines())) > shutil.get_terminal_size().columns:
        return "\n\n".join(aligned([pair for pair in zip(shown, row, strict=True) if pair[1]]) for row in body)
    return text


def page(run: Benchmark, form: Callable[[Sequence[tuple[str, ...]]], str]) -> str:
    """Return the report as text; `form` formats each of its tables."""
    from localqwen.bench import tables

    parts = [tables.title(run), tables.state(run), *run.notes]
    blocks = ["\n".join(part for part in parts if part)]
    blocks += [form(lines) for lines in tables.all_tables(run) if lines]
    return "\n\n".join(blocks)
