"""Measuring as a command: from flags to a plan, a bar while it runs, a report behind it."""

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

#: Tokens that an endurance run says before it begins a new answer.
_SUSTAINED_ANSWER = 512


@dataclass(frozen=True)
class Asked:
    """The flags of `localqwen bench`, as click gives them. `typed` are the names of those that stand on the command
    line itself, and not in the configuration."""

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
        """Whether one of raw speed's own flags was typed."""
        return bool(self.typed & {"prompt", "generate", "depth", "batch"})

    @property
    def speed(self) -> bool:
        """Whether to measure raw speed: where nothing else is requested; quality is shown beside it."""
        return self.speed_typed or not (self.chat or self.workload or self.sustain or self.profile)


class Running(Protocol):
    """A runner of local models, or of a server."""

    @property
    def run(self) -> Benchmark: ...

    def measure(self) -> None: ...


def run(asked: Asked) -> int:
    """Gives the exit code."""
    from localqwen.bench import profiles

    if not asked.models and not asked.url:
        raise UsageError(
            "there is no model to measure", "localqwen bench demo; to see earlier runs: localqwen bench list"
        )
    if asked.quality and asked.loading.options.adapter:
        raise UsageError(
            "--quality measures the models as they are on disk, without --adapter", "leave one of them out"
        )
    asked = replace(asked, form=form_of(asked.form, asked.llama_bench))
    profile = profiles.named(asked.profile) if asked.profile else None
    if asked.hold and profile is None:
        raise UsageError("--hold needs the limits of a profile", "localqwen bench MODEL --profile phone --hold")
    workloads = _workloads(asked, profile)
    if asked.url:
        return _measure_server(asked, workloads, profile)
    return _measure_models(asked, workloads, profile)


def _workloads(asked: Asked, profile: Profile | None) -> dict[str, Workload]:
    """By name: what was asked for, the profile's own, and the conversation of --chat."""
    from localqwen.bench import workloads

    found = workloads.named([name.strip() for name in asked.workload.split(",")]) if asked.workload else []
    found += [profile.workload] if profile else []
    found += [workloads.known()["conversation"]] if asked.chat else []
    return {workload.name: workload for workload in found}


def _tests(asked: Asked, workloads: dict[str, Workload]) -> list[Test]:
    """What is asked in messages: workloads and the conversation in all its ways to think."""
    from localqwen.bench import chat

    wanted = [workload for name, workload in workloads.items() if not (asked.chat and name == "conversation")]
    return [*(workload.test for workload in wanted), *(chat.tests(asked.budgets) if asked.chat else ())]


def _measure_models(asked: Asked, workloads: dict[str, Workload], profile: Profile | None) -> int:
    from localqwen.bench import history, qualities, runner

    plan = _plan(asked, workloads, profile)
    plan = replace(plan, limits=plan.limits.here())
    if asked.quality:
        qualities.check(len({(model.name, model.engine) for model in plan.models}), asked.reference)
    plan = replace(plan, models=_ensured(plan.models, asked.loading))
    reference = _reference(asked)
    begun = runner.begin(runner.settings_of(plan), held=plan.limits.text, profile=profile.name if profile else "")
    with history.Log(begun, history.folder() if asked.save else None) as log, counting_bar() as tell:
        running = runner.Runner(plan, begun, log, tell)

        def steps() -> None:
            running.measure()
            if asked.quality:
                running.add_quality(reference, _text(asked.text))

        stopped = _until_stopped(steps, log)
        done = _ended(running.run, log, profile, stopped=stopped)
    return _report(asked, done, log, stopped=stopped)


def _models(asked: Asked, engines: Sequence[str | None]) -> Iterator[ResolvedModel]:
    """Every model for every engine."""
    from localqwen.engines import selection
    from localqwen.models import names

    for name in asked.models:
        reference = names.parse(name)
        for engine in engines:
            yield selection.resolve(reference, engine, given=name)


def _ensured(models: Sequence[ResolvedModel], loading: Loading) -> list[ResolvedModel]:
    """The models with their files; one that is given twice is looked for once."""
    once: dict[tuple[str, str], ResolvedModel] = {}
    for model in models:
        if (model.name, model.engine) not in once:
            once[model.name, model.engine] = loading.ensure(model)
    return [once[model.name, model.engine] for model in models]


def _reference(asked: Asked) -> ResolvedModel | None:
    if not (asked.quality and asked.reference):
        return None
    return asked.loading.ensure(asked.loading.resolve(asked.reference))


