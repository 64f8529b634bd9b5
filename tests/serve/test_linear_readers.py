"""Requests with thousands of parts: each API reads them in linear time, and its errors stay short."""

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from localqwen import units
from localqwen.errors import LocalqwenError
from localqwen.serve.anthropic import messages as anthropic
from localqwen.serve.ollama import chat as ollama
from localqwen.serve.openai import chat, responses

Body = dict[str, Any]
HI = {"role": "user", "content": "hi"}
FUNCTION = {"name": "f", "arguments": '{"a": 1}'}


def tools(count: int) -> list[Body]:
    return [{"type": "function", "function": {"name": f"f{number}"}} for number in range(count)]


def to_openai(**more: Any) -> Body:
    return {"messages": [HI], **more}


def to_anthropic(*messages: Body, **more: Any) -> Body:
    return {"model": "x", "max_tokens": 5, "messages": [*messages, HI], **more}


def said(kind: str, *, count: int, **more: Any) -> Body:
    return {"input": [{"type": kind, **more}] * count + [HI]}


Reader = Callable[[Body], object]
#: What is many -> the reader, and the body with so many of it.
MANY: Mapping[str, tuple[Reader, Callable[[int], Body]]] = {
    "openai messages": (chat.read, lambda n: {"messages": [HI] * n}),
    "openai parts": (
        chat.read,
        lambda n: {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * n}]},
    ),
    "openai calls": (
        chat.read,
        lambda n: {"messages": [{"role": "assistant", "tool_calls": [{"function": FUNCTION}] * n}, HI]},
    ),
    "openai tools": (chat.read, lambda n: to_openai(tools=tools(n), tool_choice="required")),
    "openai allowed tools": (
        chat.read,
        lambda n: to_openai(
            tools=tools(n), tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools(n)}}
        ),
    ),
    "responses items": (responses.read, lambda n: {"input": [HI] * n}),
    "responses texts of one answer": (
        responses.read,
        lambda n: said("message", count=n, role="assistant", content="x" * 2000),
    ),
    "responses reasoning": (responses.read, lambda n: said("reasoning", count=n, content=[{"text": "a"}])),
    "responses calls of one answer": (responses.read, lambda n: said("function_call", count=n, **FUNCTION)),
    "anthropic messages": (anthropic.read, lambda n: to_anthropic(*[HI] * n)),
    "anthropic results": (
        anthropic.read,
        lambda n: to_anthropic(
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "x"}, {"type": "text", "text": "x"}] * n,
            }
        ),
    ),
    "anthropic calls": (
        anthropic.read,
        lambda n: to_anthropic({"role": "assistant", "content": [{"type": "tool_use", "name": "f", "id": "i"}] * n}),
    ),
    "anthropic tools": (
        anthropic.read,
        lambda n: to_anthropic(
            tools=[{"name": f"f{i}", "input_schema": {}} for i in range(n)], tool_choice={"type": "any"}
        ),
    ),
    "ollama messages": (ollama.read, lambda n: {"model": "x", "messages": [HI] * n}),
    "ollama calls": (
        ollama.read,
        lambda n: {"model": "x", "messages": [{"role": "assistant", "tool_calls": [{"function": FUNCTION}] * n}, HI]},
    ),
    "ollama tools": (ollama.read, lambda n: {"model": "x", "messages": [HI], "tools": tools(n)}),
}


@pytest.mark.parametrize("what", MANY)
def test_four_times_as_many_take_about_four_times_as_long(what: str) -> None:
    read, body = MANY[what]

    def seconds(count: int) -> float:
        sent = body(count)
        gc.collect()
        began = time.thread_time()
        read(sent)
        return time.thread_time() - began

    many = 3000
    assert min(seconds(4 * many) for _ in range(3)) < 8 * min(seconds(many) for _ in range(3))


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (chat.read, {"messages": [{**HI, "role": LONG}]}),
        (chat.read, {"messages": [{"role": "user", "content": [{"type": LONG, "text": "a"}]}]}),
        (chat.read, to_openai(tools=[{"type": LONG}])),
        (chat.read, to_openai(tool_choice=LONG)),
        (chat.read, to_openai(tools=tools(10_000), tool_choice={"type": "function", "function": {"name": LONG}})),
        (responses.read, {"input": [{"type": LONG}]}),
        (anthropic.read, to_anthropic({"role": "user", "content": [{"type": LONG}]})),
        (anthropic.read, to_anthropic(tools=[{"type": LONG}])),
        (
            anthropic.read,
            to_anthropic(
                tools=[{"name": LONG, "input_schema": {}}] * 10, tool_choice={"type": "tool", "name": LONG + "y"}
            ),
        ),
        (ollama.read, {"model": "x", "messages": [HI], "keep_alive": LONG}),
        (ollama.read, {"model": "x", "messages": [HI], "keep_alive": "1" * 1_000_000}),
        (ollama.read, {"model": "x", "messages": [HI], "think": LONG}),
    ],
    ids=range(12),
)
def test_an_error_shows_the_beginning_of_a_long_text(read: Reader, body: Body) -> None:
    with pytest.raises(LocalqwenError) as caught:
        read(body)
    assert len(caught.value.message) < 3000


def test_items_of_one_answer_are_one_message() -> None:
    call = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}
    text = {"role": "assistant", "content": "a"}
    reasoning = {"type": "reasoning", "content": [{"text": "hm"}]}
    turns = responses.read({"input": [HI, reasoning, text, text, call, call, HI, text, HI]}).request.messages
    assert [(turn.role, turn.content, turn.thinking, len(turn.tool_calls)) for turn in turns] == [
        ("user", "hi", None, 0),
        ("assistant", "aa", "hm", 2),
        ("user", "hi", None, 0),
        ("assistant", "a", None, 0),
        ("user", "hi", None, 0),
    ]


@pytest.mark.parametrize("text", ["9" * 101, "1h" * 51, " " * 10 + "1" * 200_000, "." * 200_000 + "s"])
def test_a_duration_is_short(text: str) -> None:
    assert units.parse_duration(text) is None
