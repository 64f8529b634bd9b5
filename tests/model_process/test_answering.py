"""The child's work on the scripted engine, driven by messages alone."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from local_server import talkative

from localqwen.chat.messages import Message, Request
from localqwen.chat.model_info import LoadedModel, info_of
from localqwen.engines.engine import Engine
from localqwen.engines.scripted import ScriptedEngine
from localqwen.model_process import values
from localqwen.model_process.answering import Answering


class Driven:
    """A child's work in a thread, and the messages that it sends."""

    def __init__(self, engine: Engine) -> None:
        self.sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.answering = Answering(LoadedModel(engine, info_of(engine, "m")), self.sent.put, prefill_ahead=False)
        self._thread = threading.Thread(target=self.answering.run)
        self._thread.start()

    def ask(self, number: str, text: str = "hi", *, answers: int = 1) -> None:
        request = values.request_to_json(Request([Message("user", text)], think=False))
        self.answering.receive({"answer": number, "request": request, "answers": answers})

    def until_finished(self, *numbers: str) -> list[Any]:
        """Every message until the last of these requests has finished."""
        left, messages = set(numbers), []
        while left:
            messages.append(self.sent.get(timeout=10))
            left -= {number for number, _, what in messages[-1].get("events", ()) if what[0] == "finished"}
        return messages

    def close(self) -> None:
        self.answering.close()
        self._thread.join()


@pytest.fixture
def drive() -> Iterator[Any]:
    made: list[Driven] = []

    def start(engine: Engine) -> Driven:
        made.append(Driven(engine))
        return made[-1]

    yield start
    for each in made:
        each.close()


def events(messages: list[Any]) -> list[list[Any]]:
    return [event for message in messages for event in message.get("events", ())]


def test_one_message_per_step_however_many_answers(drive: Any) -> None:
    driven = drive(talkative(40, seconds=0.002))
    numbers = [str(number) for number in range(8)]
    for number in numbers:
        driven.ask(number)
    messages = driven.until_finished(*numbers)
    with_events = [message for message in messages if "events" in message]
    assert len(with_events) < len(events(messages)) / 3


def test_each_stage_is_told_before_the_answer_begins(drive: Any) -> None:
    driven = drive(ScriptedEngine(["a b c"]))
    driven.ask("x")
    messages = driven.until_finished("x")
    stages = [message["stage"] for message in messages if "stage" in message]
    assert stages[0] == ["x", "request"]
    assert stages[-1] == ["x", ""]
    kinds = [what[0] for _, _, what in events(messages)]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert "".join(what[1] for _, _, what in events(messages) if what[0] == "text") == "a b c"


def test_a_request_that_is_none_is_an_error_of_its_own(drive: Any) -> None:
    driven = drive(ScriptedEngine(["a"]))
    request = values.request_to_json(Request([Message("user", "hi")]))
    driven.answering.receive({"answer": "x", "request": {**request, "format": 3}, "answers": 1})
    while "events" not in (message := driven.sent.get(timeout=10)):
        pass
    [[number, index, error]] = message["events"]
    assert (number, index, error["class"]) == ("x", 0, "BrokenMessage")


def test_pings_are_answered_at_once_while_the_engine_computes(drive: Any) -> None:
    driven = drive(talkative(seconds=0.5))
    driven.ask("x")
    driven.answering.receive({"ping": 7})
    messages = [driven.sent.get(timeout=0.4)]
    while "pong" not in messages[-1]:
        messages.append(driven.sent.get(timeout=0.4))
    assert messages[-1] == {"pong": 7}


def test_an_unknown_message_is_refused(drive: Any) -> None:
    with pytest.raises(ValueError, match="not known"):
        drive(ScriptedEngine([])).answering.receive({"sing": "a song"})
