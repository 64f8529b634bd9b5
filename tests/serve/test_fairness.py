"""While one request is prepared, the server answers others: compared with its own speed a moment before."""

import http.client
import json
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from local_server import Running, serving

pytestmark = pytest.mark.slow
#: The part of its speed that the built-in model must keep. At a thousand tokens a second it feels each millisecond in
#: which a prompt of megabytes has the interpreter, on two cores; benchmarks/README.md has the figures of a real size.
LEAST = 0.1
#: A best of so many tries: other programs of this machine may take a core at any moment.
TRIES = 3


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(None, name="demo") as running:
        yield running


def post(server: Running, body: dict[str, Any]) -> http.client.HTTPResponse:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    client.request("POST", "/v1/chat/completions", json.dumps({"model": "demo", "max_tokens": 200, **body}))
    return client.getresponse()


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


TOOL = {"type": "object", "properties": {"a": {"type": "string"}}}
QUESTIONS: dict[str, dict[str, Any]] = {
    "a run of combining marks": {"messages": user("e" + "\u0301\u0316" * 1_500_000)},
    "a long text": {"messages": user("some words and more " * 380_000)},
    "one word": {"messages": user("a" * 7_500_000)},
    "tags": {"messages": user("<think></tool_call>" * 380_000)},
    "messages": {"messages": [*user("a"), {"role": "assistant", "content": "b"}] * 10_000 + user("c")},
    "tools": {
        "messages": user("a"),
        "tools": [{"type": "function", "function": {"name": f"f{n}", "parameters": TOOL}} for n in range(5_000)],
    },
}


def tokens_per_second(server: Running, stop: threading.Event | None = None) -> float:
    """The speed of short answers, one after the other: five of them, or until `stop` is set."""
    speeds = []
    while len(speeds) < 5 or (stop is not None and not stop.is_set()):
        began = time.perf_counter()
        answer = json.loads(post(server, {"messages": user("What is 17 + 25?"), "temperature": 0}).read())
        speeds.append(answer["usage"]["completion_tokens"] / (time.perf_counter() - began))
        if stop is not None and stop.is_set():
            break
    return statistics.median(speeds)


@pytest.mark.parametrize("kind", QUESTIONS)
def test_other_answers_go_on(server: Running, kind: str) -> None:
    best = 0.0
    for _ in range(TRIES):
        alone, over = tokens_per_second(server), threading.Event()

        def ask(over: threading.Event = over) -> None:
            for _ in range(2):
                assert post(server, QUESTIONS[kind]).read()
            over.set()

        asking = threading.Thread(target=ask)
        asking.start()
        beside = tokens_per_second(server, over)
        asking.join()
        best = max(best, beside / alone)
        if best >= LEAST:
            return
    pytest.fail(f"only {best:.2f} of the speed while the server prepares {kind}")
