"""A model in a process of its own, with its own memory and limits (in its own cgroup if one can be created). If the
process dies, the samples so far stay. The parent's side of the messages; `worker_main` is the other.

Models take turns test by test if all fit into memory together; a model that waits computes nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from localqwen import errors
from localqwen.bench.samples import Sample, Test
from localqwen.chat.load_options import LoadOptions
from localqwen.errors import EngineError, LocalqwenError, Unsupported
from localqwen.machine import cgroup, posix
from localqwen.machine.cgroup import Group
from localqwen.machine.limits import NO_LIMITS, Limits
from localqwen.model_process import launch, values
from localqwen.model_process.channel import Channel
from localqwen.model_process.death import Death
from localqwen.model_process.frames import Message
from localqwen.models.resolve import ResolvedModel


@dataclass(frozen=True)
class Target:
    """One model to measure: how it is loaded, its label in the report, and its limits."""

    model: ResolvedModel
    label: str
    options: LoadOptions
    limits: Limits = NO_LIMITS

    def to_json(self) -> dict[str, Any]:
        """Return the arguments of the worker's `Bench`.

        Name and engine are those that were chosen here: under limits the worker might choose others."""
        options = replace(self.options, engine=self.model.engine).to_json()
        return {"name": self.model.name, "label": self.label, "options": options, "limits": self.limits.of_process}


class Worker:
    """The process of one model, from this side. Use it with `with`. Creating it loads the model; `facts` are what the
    engine reports: engine, threads, context_length, load_ms, settings. Raise what loading the model raises."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._group: Group | None = None
        # Ctrl-C reaches the parent alone, which keeps what was measured and ends the child.
        self._process = subprocess.Popen(
            launch.command("localqwen.bench.worker_main", target.label),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **launch.popen_arguments(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._channel = Channel(self._process.stdout, self._process.stdin)
        try:
            self._move_to_group()
            self._send({"open": target.to_json()})
            self.facts: Mapping[str, Any] = self._receive()["opened"]
        except BaseException:
            self.close()
            raise

    def _move_to_group(self) -> None:
        """Move the process before it loads anything: memory is counted where it was first used."""
        self._group = self.target.limits.group()
        if self._group is None:
            return
        try:
            self._group.add(self.pid)
        except OSError as exc:
            raise Unsupported(f"the process cannot be moved to its cgroup: {exc.strerror}", "leave out --hold") from exc
        if "memory.max" in self.target.limits.group_settings:
            path = self.target.model.path()
            cgroup.drop_cached([path] if path.is_file() else sorted(path.glob("*.safetensors")))

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    def measure(self, test: Test, repeat: int, **options: Any) -> Iterator[Sample]:
        """Yield the samples of one repeat: one, or several for the turns of a conversation."""
        self._send({"measure": asdict(test), "repeat": repeat, "options": options})
        while "done" not in (answer := self._receive()):
            yield Sample.from_json(answer["sample"])

    def peak_memory(self) -> int | None:
        """Return the most bytes of memory that the process has had at once, None if the system does not report it."""
        self._send({"memory": True})
        peak: int | None = self._receive()["memory"]
        return peak

    def sensors(self) -> Mapping[str, str]:
        """Return what endurance measures besides speed, and the source of each."""
        self._send({"sensors": True})
        sources: Mapping[str, str] = self._receive()["sensors"]
        return sources

    def _send(self, message: Message) -> None:
        try:
            self._channel.send(message)
        except BrokenPipeError as exc:
            raise self._died() from exc

    def _receive(self) -> Message:
        answer = self._channel.receive()
        if answer is None:
            raise self._died()
        if "error" in answer:
            raise values.error_from_json(answer["error"])
        return answer

    def _died(self) -> LocalqwenError:
        code = self._process.wait()
        if self._group is not None and self._group.out_of_memory:
            return errors.NotEnoughMemory(
                f"{self.target.label} takes more memory than it is limited to: {self.target.limits.text}",
                "use a smaller model, quantization or context, or leave out --hold",
            )
        if posix.was_killed(code):
            return errors.NotEnoughMemory(
                f"the system ended the process of {self.target.label}: most often it needs more memory than there is",
                "use a smaller model, quantization or context",
            )
        return EngineError(f"the process of {self.target.label} {Death(code).text}", "localqwen doctor")

    def close(self) -> None:
        """End the process and remove its cgroup."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:  # unsent data: nobody reads it any more
                continue
        if self._group is not None:
            self._group.close()
            self._group = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def interleaved(tests: Sequence[Test], repeats: int, subjects: int) -> Iterator[tuple[int, int, Test]]:
    """Yield (repeat, subject, test). All subjects run a test before any runs the next, and all tests run once before
    any is repeated, so a machine whose speed drifts drifts for all subjects. Every other round begins with the last
    subject, so none profits from being first."""
    for repeat in range(repeats):
        order = range(subjects) if repeat % 2 == 0 else range(subjects - 1, -1, -1)
        for test in tests:
            for subject in order:
                yield repeat, subject, test
