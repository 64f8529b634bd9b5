"""The next turn's prompt: what is known of it when an answer has ended."""

import json
from pathlib import Path

import pytest

from localqwen.chat.messages import Message, Request, Tool, ToolCall
from localqwen.chat.model_info import info_of
from localqwen.chat.prefill_ahead import next_turn
from localqwen.chat.reply import Reply
from localqwen.engines.scripted import ScriptedEngine

DEMO = Path(__file__).parents[2] / "localqwen" / "demo" / "tokenizer_config.json"
TEMPLATE = json.loads(DEMO.read_text())["chat_template"]
ADD = Tool("add", "Adds.", {"type": "object"})


def prefix_of_next(request: Request, answer: Message, following: Message) -> tuple[int, int]:
    """How many ids were prepared, and how many of them the real next prompt begins with."""
    info = info_of(ScriptedEngine([], chat_template=TEMPLATE), "m", thinking_mode="switch")
    ids = next_turn(request, answer, info, thinking=request.think is not False)
    later = Reply(Request([*request.messages, answer, following], request.tools, request.think), info).prompt
    same = next((i for i, (left, right) in enumerate(zip(ids, later, strict=False)) if left != right), len(ids))
    return len(ids), same


@pytest.mark.parametrize("think", [None, False])
@pytest.mark.parametrize("text", ["Really?", "\nA line break first", " ", "<|im_end|>", "ü"])
def test_it_is_the_beginning_of_whatever_comes_next(think: bool | None, text: str) -> None:
    request = Request([Message("system", "Be kind."), Message("user", "hello")], think=think)
    answer = Message("assistant", "Hello to you.", "They greet." if think is None else None)
    prepared, same = prefix_of_next(request, answer, Message("user", text))
    assert prepared == same


def test_the_thinking_that_the_template_drops_is_not_read() -> None:
    info = info_of(ScriptedEngine([], chat_template=TEMPLATE), "m", thinking_mode="switch")
    request = Request([Message("user", "hello")])
    with_thinking = next_turn(request, Message("assistant", "Hi.", "A long thought"), info, thinking=True)
    assert with_thinking == next_turn(request, Message("assistant", "Hi."), info, thinking=True)


def test_after_a_call_the_thinking_stays_and_a_result_follows() -> None:
    request = Request([Message("user", "1 + 2?")], tools=(ADD,))
    answer = Message("assistant", "", "I add.", (ToolCall("add", {"a": 1}),))
    prepared, same = prefix_of_next(request, answer, Message("tool", "3"))
    assert prepared == same
    info = info_of(ScriptedEngine([], chat_template=TEMPLATE), "m", thinking_mode="switch")
    without = next_turn(request, Message("assistant", "", None, answer.tool_calls), info, thinking=True)
    assert prepared > len(without)


def test_a_text_that_was_continued_has_no_next_turn() -> None:
    info = info_of(ScriptedEngine([]), "m")
    assert next_turn(Request([], prompt="Once"), Message("assistant", "upon"), info, thinking=False) == ()
