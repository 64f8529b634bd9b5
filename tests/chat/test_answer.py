"""Events become one value, whole or as far as they came."""

from collections.abc import Sequence

import pytest

from localqwen.chat.answer import Answer, AnswerAssembler
from localqwen.chat.messages import (
    Event,
    Finished,
    Message,
    PrefillProgress,
    Started,
    Text,
    Thinking,
    Timing,
    TokenLogprob,
    ToolCall,
    Usage,
)
from localqwen.errors import EngineError

STARTED = Started(9, 4, True)
DONE = Finished("stop", Usage(9, 4, 6, 2), Timing())
CALL = ToolCall("add", {"a": 1})
LOGPROBS = tuple(TokenLogprob(word, -0.5) for word in (b"It", b" is", b" 2"))
EVENTS: Sequence[Event] = [
    STARTED,
    PrefillProgress(5, 9),
    Thinking("I "),
    Thinking("add."),
    Text("It", LOGPROBS[:1]),
    PrefillProgress(9, 9),
    Text(" is 2", LOGPROBS[1:]),
    CALL,
    DONE,
]


def test_events_are_joined_in_their_order() -> None:
    answer = Answer.of(EVENTS)
    assert answer == Answer("I add.", "It is 2", (CALL,), STARTED, DONE, LOGPROBS)
    assert answer.end is DONE
    assert answer.message() == Message("assistant", "It is 2", "I add.", (CALL,))


def test_what_came_of_a_stopped_answer_is_an_answer_without_an_end() -> None:
    answer = Answer.of(EVENTS[:4])
    assert (answer.thinking, answer.content, answer.finished) == ("I add.", "", None)
    assert not answer.empty
    with pytest.raises(EngineError, match="stopped before its end"):
        _ = answer.end


def test_an_answer_that_did_not_think_has_no_thinking_in_its_message() -> None:
    assert Answer.of([Text("Hi."), DONE]).message().thinking is None


@pytest.mark.parametrize("events", [[], [STARTED], [STARTED, PrefillProgress(1, 9), DONE]])
def test_nothing_to_read_is_empty(events: list[Event]) -> None:
    assert Answer.of(events).empty


@pytest.mark.parametrize("event", [Thinking("x"), Text("x"), CALL])
def test_whatever_a_person_can_read_is_not_empty(event: Event) -> None:
    assert not Answer.of([event]).empty


@pytest.mark.parametrize(("reason", "cut"), [("stop", False), ("tool_calls", False), ("length", True)])
def test_an_answer_that_ran_out_of_tokens_is_cut(reason: str, cut: bool) -> None:
    assert Answer.of([Finished(reason, Usage(), Timing())]).cut is cut  # type: ignore[arg-type]
    assert not Answer.of([Text("x")]).cut


def test_it_is_known_while_the_answer_thinks() -> None:
    assembler, states = AnswerAssembler(), []
    for event in [*EVENTS[:8], Thinking("x"), CALL]:
        assembler.add(event)
        states.append(assembler.in_thinking)
    assert states == [True, True, True, True, False, False, False, False, True, False]
