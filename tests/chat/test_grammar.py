"""Answers of a given form: what a grammar allows token by token, on the demo model's real vocabulary."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from localqwen import engines
from localqwen.chat.grammar import Grammars, TokenConstraint
from localqwen.chat.local import LocalChatModel
from localqwen.chat.messages import Event, Finished, JsonFormat, Message, Request, Text, Thinking, Tool, ToolCall
from localqwen.engines.engine import Engine
from localqwen.errors import Unsupported, UsageError

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "kind": {"enum": ["a", "b"]}},
    "required": ["x", "kind"],
    "additionalProperties": False,
}
TOOLS = (
    Tool("add", "", {**POINT, "properties": {"x": {"type": "integer"}}, "required": ["x"]}),
    Tool('say "hi"'),
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    opened = engines.open("demo", context_length=1024, threads=1)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def grammars(engine: Engine) -> Grammars:
    return Grammars(lambda text: engine.tokenize(text, special=False), engine.vocabulary, lambda: engine.stop_tokens)


def constraint(grammars: Grammars, request: Request, *, thinking: bool = False) -> TokenConstraint:
    made = grammars.constraint(request, thinking=thinking)
    assert made is not None
    return made()


def accepts(grammars: Grammars, engine: Engine, request: Request, text: str, *, thinking: bool = False) -> bool:
    """Whether the grammar allows this answer, in the tokens that the model itself would use, and then its end."""
    held = constraint(grammars, request, thinking=thinking)
    for token in engine.tokenize(text, special=False):
        if not held.allowed()[token]:
            return False
        held.accept(token)
    return any(held.allowed()[stop] for stop in engine.stop_tokens)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ('{"x": 3, "kind": "a"}', True),
        ('{"x":3,"kind":"b"}', True),
        ('{\n  "x": 3,\n  "kind": "a"\n}', True),
        ('{"x": 3, "kind": "c"}', False),
        ('{"x": 3}', False),
        ('{"x": 3, "kind": "a", "y": 1}', False),
        ('{"x": "3", "kind": "a"}', False),
        ('{"x": 3, "kind": "a"} and more', False),
        ('Sure: {"x": 3, "kind": "a"}', False),
        ("\n\n\n\n", False),
    ],
)
def test_a_schema_is_followed_to_the_letter(grammars: Grammars, engine: Engine, text: str, allowed: bool) -> None:
    request = Request([], prompt="x", format=JsonFormat(POINT))
    assert accepts(grammars, engine, request, text) is allowed
    assert accepts(grammars, engine, request, "\n\n" + text, thinking=True) is allowed


@pytest.mark.parametrize(
    ("text", "allowed"), [('{"a": [1, null]}', True), ("{}", True), ("[1]", False), ("3", False), ("hello", False)]
)
def test_any_json_object(grammars: Grammars, engine: Engine, text: str, allowed: bool) -> None:
    assert accepts(grammars, engine, Request([], prompt="x", format=JsonFormat()), text) is allowed


CALL = '<tool_call>\n{"name": "add", "arguments": {"x": 3}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "say \\"hi\\"", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("fields", "text", "allowed"),
    [
        ({"must_call": ("add",)}, CALL, True),
        ({"must_call": ("add",)}, f"{CALL}\n{CALL}", True),
        ({"must_call": ("add",), "parallel_calls": False}, f"{CALL}\n{CALL}", False),
        ({"must_call": ("add",)}, OTHER, False),
        ({"must_call": ("add", 'say "hi"')}, OTHER, True),
        ({"must_call": ("add",)}, "I would rather talk.", False),
        ({"must_call": ("add",)}, CALL.replace("3", '"three"'), False),
        ({"format": JsonFormat(POINT)}, CALL, True),
        ({"format": JsonFormat(POINT)}, '{"x": 3, "kind": "a"}', True),
        ({"format": JsonFormat(POINT)}, "hello", False),
    ],
)
def test_calls_that_must_be_made_or_may(
    grammars: Grammars, engine: Engine, fields: dict[str, Any], text: str, allowed: bool
) -> None:
    assert accepts(grammars, engine, Request([], prompt="x", tools=TOOLS, **fields), text) is allowed


def test_the_constraints_of_an_answer_s_runs_are_independent_and_allow_what_a_first_one_does(
    grammars: Grammars, engine: Engine
) -> None:
    """A run's constraint is a copy of the compiled grammar: here, of one of which another copy is at its end."""
    make = grammars.constraint(Request([], prompt="x", format=JsonFormat(POINT)), thinking=False)
    assert make is not None
    text = engine.tokenize('{"x": 3, "kind": "a"}', special=False)
    walks = []
    for _ in range(3):
        held, allowed = make(), []
        for token in text:
            allowed.append(held.allowed().tobytes())
            held.accept(token)
        walks.append([*allowed, held.allowed().tobytes()])
    fresh = Grammars(lambda text: engine.tokenize(text, special=False), engine.vocabulary, lambda: engine.stop_tokens)
    first = constraint(fresh, Request([], prompt="x", format=JsonFormat(POINT)))
    assert walks[0] == walks[1] == walks[2]
    assert walks[0][0] == first.allowed().tobytes()


