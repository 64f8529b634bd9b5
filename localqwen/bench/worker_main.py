"""The process of one model to measure: it receives requests and sends samples.

Not for people: `worker` starts it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cached_property
from typing import Any

from localqwen.bench import chat
from localqwen.bench.contention import Others
from localqwen.bench.samples import Sample, Test
from localqwen.bench.sensors import Sensors
from localqwen.bench.speed import SpeedBench
from localqwen.bench.sustain import Endurance
from localqwen.bench.workloads import Workload
from localqwen.chat import load
from localqwen.chat.load_options import LoadOptions
from localqwen.chat.messages import Event, Request
from localqwen.chat.model_info import LoadedModel
from localqwen.chat.scheduler import events_of
from localqwen.engines import selection
from localqwen.engines.engine import Engine
from localqwen.errors import LocalqwenError, NotEnoughMemory
from localqwen.machine import memory
from localqwen.machine.limits import limit_process
from localqwen.model_process import channel, launch, values
from localqwen.model_process.channel import Channel

Answer = Mapping[str, Any]
_NO_MEMORY = "the process cannot get more memory: the model does not fit the memory that it is limited to"
_LESS = "use a smaller model, quantization or context, or leave out --hold"


def serve(parent: Channel) -> None:
    """Answer the parent's requests until they end. The first one loads the model."""
    bench: Bench | None = None
    while (request := parent.receive()) is not None:
        try:
            if "open" in request:
                bench = Bench(**request["open"])
                parent.send({"opened": bench.facts()})
            elif "sensors" in request:
                parent.send({"sensors": bench.sensors() if bench else {}})
            elif "memory" in request:
                parent.send({"memory": memory.peak()})
            elif bench is not None:
                _measure(bench, request, parent)
        except LocalqwenError as error:
            parent.send({"error": values.error_to_json(error)})
        except (MemoryError, OSError, ImportError) as error:
            if not _out_of_memory(error):
                raise
            parent.send({"error": values.error_to_json(NotEnoughMemory(_NO_MEMORY, _LESS))})
    if bench is not None:
        bench.close()


def _measure(bench: Bench, request: Answer, parent: Channel) -> None:
    """Send each sample when it is measured, and what other processes did meanwhile."""
    others = Others()
    for sample in bench.measure(Test(**request["measure"]), request["repeat"], request["options"]):
        parent.send({"sample": replace(sample, values={**sample.values, **others.since()}).to_json()})
    parent.send({"done": True})


def _out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory ran out. glibc's loader of libraries has no number for it, only
    words."""
    match error:
        case OSError():
            return error.errno == errno.ENOMEM or "failed to map segment" in str(error)
        case ImportError():
            return "failed to map segment" in str(error)
    return isinstance(error, MemoryError)


@dataclass(frozen=True)
class _Answering:
    """A loaded model that answers in this thread, which is the engine's."""

    loaded: LoadedModel

    def stream(self, request: Request) -> Generator[Event, None, None]:
        """Yield the events of an answer."""
        return events_of(self.loaded, request)


class Bench:
    """The model, loaded within its limits, and what measures it."""

    def __init__(
        self,
        name: str,
        label: str,
        options: Mapping[str, Any],
        limits: Mapping[str, int | None],
    ) -> None:
        limit_process(**limits)
        began = time.perf_counter()
        wanted = LoadOptions.from_json(options)
        self._resolved, self._label = selection.resolve(name, wanted.engine), label
        self.engine: Engine = load.open_engine(self._resolved, wanted)
        self._load_ms = (time.perf_counter() - began) * 1000
        self._speed = SpeedBench(self.engine, label)
        self._speed.warm_up()
        self._sensors: Sensors | None = None

    def facts(self) -> Answer:
        """Return what the engine reports; `load_ms` is the time of loading in milliseconds."""
        return {
            "engine": self.engine.name,
            "threads": getattr(self.engine, "threads", 0),
            "context_length": self.engine.context_length,
            "load_ms": self._load_ms,
            "settings": _settings(self.engine),
        }

    def measure(self, test: Test, repeat: int, options: Mapping[str, Any]) -> Iterator[Sample]:
        """Yield the samples of one repeat. `options` are the workloads by name, and the seconds of endurance."""
        match test.kind:
            case "chat" | "workload":
                yield from self._converse(test, repeat, options)
            case "sustain":
                yield self._endurance.measure(test, repeat, options["seconds"])
            case _:
                yield self._speed.measure(test, repeat)

    def _converse(self, test: Test, repeat: int, options: Mapping[str, Any]) -> Iterator[Sample]:
        workload = Workload(**options["workloads"]["conversation" if test.kind == "chat" else test.name])
        mode = self._model.loaded.info.thinking_mode
        if test.kind == "chat" and not chat.can(mode, test):
            return
        workload = chat.in_mode(workload, test.name) if test.kind == "chat" else workload
        yield from chat.measure(self._model, self._label, test, chat.possible(workload, mode), repeat, self._count)

    def _count(self, text: str) -> int:
        return len(self.engine.tokenize(text, special=False))

    @cached_property
    def _model(self) -> _Answering:
        """Return the model as `localqwen run` uses it, with the thinking mode and sampling of its entry."""
        info = load.info_for(self._resolved, self.engine, name=self._label, load_ms=self._load_ms)
        return _Answering(LoadedModel(self.engine, info))

    @cached_property
    def _endurance(self) -> Endurance:
        self._sensors = Sensors()
        return Endurance(self.engine, self._label, self._sensors)

    def sensors(self) -> Answer:
        """Return what endurance measures besides speed, and the source of each."""
        return self._endurance.sources

    def close(self) -> None:
        """End the sensors and close the engine."""
        if self._sensors is not None:
            self._sensors.close()
        self.engine.close()


def _settings(engine: Engine) -> Answer:
    """Return the settings of an engine that has some, else {}."""
    found = getattr(engine, "settings", None)
    return asdict(found) if is_dataclass(found) and not isinstance(found, type) else {}


def main() -> None:
    """Serve the requests on standard input."""
    launch.begin_child()
    serve(channel.of_this_process())


if __name__ == "__main__":
    main()
