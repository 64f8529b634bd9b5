"""A real server on a free port of this machine, in a thread, for the real clients of the tests."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from resolved import scripted
from thread_child import starting

from localqwen.chat.load_options import LoadOptions
from localqwen.chat.model_info import LoadedModel, info_of
from localqwen.engines import selection
from localqwen.engines.engine import Engine, Run, TokenOutput
from localqwen.engines.scripted import ScriptedEngine
from localqwen.serve.http import server as http_server
from localqwen.serve.http.app import Service, Settings
from localqwen.serve.model_names import Catalogue


@dataclass
class Running:
    url: str
    port: int
    service: Service


class SlowEngine(ScriptedEngine):
    """Takes a moment for each step, as a model does."""

    seconds = 0.005

    def step(self) -> list[tuple[Run, TokenOutput]]:
        time.sleep(self.seconds)
        return super().step()


def talkative(words: int = 2000, *, max_runs: int = 8, seconds: float = 0.005) -> SlowEngine:
    """Answers everything at length, without thinking."""
    engine = SlowEngine(itertools.repeat("word " * words), max_runs=max_runs)
    engine.seconds = seconds
    return engine


@contextlib.contextmanager
def serving(engine: Engine | None, settings: Settings | None = None, *, name: str = "scripted") -> Iterator[Running]:
    """With an engine, or with the named model on its real one."""
    served = scripted(name) if engine else selection.resolve(name)
    catalogue = Catalogue([served], LoadOptions(context_length=2048, threads=1, parallel=4))
    service = Service(catalogue, settings, start=starting(opener(engine))) if engine else Service(catalogue, settings)
    with listening(service) as server:
        yield server


def opener(engine: Engine) -> Callable[[str], LoadedModel]:
    return lambda name: LoadedModel(engine, info_of(engine, name))


@contextlib.contextmanager
def listening(service: Service, grace: float = 0.2) -> Iterator[Running]:
    listener = http_server.bind("127.0.0.1", 0)
    ready = threading.Event()
    server = http_server.Listening(service, started=ready.set, grace=grace)
    thread = threading.Thread(target=http_server.run, args=(server, listener))
    thread.start()
    try:
        assert ready.wait(60)
        yield Running(http_server.url(listener), listener.getsockname()[1], service)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it becomes true; looks again and again."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True