def test_a_grammar_is_compiled_once_for_all_answers_to_a_request(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llguidance

    compiled: list[str] = []
    matcher = llguidance.LLMatcher

    def counted(tokenizer: Any, source: str, **options: Any) -> Any:
        compiled.append(source)
        return matcher(tokenizer, source, **options)

    monkeypatch.setattr(llguidance, "LLMatcher", counted)
    request = Request([], prompt="x", format=JsonFormat({"const": "only here"}))
    for _ in range(3):
        make = grammars.constraint(request, thinking=False)
        assert make is not None
        for _ in range(3):
            assert make().allowed().any()
    assert len(compiled) == 1


def test_text_is_free_where_nothing_is_demanded(grammars: Grammars) -> None:
    assert grammars.constraint(Request([], prompt="x", tools=TOOLS), thinking=True) is None


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "objekt"}, "objekt"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "#/nowhere"}, "/nowhere"),
        ({"type": "string", "pattern": "(("}, "regex"),
        ({"$ref": "#"}, "allows no text"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_said(grammars: Grammars, schema: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        grammars.constraint(Request([], prompt="x", format=JsonFormat(schema)), thinking=False)


def test_a_grammar_that_fails_may_only_stop_and_says_why(grammars: Grammars, engine: Engine) -> None:
    held = constraint(grammars, Request([], prompt="x", format=JsonFormat(POINT)))
    held.accept(engine.tokenize("x", special=False)[0])  # which it did not allow
    assert held.problem is not None
    assert frozenset(np.flatnonzero(held.allowed())) == engine.stop_tokens
    held.accept(min(engine.stop_tokens))
    assert "grammar failed" in held.problem.message


def test_any_random_walk_is_json(grammars: Grammars, engine: Engine) -> None:
    """Tokens drawn at random from what is allowed: the grammar alone makes the answer valid."""
    words = engine.vocabulary()
    for seed in range(5):
        held, drawn, text = (
            constraint(grammars, Request([], prompt="x", format=JsonFormat(POINT))),
            np.random.default_rng(seed),
            b"",
        )
        while not any(held.allowed()[stop] for stop in engine.stop_tokens):
            token = int(drawn.choice(np.flatnonzero(held.allowed())))
            held.accept(token)
            text += words[token]
        found = json.loads(text)
        assert isinstance(found["x"], int)
        assert found["kind"] in ("a", "b")


def answer(engine: Engine, **fields: Any) -> list[Event]:
    model = LocalChatModel(engine, "demo", thinking_mode="switch")
    from localqwen.chat.messages import Overrides

    request = Request([Message("user", "What is 17 + 25?")], sampling=Overrides(temperature=0), **fields)
    return list(model.stream(request))


@pytest.mark.parametrize("fields", [{}, {"think": False}, {"budget": 10}], ids=["thinking", "not", "cut"])
def test_the_thinking_is_free_and_the_text_is_held(engine: Engine, fields: dict[str, Any]) -> None:
    schema = {**POINT, "properties": {"x": {"type": "integer", "minimum": 1, "maximum": 99}}, "required": ["x"]}
    came = answer(engine, format=JsonFormat(schema), **fields)
    text = "".join(event.text for event in came if isinstance(event, Text))
    assert 1 <= json.loads(text)["x"] <= 99
    thought = "".join(event.text for event in came if isinstance(event, Thinking))
    assert ("carry" in thought) is (not fields)
    finished = came[-1]
    assert isinstance(finished, Finished)
    assert finished.finish_reason == "stop"


def test_one_call_is_enough_where_only_one_may_be_made(engine: Engine) -> None:
    came = answer(engine, tools=TOOLS, must_call=("add",), parallel_calls=False)
    assert [event.name for event in came if isinstance(event, ToolCall)] == ["add"]
    assert isinstance(came[-1], Finished)
    assert came[-1].finish_reason == "tool_calls"


def test_a_model_without_a_vocabulary_cannot_be_held(engine: Engine) -> None:
    from dataclasses import replace

    from localqwen.chat.model_info import info_of
    from localqwen.chat.reply import Reply

    info = replace(info_of(engine, "demo"), grammars=None)
    with pytest.raises(Unsupported, match="demo cannot be limited to a grammar"):
        Reply(Request([Message("user", "x")], format=JsonFormat()), info)