def _plan(asked: Asked, workloads: dict[str, Workload], profile: Profile | None) -> Plan:
    from localqwen.bench import runner, samples, speed
    from localqwen.machine import limits

    tests = list(speed.tests(asked.prompt, asked.generate, asked.depth, asked.batch)) if asked.speed else []
    tests += _tests(asked, workloads)
    if asked.sustain:
        tests.append(samples.Test("sustain", generate=_SUSTAINED_ANSWER, depth=asked.depth[0]))
    allowed = profile.limits.get("threads") if profile else None
    threads: list[int | None] = list(asked.threads) if asked.threads else [_threads(allowed)]
    engines = [name.strip() for name in asked.engine.split(",")] if asked.engine else [None]
    return runner.Plan(
        models=list(_models(asked, engines)),
        tests=tests,
        repeats=asked.repeats,
        label_engines=len(engines) > 1,
        threads=threads,
        context_length=max((workload.context_needed for workload in workloads.values()), default=0),
        options=asked.loading.options,
        limits=profile.held if profile and asked.hold else limits.NO_LIMITS,
        details={
            "workloads": {name: asdict(workload) for name, workload in workloads.items()},
            "seconds": asked.sustain,
        },
    )


def _threads(allowed: float | None) -> int | None:
    """As many as the profile allows, where this machine has more."""
    from localqwen.machine import usable_cores

    return int(allowed) if allowed is not None and allowed < usable_cores() else None


def _text(path: Path | None) -> str:
    from localqwen.bench import quality

    if path is None:
        return quality.bundled_text()
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"cannot read {path}: {exc}", "--text wants a file of UTF-8 text") from exc


def _measure_server(asked: Asked, workloads: dict[str, Workload], profile: Profile | None) -> int:
    from localqwen.bench import history, runner
    from localqwen.bench.remote import RemoteModel
    from localqwen.bench.remote_runner import RemoteRunner

    adapter, kv_quant = asked.loading.options.adapter, "kv_quant" in asked.typed
    flags = {"--sustain": asked.sustain, "--quality": asked.quality, "--adapter": adapter, "--kv-quant": kv_quant}
    refused = [flag for flag, given in flags.items() if given]
    if refused or asked.speed_typed or asked.hold:
        raise UsageError(
            f"a server is measured by what it answers: {', '.join(refused) or 'no raw speed, no --hold'} with --url",
            "--chat, --workload or --profile",
        )
    tests = [replace(test, batch=batch) for batch in asked.concurrency for test in _tests(asked, workloads)]
    model = RemoteModel(asked.url or "", *asked.models[:1], key=os.environ.get("LOCALQWEN_BENCH_KEY", ""))
    settings = {"url": model.url, "repeats": asked.repeats, "tests": [asdict(test) for test in tests]}
    begun = runner.begin(settings, profile=profile.name if profile else "")
    with history.Log(begun, history.folder() if asked.save else None) as log, counting_bar() as tell:
        running = RemoteRunner(model, tests, workloads, asked.repeats, begun, log, tell)
        stopped = _until_stopped(running.measure, log)
        done = _ended(running.run, log, profile, stopped=stopped)
    model.close()
    return _report(asked, done, log, stopped=stopped)


def _until_stopped(measure: Callable[[], None], log: Log) -> bool:
    """Whether a person stopped it. What was measured before an error is told, and the error goes on."""
    try:
        measure()
    except KeyboardInterrupt:
        return True
    except LocalqwenError:
        if log.path is not None and log.samples:
            sys.stderr.write(f"what was measured is kept: localqwen bench show {log.path.stem}\n")
        raise
    return False


def _ended(done: Benchmark, log: Log, profile: Profile | None, *, stopped: bool) -> Benchmark:
    from localqwen.bench import profiles

    if stopped:
        return done
    verdicts = tuple(asdict(verdict) for verdict in profiles.judge(profile, done)) if profile else ()
    log.end(verdicts)
    return replace(done, complete=True, verdicts=verdicts)


def _report(asked: Asked, done: Benchmark, log: Log, *, stopped: bool) -> int:
    show(done, asked.form, llama_bench=asked.llama_bench)
    if log.failure is not None:
        sys.stderr.write(f"warning: the run is not saved: {log.failure.message}\n")
    elif asked.save and log.samples:
        sys.stderr.write(f"saved: localqwen bench show {done.id}\n")
    if asked.plot:
        from localqwen.bench import report

        sys.stderr.write(f"drawn: {report.write([done], asked.plot.expanduser())[0]}\n")
    if stopped:
        return INTERRUPTED
    return 0 if all(verdict["passed"] for verdict in done.verdicts) else 1


def form_of(form: str | None, llama_bench: bool) -> str | None:
    """llama-bench's keys are those of its JSON."""
    if llama_bench and form not in (None, "json"):
        raise UsageError(f"--llama-bench writes JSON, not {form}", "--llama-bench, or --json --llama-bench")
    return "json" if llama_bench else form


def show(run: Benchmark, form: str | None, *, llama_bench: bool = False) -> None:
    """The report on stdout, in the form that was asked for."""
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
    from localqwen.bench import tables

    parts = [tables.title(run), tables.state(run), *run.notes]
    blocks = ["\n".join(part for part in parts if part)]
    blocks += [form(lines) for lines in tables.all_tables(run) if lines]
    return "\n\n".join(blocks)
