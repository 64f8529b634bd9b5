"""The streaming parser: what is thinking, what is text, what is a call. And the switch before it."""

import itertools
import json
from pathlib import Path

import pytest
from growth import ratio

from localqwen.chat.messages import Message, Request, Text, Thinking, ToolCall
from localqwen.chat.thinking import ThinkingParser, parse_output, prompt_start, resolve_thinking, soft_switch
from localqwen.chat.toolcalls import read_call
from localqwen.errors import Unsupported, UsageError

CASES = json.loads((Path(__file__).parents[1] / "vectors" / "parser.json").read_text())


def parsed(chunks: list[str], start: str) -> dict:
    output = parse_output(chunks, start=start)  # type: ignore[arg-type]
    calls = [{"name": call.name, "arguments": call.arguments} for call in output.tool_calls]
    return {"reasoning": output.thinking, "content": output.content, "tool_calls": calls}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_case_is_parsed_the_same_however_it_is_cut(case: dict) -> None:
    """As given, character by character, and at every one and every two places."""
    text = "".join(case["chunks"])
    assert parsed(case["chunks"], case["start"]) == case["expected"]
    assert parsed(list(text), case["start"]) == case["expected"]
    for i, j in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        assert parsed([text[:i], text[i:j], text[j:]], case["start"]) == case["expected"], (i, j)


#: Beyond the vectors: start, text, thinking, content, names of the calls.
MORE = [
    ("auto", "", "", "", []),
    ("open", "", "", "", []),
    ("auto", "<thi", "", "<thi", []),
    ("auto", " <think", "", " <think", []),
    ("open", "<think", "<think", "", []),
    ("auto", "<think>\n\n\na\n\n\n</think>\n\n\nb", "a", "b", []),
    ("auto", "<think>a\n\nb\n</think>c\n", "a\n\nb", "c\n", []),
    ("off", "\nline\n\n", "", "\nline\n\n", []),
    ("off", "a < b, <tool", "", "a < b, <tool", []),
    ("off", 'one\n<tool_call>{"name": "f"}</tool_call>\ntwo', "", "one\ntwo", ["f"]),
    ("off", '<tool_call>{"name": "f", "arguments": null}</tool_call>', "", "", ["f"]),
    (
        "off",
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        "",
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        [],
    ),
    (
        "off",
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        "",
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        [],
    ),
    ("off", '<tool_call>{"name": "f"} x</tool_call>', "", '<tool_call>{"name": "f"} x</tool_call>', []),
    ("off", '<tool_call>{"name": "f"}\n<tool_call>{"name": "g"}</tool_call>', "", "", ["f", "g"]),
    ("off", '<tool_call>{"name": "f"\n<tool_call>{"name": "g"}</tool_call>', "", '<tool_call>{"name": "f"', ["g"]),
    ("off", '<tool_call><tool_call>{"name": "g"}</tool_call>', "", "<tool_call>", ["g"]),
    ("off", '<tool_call>{"name": "f", "arguments": {"t": "two\nlines"}}</tool_call>', "", "", ["f"]),
    ("off", '<tool_call>{"name": "f"}</tool_', "", "", ["f"]),
    ("off", '<tool_call>{"name": "f', "", '<tool_call>{"name": "f', []),
    ("open", 'x <tool_call>{"name": "f"}</tool_call> y', "x ", "y", ["f"]),
    ("open", 'x <tool_call>{"name": "f"}</tool_call> y</think>z', 'x <tool_call>{"name": "f"}</tool_call> y', "z", []),
    ("open", 'x <tool_call>{"name": "f"</think>z', 'x <tool_call>{"name": "f"', "z", []),
    ("open", "about <tool_call> tags\n", "about <tool_call> tags", "", []),
]


@pytest.mark.parametrize(("start", "text", "thinking", "content", "calls"), MORE)
def test_more_cases_are_parsed_the_same_however_they_are_cut(
    start: str, text: str, thinking: str, content: str, calls: list[str]
) -> None:
    for i, j in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        output = parse_output([text[:i], text[i:j], text[j:]], start=start)  # type: ignore[arg-type]
        assert (output.thinking, output.content, [c.name for c in output.tool_calls]) == (thinking, content, calls), (
            i,
            j,
        )


def test_thinking_streams_as_it_comes_and_only_what_may_be_a_tag_waits() -> None:
    parser = ThinkingParser("auto")
    assert parser.feed("<think>\nI see") == [Thinking("I see")]
    assert parser.feed(" it. 1 <") == [Thinking(" it. 1 ")]
    assert parser.feed(" 2\n") == [Thinking("< 2")]
    assert parser.feed("\nSo") == [Thinking("\n\nSo")]
    assert parser.feed("</thi") == []
    assert parser.feed("nk>\n\nYes") == [Text("Yes")]


