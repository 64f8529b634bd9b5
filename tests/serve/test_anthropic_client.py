"""The real `anthropic` client against a real port: with the demo model and with the scripted engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from local_server import Running, serving

from localqwen.engines.scripted import ScriptedEngine
from localqwen.serve.http.app import Settings
from localqwen.serve.http.guard import Access

SUM: Any = [{"role": "user", "content": "What is 17 + 25?"}]
ADD: Any = {
    "name": "add",
    "description": "Adds two numbers.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 17, "b": 25}}\n</tool_call>'
#: The client has no arguments for sampling; the API takes them.
COLD = {"temperature": 0}
SURE = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}},
    "required": ["sure"],
    "additionalProperties": False,
}
OFF: Any = {"type": "disabled"}


def client_of(server: Running, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0)


def scripted(*answers: str, settings: Settings | None = None) -> Any:
    return serving(ScriptedEngine(answers), settings, name="demo")


@pytest.fixture(scope="module")
def client() -> Iterator[anthropic.Anthropic]:
    with serving(None, name="demo") as server, client_of(server) as made:
        yield made


def ask(client: anthropic.Anthropic, **more: Any) -> anthropic.types.Message:
    body: Any = {"model": "demo", "max_tokens": 300, "messages": SUM, "extra_body": COLD, **more}
    answer = client.messages.create(**body)
    assert isinstance(answer, anthropic.types.Message)
    return answer


def text_of(answer: anthropic.types.Message) -> str:
    return "".join(block.text for block in answer.content if block.type == "text")


def test_the_demo_thinks_and_answers(client: anthropic.Anthropic) -> None:
    answer = ask(client, system="You are a helpful assistant.")
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert "42" in text_of(answer)
    assert (answer.model, answer.role, answer.stop_reason) == ("demo", "assistant", "end_turn")
    assert answer.usage.output_tokens > 10
    assert ask(client, thinking=OFF).content[0].type == "text"


def test_a_budget_ends_the_thinking(client: anthropic.Anthropic) -> None:
    answer = ask(client, thinking={"type": "enabled", "budget_tokens": 5})
    assert answer.content[0].type == "thinking"
    assert "Considering the limited time" in answer.content[0].thinking
    assert answer.usage.output_tokens_details is not None
    assert answer.usage.output_tokens_details.thinking_tokens == 5
    assert text_of(answer)


def test_a_stream_builds_the_same_message(client: anthropic.Anthropic) -> None:
    whole = ask(client)
    with client.messages.stream(model="demo", max_tokens=300, messages=SUM, extra_body=COLD) as stream:
        kinds = {event.type for event in stream}
        built = stream.get_final_message()
    assert [block.model_dump(exclude={"parsed_output"}) for block in built.content] == [
        block.model_dump(exclude={"parsed_output"}) for block in whole.content
    ]
    assert (built.stop_reason, built.usage.output_tokens) == ("end_turn", whole.usage.output_tokens)
    assert {"thinking", "signature", "text", "message_stop"} <= kinds


def test_counted_tokens_are_the_prompts_cached_and_new_together(client: anthropic.Anthropic) -> None:
    body: Any = {"model": "demo", "messages": SUM, "tools": [ADD], "system": "Be brief.", "thinking": OFF}
    counted = client.messages.count_tokens(**body).input_tokens
    first, again = (client.messages.create(max_tokens=5, **body).usage for _ in range(2))
    assert counted == first.input_tokens + (first.cache_read_input_tokens or 0)
    assert counted == again.input_tokens + (again.cache_read_input_tokens or 0)
    assert (again.cache_read_input_tokens or 0) > 0
    assert (
        client.messages.count_tokens(model="demo", messages=[{"role": "user", "content": "a " * 9000}]).input_tokens
        > 9000
    )


def test_a_tool_is_called_and_its_result_goes_back() -> None:
    with scripted(f"<think>\nI add.\n</think>\n\nWait.\n{CALL}", "It is 42.") as server, client_of(server) as client:
        first = ask(client, tools=[ADD])
        assert [block.type for block in first.content] == ["thinking", "text", "tool_use"]
        assert first.stop_reason == "tool_use"
        called = first.content[2]
        assert called.type == "tool_use"
        assert (called.name, called.input) == ("add", {"a": 17, "b": 25})
        result = {"type": "tool_result", "tool_use_id": called.id, "content": "42"}
        history = [*SUM, first.to_param(), {"role": "user", "content": [result]}]
        second = ask(client, messages=history, tools=[ADD], thinking=OFF)
        assert (text_of(second), second.stop_reason) == ("It is 42.", "end_turn")


def test_a_streamed_tool_call_is_a_block_of_its_own() -> None:
    body: Any = {"model": "demo", "max_tokens": 99, "messages": SUM, "tools": [ADD], "thinking": OFF}
    with scripted(CALL * 2) as server, client_of(server) as client, client.messages.stream(**body) as stream:
        built = stream.get_final_message()
    assert [block.input for block in built.content if block.type == "tool_use"] == [{"a": 17, "b": 25}] * 2
    assert built.stop_reason == "tool_use"


def test_the_demo_must_call_the_tool_that_is_chosen(client: anthropic.Anthropic) -> None:
    choice = {"type": "tool", "name": "add", "disable_parallel_tool_use": True}
    answer = ask(client, tools=[{"name": "add", "input_schema": SURE}], tool_choice=choice, thinking=OFF)
    (called,) = [block for block in answer.content if block.type == "tool_use"]
    assert called.input in ({"sure": True}, {"sure": False})


def test_the_answer_can_be_held_to_a_schema(client: anthropic.Anthropic) -> None:
    answer = ask(client, output_config={"format": {"type": "json_schema", "schema": SURE}}, thinking=OFF)
    assert json.loads(text_of(answer))["sure"] in (True, False)


def test_why_it_stopped() -> None:
    with scripted("one two three", "one two three") as server, client_of(server) as client:
        stopped = ask(client, thinking=OFF, stop_sequences=["zero", "two"])
        assert (text_of(stopped), stopped.stop_reason, stopped.stop_sequence) == ("one ", "stop_sequence", "two")
        cut = ask(client, thinking=OFF, max_tokens=2)
        assert (text_of(cut), cut.stop_reason, cut.stop_sequence) == ("one ", "max_tokens", None)


PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        ({"model": "claude-opus"}, anthropic.NotFoundError, "demo"),
        ({"messages": [{"role": "user", "content": [PICTURE]}]}, anthropic.BadRequestError, "reads text only"),
        ({"messages": []}, anthropic.BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": "a " * 9000}]}, anthropic.BadRequestError, "context holds"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_anthropics_classes_and_shape(
    client: anthropic.Anthropic, more: dict[str, Any], kind: type[anthropic.APIStatusError], said: str, stream: bool
) -> None:
    with pytest.raises(kind, match=said) as caught:
        ask(client, stream=stream, **more)
    body: Any = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", caught.value.type)


def test_the_key_goes_as_x_api_key() -> None:
    with scripted("Hello.", settings=Settings(access=Access(key="sesame"))) as server:
        with client_of(server, "sesame") as client:
            assert text_of(ask(client, thinking=OFF)) == "Hello."
        with client_of(server, "wrong") as client, pytest.raises(anthropic.AuthenticationError) as caught:
            ask(client)
    assert caught.value.type == "authentication_error"
