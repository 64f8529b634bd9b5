"""Put a server under load for a long time, and watch its memory, its runs and its threads.

    python benchmarks/soak.py demo --requests 20000        # or --minutes 30
    python benchmarks/soak.py --scripted                   # the server alone: an engine that computes nothing

Several clients send requests at the same time, over all three APIs, streaming or not; a third of the requests
disconnect in the middle of their answer. After each tenth of the work the script prints the memory, threads and runs of
the process; at the end it sends SIGTERM and waits for the exit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

CLIENTS = 6
PATHS = {
    "/v1/chat/completions": {"max_tokens": 60},
    "/api/chat": {"options": {"num_predict": 60}},
    "/v1/messages": {"max_tokens": 60},
}


def ask(url: str, model: str, number: int, outcomes: Counter[str]) -> None:
    """Send one request and count its outcome. `number` fixes the request; every third disconnects in the middle."""
    choose = random.Random(number)
    path, limits = choose.choice(list(PATHS.items()))
    stream, leave = choose.random() < 0.7, choose.random() < 1 / 3
    question = f"What is {choose.randrange(1000)} + {choose.randrange(1000)}?"
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}], "stream": stream}
    request = urllib.request.Request(
        url + path, json.dumps(body | limits).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            if leave:
                answer.read(choose.randrange(1, 200))
                outcomes["left"] += 1
            else:
                answer.read()
                outcomes["answered"] += 1
    except urllib.error.HTTPError as exc:
        outcomes[f"status {exc.code}"] += 1
    except OSError as exc:  # also if everything stood still: the machine slept, or the process was stopped
        outcomes[f"lost: {exc}"] += 1


class Numbers:
    """The numbers of the requests still to send, shared by all clients."""

    def __init__(self, numbers: range) -> None:
        self._numbers, self._lock = iter(numbers), threading.Lock()

    def next(self) -> int | None:
        """Return the next number, or None at the end."""
        with self._lock:
            return next(self._numbers, None)


def client(url: str, model: str, numbers: Numbers, outcomes: Counter[str]) -> None:
    """Send requests until there are no more."""
    while (number := numbers.next()) is not None:
        ask(url, model, number, outcomes)


def state(url: str, process: psutil.Process) -> dict[str, float]:
    """Return memory, threads and runs when no request is left."""
    for _ in range(100):
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        busy = sum(
            float(line.split()[-1]) for line in lines if line.startswith(("localqwen_running", "localqwen_queued"))
        )
        if not busy:
            break
        time.sleep(0.1)
    return {"MB": process.memory_info().rss / 1e6, "threads": process.num_threads(), "busy": busy}


def serve_scripted(port: int) -> None:
    """Run what `localqwen serve` runs, on an engine that returns the same text for ever."""
    from localqwen.chat.load_options import LoadOptions
    from localqwen.chat.model_info import LoadedModel, info_of
    from localqwen.engines.scripted import ScriptedEngine
    from localqwen.models.names import LocalPath
    from localqwen.models.resolve import ResolvedModel
    from localqwen.serve.http import server as http_server
    from localqwen.serve.http.app import Service
    from localqwen.serve.model_names import Catalogue

    class Forgetting(ScriptedEngine):
        """The scripted engine keeps what it ran, for tests to look at."""

        def step(self) -> list[Any]:
            del self.runs[:-100], self._cached[:-100]
            return super().step()

    engine = Forgetting(itertools.repeat("<think>\n" + "hm " * 20 + "\n</think>\n\n" + "word " * 20))
    model = ResolvedModel("scripted", LocalPath(Path("scripted")), engine.name)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    from thread_child import starting

    start = starting(lambda name: LoadedModel(engine, info_of(engine, name)))
    service = Service(Catalogue([model], LoadOptions()), start=start)
    http_server.run(http_server.Listening(service), http_server.bind("127.0.0.1", port))


def main() -> None:
    """Run the server and the clients, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="scripted")
    parser.add_argument("--scripted", action="store_true")
    parser.add_argument("--serve-scripted", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=30)
    arguments = parser.parse_args()
    if arguments.serve_scripted:
        serve_scripted(arguments.serve_scripted)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, command = f"http://127.0.0.1:{port}", [sys.executable, "-m", "localqwen", "serve", arguments.model]
    command += ["--port", str(port), "--parallel", "4"]
    if arguments.scripted:
        command = [sys.executable, __file__, "--serve-scripted", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    process, outcomes = psutil.Process(server.pid), Counter[str]()
    wait_for(url)
    now = state(url, process)
    print(f"{0:>7,} requests: {now['MB']:.1f} MB, {now['threads']} threads, {now['busy']:.0f} runs", flush=True)
    ends, part = time.monotonic() + 60 * arguments.minutes, arguments.requests // 10
    for tenth in range(10):
        numbers = Numbers(range(tenth * part, (tenth + 1) * part))
        shared = (url, arguments.model, numbers, outcomes)
        threads = [threading.Thread(target=client, args=shared) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        now = state(url, process)
        print(
            f"{(tenth + 1) * part:>7,} requests: {now['MB']:.1f} MB, {now['threads']} threads, {now['busy']:.0f} runs",
            flush=True,
        )
        if time.monotonic() > ends:
            break
    print(dict(outcomes))
    server.send_signal(signal.SIGTERM)
    print("exit code after SIGTERM:", server.wait(120))


def wait_for(url: str) -> None:
    """Wait until the server answers."""
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server does not come up")


if __name__ == "__main__":
    main()