def test_a_call_is_given_as_soon_as_it_is_whole() -> None:
    parser = ThinkingParser("off")
    assert parser.feed('ok\n<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call') == [Text("ok")]
    assert parser.feed(">") == [ToolCall("f", {"x": 1})]


def test_a_long_answer_is_parsed_in_linear_time() -> None:
    """A parser that reads its whole buffer again at each piece would need minutes for this one."""
    hard = '<tool_call>{"name": "f", "arguments": {"text": "' + "<tool_call>{ " * 20_000
    output = parse_output(hard[i : i + 7] for i in range(0, len(hard), 7))
    assert output.content == hard


def test_deep_nesting_and_endless_numbers_are_no_calls() -> None:
    assert read_call('{"name": "f", "arguments": ' + "[" * 100_000) is None
    assert read_call('{"name": "f", "arguments": {"n": ' + "9" * 10_000 + "}}") is None


SWITCHES = [
    (["user: hi"], None),
    (["user: hi /no_think"], False),
    (["user: /think hi"], True),
    (["user: /no_think a", "user: b /think"], True),
    (["system: /no_think", "user: hi"], False),
    (["user: hi /think", "assistant: /no_think"], True),
    (["user: hi /think", "tool: /no_think"], True),
    (["user: /think or /no_think"], False),
    (["user: see docs/think or /thinking, or x/no_think"], None),
    (["user: a\n/no_think\nb"], False),
]


@pytest.mark.parametrize(("lines", "expected"), SWITCHES)
def test_the_last_soft_switch_of_system_and_user_counts(lines: list[str], expected: bool | None) -> None:
    messages = [Message(*line.split(": ", 1)) for line in lines]  # type: ignore[arg-type]
    assert soft_switch(messages) is expected


def ask(text: str = "hi", **options: object) -> Request:
    return Request([Message("user", text)], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (ask(), True),
        (ask("hi /no_think"), False),
        (ask("hi /no_think", think=True), True),
        (ask("hi /think", think=False), False),
        (ask(budget=0), False),
        (ask("hi /think", budget=0), False),
        (ask("hi /no_think", budget=9), False),
    ],
)
def test_the_hard_switch_wins_over_the_soft_one_and_that_over_the_default(request_: Request, expected: bool) -> None:
    assert resolve_thinking(request_, "switch", "m") is expected


def test_a_model_without_a_switch_refuses_what_it_cannot_do() -> None:
    assert resolve_thinking(ask("x /no_think"), "always", "m") is True
    assert resolve_thinking(ask("x /think"), "never", "m") is False
    assert resolve_thinking(ask(budget=0), "never", "m") is False
    for request, mode in [
        (ask(think=False), "always"),
        (ask(budget=0), "always"),
        (ask(think=True), "never"),
        (ask(budget=5), "never"),
    ]:
        with pytest.raises(Unsupported) as error:
            resolve_thinking(request, mode, "the-model")  # type: ignore[arg-type]
        assert "the-model" in error.value.message
        assert error.value.hint
    with pytest.raises(UsageError):
        resolve_thinking(ask(budget=-1), "switch", "m")


def test_the_prompt_decides_the_first_state() -> None:
    assert prompt_start("…<|im_start|>assistant\n<think>\n", True) == "open"
    assert prompt_start("…<|im_start|>assistant\n", True) == "auto"
    assert prompt_start("…<think>\n\n</think>\n\n", False) == "off"


#: Answers that a hostile question can make a model write, in pieces as tokens bring them.
HOSTILE = {
    "blanks first": lambda count: [" " * 64] * count,
    "blanks in the thinking": lambda count: ["<think>", *["\n" * 64] * count],
    "blanks in the answer": lambda count: ["a", *[" " * 64] * count],
    "blanks behind a call": lambda count: ['<tool_call>{"name": "a"}', *[" " * 64] * count],
    "a call without end": lambda count: ['<tool_call>{"a": "', *["word "] * count],
    "opening tags in a string": lambda count: ['<tool_call>{"a": "', *["<tool_call>{"] * count],
    "opening tags": lambda count: ["<tool_call>{"] * count,
    "opening tags at once": lambda count: ["<tool_call>{" * count],
    "calls at once": lambda count: ['<tool_call>{"name": "a"}</tool_call>' * count],
    "calls in the thinking": lambda count: ["<think>", *['<tool_call>{"name": "a"}</tool_call>'] * count],
    "beginnings of tags": lambda count: ["<tool_call", "</think", "<"] * count,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_four_times_the_answer_takes_about_four_times_as_long(name: str) -> None:
    def parse(pieces: list[str]) -> None:
        parser = ThinkingParser()
        for piece in pieces:
            parser.feed(piece)
        parser.finish()

    assert ratio(parse, HOSTILE[name](2_000), HOSTILE[name](8_000), rounds=3) < 8
