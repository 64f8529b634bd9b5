"""A model in a process of its own: what it takes of memory is its own, its limits are its own (in a cgroup of its own
where we may make one), and if it dies, what was measured stays. The parent speaks JSON lines; `child.py` is the other
end.

Models take turns test by test where all fit into memory together; the one that waits does nothing.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
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
from localqwen.models.resolve import ResolvedModel


@dataclass(frozen=True)
class Target:
    """One model under measurement: how it is opened, what the report calls it, and its limits."""

    model: ResolvedModel
    label: str
    options: LoadOptions
    limits: Limits = NO_LIMITS

    def to_json(self) -> dict[str, Any]:
        """The arguments of the worker's `Bench`.

        Name and engine are those that were chosen here: under limits another choice might be made."""
        options = replace(self.options, engine=self.model.engine).to_json()
        return {"name": self.model.name, "label": self.label, "options": options, "limits": self.limits.of_process}


class Worker:
    """Use with `with`. The model is loaded when it is made; `facts` are what the engine tells: engine, threads,
    context_length, load_ms. Raises what opening the model raises."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._group: Group | None = None
        command = [sys.executable, "-m", "localqwen.bench.worker_main"]
        # Ctrl-C reaches the parent alone, which keeps what was measured and ends the child.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **posix.apart_from_terminal()
        )
        try:
            self._move_to_group()
            self._send({"open": target.to_json()})
            self.facts: Mapping[str, Any] = self._receive()["opened"]
        except BaseException:
            self.close()
            raise

    def _move_to_group(self) -> None:
        """Before it has loaded anything: memory stays counted where it was taken."""
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
        return self._process.pid

    def measure(self, test: Test, repeat: int, **options: Any) -> Iterator[Sample]:
        """One repeat: one sample, or several for a conversation's turns."""
        self._send({"measure": asdict(test), "repeat": repeat, "options": options})
        while "done" not in (answer := self._receive()):
            yield Sample.from_json(answer["sample"])

    def peak_memory(self) -> int | None:
        self._send({"memory": True})
        peak: int | None = self._receive()["memory"]
        return peak

    def sensors(self) -> Mapping[str, str]:
        """What endurance measures besides speed -> where from."""
        self._send({"sensors": True})
        sources: Mapping[str, str] = self._receive()["sensors"]
        return sources

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as exc:
            raise self._died() from exc

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _error(answer["error"])
        return answer

    def _died(self) -> LocalqwenError:
        code = self._process.wait()
        if self._group is not None and self._group.out_of_memory:
            return errors.NotEnoughMemory(
                f"{self.target.label} takes more memory than it is held to: {self.target.limits.text}",
                "use a smaller model, quantization or context, or leave out --hold",
            )
        if posix.was_killed(code):
            return errors.NotEnoughMemory(
                f"the system ended the process of {self.target.label}: most often it takes more memory than there is",
                "use a smaller model, quantization or context",
            )
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return EngineError(f"the process of {self.target.label} ended with {how}", "localqwen doctor")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:  # what was not yet sent has nobody to read it
                continue
        if self._group is not None:
            self._group.close()
            self._group = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _error(told: Mapping[str, str]) -> LocalqwenError:
    """The child's error in this process, of its class where that takes a message and a hint."""
    kind = getattr(errors, told["class"], EngineError)
    if not issubclass(kind, LocalqwenError) or kind is errors.ContextTooLong:
        kind = errors.Unsupported
    found: LocalqwenError = kind(told["message"], told["hint"])
    return found


def interleaved(tests: Sequence[Test], repeats: int, subjects: int) -> Iterator[tuple[int, int, Test]]:
    """(repeat, subject, test): every subject has its turn at a test before anyone has the next, and all tests are done
    once before any is repeated, so that a machine whose speed drifts drifts for all of them. Every other round
    begins with the last subject: none profits from always coming first."""
    for repeat in range(repeats):
        order = range(subjects) if repeat % 2 == 0 else range(subjects - 1, -1, -1)
        for test in tests:
            for subject in order:
                yield repeat, subject, test
