"""Messages between the server and a model's process: nothing is lost on the way, and nothing else is understood."""

import json
import random
from dataclasses import replace
from typing import Any, get_args

import pytest
import scripts
from hypothesis import given, settings
from hypothesis import strategies as st

from localqwen import errors
from localqwen.chat.messages import (
    Event,
    Finished,
    JsonFormat,
    Message,
    PrefillProgress,
    Request,
    SamplingOverrides,
    Started,
    Text,
    Thinking,
    Timing,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)
from localqwen.errors import BadField, Busy, ContextTooLong, EngineError, LocalqwenError
from localqwen.model_process import frames, values
from localqwen.model_process.frames import BrokenMessage

#: Changes messages; run by hand for many thousands.
TOOL = scripts.load("tools/fuzz_messages.py")
EVENTS: list[Event] = [
    Started(12, 3, True, ("be warned",)),
    PrefillProgress(5, 12),
    Thinking("hm"),
    Text("half \ud800 of a pair, NUL \0, an emoji \U0001f600"),
    Text("x", (TokenLogprob(b"\xff\xf0", -0.25, (TokenLogprob(b"x", -0.5), TokenLogprob(b"", -1e30))),)),
    ToolCall("f", {"a": [1, 2.5, None, {"b": "c"}], "": float("inf")}, "call_1"),
    Finished("tool_calls", Usage(1, 2, 3, 4), Timing(1.5, None, 2, 3.0), "budget", "END"),
    Finished("length", Usage(), Timing()),
]
REQUEST = Request(
    [
        Message("system", "s"),
        Message("assistant", "", "hm", (ToolCall("f", {"x": 1}, "id"), ToolCall("g", {}))),
        Message("tool", "result", tool_call_id="id"),
        Message("user", "\ud83d?"),
    ],
    [Tool("f", "does", {"type": "object", "properties": {"x": {"type": "integer"}}})],
    think=True,
    budget=7,
    max_tokens=9,
    stop=("a", "b"),
    sampling=SamplingOverrides(temperature=0.5, seed=2**63),
    thinking_sampling=SamplingOverrides(top_k=3),
    text_sampling=SamplingOverrides(min_p=0.1),
    format=JsonFormat({"type": "object"}),
    must_call=("f",),
    parallel_calls=False,
    read_calls=False,
    logprobs=2,
)


def over_the_wire(data: Any) -> Any:
    frame = frames.frame({"it": data})
    assert frames.payload_length(frame[:4]) == len(frame) - 4
    return frames.parse(frame[4:])["it"]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    assert values.event_from_json(over_the_wire(values.event_to_json(event))) == event


def test_every_kind_of_event_is_among_those() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(Event))


@pytest.mark.parametrize(
    "request_",
    [REQUEST, Request([], prompt="on"), replace(REQUEST, format=JsonFormat(), must_call=(), tools=())],
    ids=["everything", "a prompt", "any object"],
)
def test_a_request_comes_back_as_it_was(request_: Request) -> None:
    assert values.request_from_json(over_the_wire(values.request_to_json(request_))) == request_


def test_every_field_of_a_request_is_sent() -> None:
    fields = {name for name in Request.__dataclass_fields__}
    assert set(values.request_to_json(REQUEST)) == fields


@pytest.mark.parametrize(
    "error",
    [
        EngineError("it broke", "mend it"),
        ContextTooLong(5000, 4096),
        Busy("full", "later", retry_after=7),
        BadField("messages[0]", "is missing", "add it"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_as_it_was(error: LocalqwenError) -> None:
    back = values.error_from_json(over_the_wire(values.error_to_json(error)))
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    assert str(back) == str(error)


@pytest.mark.parametrize("kind", [each for each in vars(errors).values() if isinstance(each, type)])
def test_no_class_of_error_needs_more_than_is_sent(kind: type[LocalqwenError]) -> None:
    given = {"ContextTooLong": (1, 2), "BadField": ("f", "is wrong")}.get(kind.__name__, ("message", "hint"))
    error = kind(*given)
    assert vars(values.error_from_json(values.error_to_json(error))) == vars(error)


def test_an_error_of_an_unknown_class_is_an_error_of_the_engine() -> None:
    data = {"class": "annotations", "message": "m", "hint": ""}
    assert type(values.error_from_json(data)) is EngineError


def test_a_message_longer_than_any_is_refused_before_it_is_read() -> None:
    with pytest.raises(BrokenMessage, match="4,294,967,295 bytes"):
        frames.payload_length(b"\xff\xff\xff\xff")


@pytest.mark.parametrize("payload", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":1}x', b"1" * 5000])
def test_what_is_no_json_object_is_refused(payload: bytes) -> None:
    with pytest.raises(BrokenMessage):
        frames.parse(payload)


@given(st.integers(0, 2**32))
@settings(max_examples=500, deadline=None)
def test_a_changed_message_is_understood_or_refused(seed: int) -> None:
    choose = random.Random(seed)
    read, data = choose.choice(
        [(values.event_from_json, values.event_to_json(event)) for event in EVENTS]
        + [(values.request_from_json, values.request_to_json(REQUEST))]
        + [(values.error_from_json, values.error_to_json(ContextTooLong(1, 2)))]
    )
    changed = TOOL.changed(json.loads(json.dumps(data)), choose)
    try:
        read(changed)
    except BrokenMessage:
        return
