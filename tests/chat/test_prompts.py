"""From a request to token ids: how far a prompt is read, what is counted exactly, which stage runs."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from growth import ratio

from localqwen.chat.encoding import COUNTED_EXACTLY
from localqwen.chat.grammar import Grammars
from localqwen.chat.messages import JsonFormat, Message, Request, Tool, ToolCall
from localqwen.chat.model_info import ModelInfo, info_of
from localqwen.chat.prefill_ahead import next_turn
from localqwen.chat.prompts import count_prompt
from localqwen.chat.reply import Reply
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import ContextTooLong, TemplateError, UsageError
from localqwen.models import converted

WORDS = COUNTED_EXACTLY // 4
LONG = "far " * WORDS  # each a word and a space, four characters: as long as is counted exactly
LONGER = "more " * WORDS


class Counting(ScriptedEngine):
    """Notes how many ids its tokenizer gave."""

    given = 0

    def tokenize(self, text: str, *, special: bool, limit: int | None = None) -> list[int]:
        ids = super().tokenize(text, special=special, limit=limit)
        self.given += len(ids)
        return ids


def opened(**options: Any) -> tuple[ModelInfo, Counting]:
    engine = Counting(["x"], **options)
    return info_of(engine, "m", thinking_mode="switch"), engine


REQUESTS: dict[str, Callable[[str], Request]] = {
    "message": lambda text: Request([Message("user", text)]),
    "text": lambda text: Request([], prompt=text),
    "messages": lambda text: Request([Message("user", part) for part in (text[:99], *[text[:99999]] * 9, text)]),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_prompt_far_beyond_the_context_is_not_read_to_its_end(kind: str) -> None:
    info, engine = opened(context_length=1000)
    with pytest.raises(ContextTooLong, match=r"has at least 1,001 tokens, the context holds 1,000") as error:
        Reply(REQUESTS[kind](LONGER), info)
    assert (error.value.prompt_tokens, error.value.exact) == (1001, False)
    assert engine.given < 1100


def test_a_prompt_that_is_a_little_too_long_is_counted_exactly() -> None:
    info, _ = opened(context_length=1000)
    with pytest.raises(ContextTooLong, match=r"has 1,998 tokens") as error:
        Reply(Request([], prompt="ab " * 999), info)
    assert (error.value.prompt_tokens, error.value.exact) == (1998, True)


@pytest.mark.parametrize(("tokens", "fits"), [(2 * WORDS + 1, True), (2 * WORDS, False)])
def test_a_long_prompt_fits_where_one_token_more_does(tokens: int, fits: bool) -> None:
    request = Request([], prompt="more " * WORDS)
    info, _ = opened(context_length=tokens)
    if fits:
        assert len(Reply(request, info).prompt) == 2 * WORDS
    else:
        with pytest.raises(ContextTooLong) as error:
            Reply(request, info)
        assert (error.value.prompt_tokens, error.value.exact) == (2 * WORDS, True)


@pytest.mark.parametrize("kind", ["message", "text"])
def test_a_count_is_exact_however_long_the_prompt_is(kind: str) -> None:
    info, _ = opened(context_length=64)
    frame = count_prompt(REQUESTS[kind]("x"), info) - 1
    assert count_prompt(REQUESTS[kind](LONGER), info) == frame + 2 * WORDS


def test_a_count_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        count_prompt(Request([], prompt=""), opened()[0])


def test_the_history_is_tokenized_once_for_the_next_turn() -> None:
    info, engine = opened(context_length=10_000)
    request = Request([Message("user", "many words " * 500)], think=False)
    ids = next_turn(request, Message("assistant", "hello"), info, thinking=False)
    assert len(ids) <= engine.given < len(ids) + 20


@pytest.mark.parametrize("text", ["word " * 600, LONGER])
def test_a_history_beyond_the_context_has_no_next_turn(text: str) -> None:
    info, engine = opened(context_length=1000)
    assert next_turn(Request([Message("user", text)]), Message("assistant", "hi"), info, thinking=False) == ()
    assert engine.given < 1300


def stages(work: Callable[[Callable[[str], None]], object]) -> list[str]:
    begun: list[str] = []
    work(begun.append)
    return begun


def test_the_stages_of_a_reply_are_told_before_they_begin() -> None:
    info, engine = opened()
    assert stages(lambda told: Reply(Request([Message("user", "hi")]), info, on_stage=told)) == ["template", "text"]
    assert stages(lambda told: Reply(Request([], prompt="hi"), info, on_stage=told)) == ["text"]

    class Refusing(Grammars):
        def constraint(self, request: Request, *, thinking: bool) -> Any:
            raise UsageError("no grammar")

    begun: list[str] = []
    words = functools.partial(engine.tokenize, special=False)
    refusing = info_of(engine, "m")
    object.__setattr__(refusing, "grammars", Refusing(words, engine.vocabulary, lambda: engine.stop_tokens))
    with pytest.raises(UsageError, match="no grammar"):
        Reply(Request([Message("user", "hi")], format=JsonFormat()), refusing, on_stage=begun.append)
    assert begun == ["grammar"]


def test_a_stage_that_fails_is_the_last_one_told() -> None:
    engine = ScriptedEngine([], chat_template="{{ raise_exception('no') if messages[0].content != 'x' }}")
    info, begun = info_of(engine, "m"), list[str]()
    with pytest.raises(TemplateError):
        Reply(Request([Message("user", "hi")]), info, on_stage=begun.append)
    assert begun == ["template"]


def test_counting_and_the_next_turn_tell_their_stages_too() -> None:
    info, _ = opened()
    request = Request([Message("user", "hi")])
    assert stages(lambda told: count_prompt(request, info, on_stage=told)) == ["template", "text"]
    answer = Message("assistant", "hello")
    turn = stages(lambda told: next_turn(request, answer, info, thinking=False, on_stage=told))
    assert turn == ["template", "template", "text"]


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(levels):
        inner = {"a": inner}
    return inner


@pytest.mark.parametrize("place", ["tool", "call"])
def test_data_that_is_nested_too_deeply_is_a_usage_error(place: str) -> None:
    info, _ = opened()
    deep = nested(100_000)
    messages = [Message("user", "x")]
    tools = (Tool("f", "", deep),) if place == "tool" else ()
    if place == "call":
        messages += [Message("assistant", "", None, (ToolCall("f", deep),)), Message("tool", "1")]
    with pytest.raises(UsageError, match="nested too deeply"):
        Reply(Request(messages, tools=tools), info)


def turns(count: int) -> Request:
    pairs = ([Message("user", f"question {n}"), Message("assistant", "an answer", "a thought")] for n in range(count))
    return Request([*(message for pair in pairs for message in pair), Message("user", "the last")])


def tools(count: int) -> Request:
    schema = {"type": "object", "properties": {"x": {"type": "string", "description": "some text"}}}
    return Request([Message("user", "hi")], tools=tuple(Tool(f"tool_{n}", "does it", schema) for n in range(count)))


def results(count: int) -> Request:
    call = ToolCall("f", {"x": [1, 2, 3], "text": "<|im_end|>"})
    return Request([Message("user", "hi"), Message("assistant", "", None, (call,) * count), Message("tool", "1")])


def control(count: int) -> Request:
    return Request([Message("user", "<|im_end|> x" * count)])


@pytest.fixture(scope="module")
def qwen() -> ModelInfo:
    """Qwen3's own template."""
    config = json.loads((converted.demo_checkpoint() / "tokenizer_config.json").read_text())
    return info_of(ScriptedEngine([], chat_template=config["chat_template"], context_length=10_000_000), "m")


@pytest.mark.parametrize("make", [turns, tools, results, control], ids=lambda make: make.__name__)
def test_four_times_the_request_takes_about_four_times_as_long(qwen: ModelInfo, make: Callable[[int], Request]) -> None:
    prepared: Sequence[Request] = [make(count) for count in (300, 1_200)]
    assert ratio(lambda request: Reply(request, qwen), *prepared, rounds=3) < 8
