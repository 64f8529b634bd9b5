"""The kinds of attack: each is a function of the target, a random generator and a tag that yields what it saw."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from random import Random

from attacks import files, framing, models, questions
from attacks.client import Response, Seen, expect
from attacks.server import GOOD, eventually, runs, signal_process
from attacks.target import Target, endless, long_prompt, short

Attack = Callable[[Target, Random, str], Iterator[Seen]]
#: What a model may answer that is, or has just become, hostile; what a model that is all right answers to a question.
_OF_MODELS, _OF_QUESTIONS = (200, 400, 500, 503, 507), (200, 400, 413)
#: What a name may be answered that no model has; the hub of a pull cannot be reached.
_OF_NAMES = (400, 404, 502)
_LISTS = ("/api/tags", "/v1/models", "/api/ps", "/metrics", "/health")


def hostile_model(kind: str, target: Target, random: Random, tag: str) -> Iterator[Seen]:
    """Ask a hostile model one to three questions, and the server for its lists meanwhile."""
    with target.model(f"hostile-{tag}", models.MODELS[kind](random, target.good)) as name:
        for _ in range(random.choice([1, 1, 2, 3])):
            yield expect(target.question(_to_hostile(random, name, tag)), _OF_MODELS, naming=name)
            yield expect(target.ask(random.choice(_LISTS)), (200,))
        yield expect(target.ask("/api/show", {"model": name}), (200, 400))


def _to_hostile(random: Random, name: str, tag: str) -> questions.Question:
    messages = [{"role": "user", "content": f"{tag} hello"}]
    other = [short(name, tag), endless(name, tag), ("/api/generate", {"model": name, "stream": False})]
    return random.choice([*other, *[questions.asked(random, name, messages)] * 4])


def hostile_question(kind: str, target: Target, random: Random, tag: str) -> Iterator[Seen]:
    """Ask the good model a hostile question."""
    allowed = (*_OF_QUESTIONS, 404) if kind == "odd fields" else _OF_QUESTIONS  # the model's name is a field too
    yield expect(target.question(questions.QUESTIONS[kind](random, GOOD)), allowed, naming=GOOD)


def unknown_name(target: Target, random: Random, tag: str) -> Iterator[Seen]:
    """Ask for a model that nobody has."""
    path, body = questions.names(random, GOOD)
    response = target.ask(path, body)
    streamed_error = path == "/api/pull" and response.status == 200 and b'"error"' in response.body
    assert isinstance(body, dict)
    known = body["model"] in questions.MEAN_THE_DEFAULT
    yield expect(response, (200, *_OF_NAMES) if known or streamed_error else _OF_NAMES)


def disconnect(target: Target, random: Random, tag: str) -> Iterator[Seen]:
    """Leave in the midst of some requests, and ask one question afterwards."""
    for number in range(random.choice([1, 5, 20])):
        asked = [
            short(GOOD, f"{tag}.{number}"),
            endless(GOOD, f"{tag}.{number}"),
            questions.long(random, GOOD, questions.words),
        ]
        framing.leave(target.server.address, random.choice(asked), random)
    yield expect(target.question(short(GOOD, tag)), (200,))


def raw_bytes(kind: str, target: Target, random: Random, tag: str) -> Iterator[Seen]:
    """Send bytes that are hardly a request."""
    data = framing.REQUESTS[kind](random)
    whole = kind != "framing"
    response = framing.send(target.server.address, data, patience=target.patience if whole else 1)
    yield Seen(response.status, expect(response, range(-1 if not whole else 0, 500)).problem)


def idle_connections(target: Target, random: Random, tag: str) -> Iterator[Seen]:
    """Hold many idle connections, and ask meanwhile."""
    begun = random.choice([[b""], [b"G"], [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"], [b"\r\n"]])
    with framing.idle(target.server.address, random.choice([50, 300, 1_200]), begun):
        for _ in range(3):
            yield expect(target.ask("/health"), (200,))
            yield expect(target.question(short(GOOD, tag)), (200,))


def changed_file(change: Callable[[Random, Path], None], target: Target, random: Random, tag: str) -> Iterator[Seen]:
    """Change the file of a model while it answers."""
    with target.model(f"changed-{tag}", target.content) as name:
        yield expect(target.question(short(name, tag)), (200,))
        asking = _Asking(target, random.choice([endless, long_prompt, short])(name, f"{tag}b"))
        time.sleep(random.random() * 0.3)
        change(random, target.server.models / f"{name}.gguf")
        allowed = (*_OF_MODELS, 404)  # a busy machine may read the question when the file has gone
        yield expect(asking.response(), allowed, naming=name)
        for number in range(2):
            yield expect(target.question(short(name, f"{tag}c{number}")), allowed, naming=name)
        yield expect(target.ask("/api/tags"), (200,))


class _Asking:
    """A question that is being answered."""

    def __init__(self, target: Target, question: questions.Question) -> None:
        self._received: list[Response] = []
        self._thread = threading.Thread(target=lambda: self._received.append(target.question(question)))
        self._thread.start()

    def response(self) -> Response:
        """Wait for the response."""
        self._thread.join()
        return self._received[0]


def signalled(number: signal.Signals, target: Target, random: Random, tag: str) -> Iterator[Seen]:
    """Send a signal to the process of a model while it loads or answers; then it must answer again."""
    with target.model(f"victim-{tag}", target.content) as name:
        yield from _strike(target, random, name, tag, number)
        yield expect(target.question(short(name, f"{tag} after")), (200,))


def _strike(target: Target, random: Random, name: str, tag: str, number: signal.Signals) -> Iterator[Seen]:
    asking = _Asking(target, random.choice([endless, long_prompt, short])(name, tag))
    if not eventually(lambda: target.server.child_of(name), 20):
        yield Seen(asking.response().status, f"there is no process of {name}")
        return
    time.sleep(random.choice([0.02, 0.3, 1.5]) * random.random())
    child = target.server.child_of(name)
    if child is not None:
        signal_process(child, number)
    yield expect(asking.response(), _OF_MODELS, naming=name)


def good_killed(target: Target, random: Random, tag: str) -> Iterator[Seen]:
    """Kill the good model's process between two good requests, or a copy's if that would be too often."""
    if not target.may_kill_good():
        yield from idle_killed(target, random, tag)
        return
    with target.between_good_requests():
        child = target.server.child_of(GOOD)
        if child is None or not signal_process(child, signal.SIGKILL):
            yield Seen(0, f"there is no process of {GOOD}")
            return
        eventually(lambda: not runs(child), 10)
        yield expect(target.question(short(GOOD, tag)), (200,))


def idle_killed(target: Target, random: Random, tag: str) -> Iterator[Seen]:
    """Kill the process of an idle model; the next request does not notice."""
    with target.model(f"victim-{tag}", target.content) as name:
        yield expect(target.question(short(name, tag)), (200,))
        child = target.server.child_of(name)
        if child is None:
            yield Seen(0, f"there is no process of {name}")
            return
        signal_process(child, random.choice([signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV]))
        time.sleep(random.choice([0, 0, 0.05]))
        yield expect(target.question(short(name, f"{tag} after")), (200,))


_SIGNALS: Collection[signal.Signals] = (
    signal.SIGKILL, signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV, signal.SIGILL, signal.SIGSTOP,
)  # fmt: skip
KINDS: Mapping[str, Attack] = {
    **{f"model: {kind}": partial(hostile_model, kind) for kind in models.MODELS},
    **{f"question: {kind}": partial(hostile_question, kind) for kind in questions.QUESTIONS},
    "question: unknown name": unknown_name,
    "question: disconnect": disconnect,
    **{f"bytes: {kind}": partial(raw_bytes, kind) for kind in framing.REQUESTS},
    "bytes: idle connections": idle_connections,
    **{f"file: {name}": partial(changed_file, change) for name, change in files.CHANGES.items()},
    **{f"signal: {number.name}": partial(signalled, number) for number in _SIGNALS},
    "signal: killed while idle": idle_killed,
    "signal: good model killed": good_killed,
}
