"""Anthropic's API: bodies in, events out, as tables; then the real `anthropic` client against a real port."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from localqwen.chat.answer import Answer
from localqwen.chat.messages import (
    Finished,
    JsonFormat,
    Message,
    Overrides,
    Started,
    Text,
    Thinking,
    Timing,
    Tool,
    ToolCall,
    Usage,
    Working,
)
from localqwen.errors import (
    BadField,
    Busy,
    ContextTooLong,
    EngineError,
    LocalqwenError,
    ModelNotFound,
    TooLarge,
    WrongKey,
)
from localqwen.serve.anthropic import messages as anthropic_messages
from localqwen.serve.api import ParsedRequest, ResponseMeta

META = ResponseMeta("0123456789abcdef01234567", "demo", 1_750_000_000.0)
USER = {"role": "user", "content": "hi"}
TOOLS = [
    {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}},
    {"name": "now", "input_schema": {"type": "object", "properties": {}}, "type": "custom"},
]


def read(**more: Any) -> ParsedRequest:
    return anthropic_messages.read({"model": "demo", "max_tokens": 100, "messages": [USER], **more})


def end(reason: Any = "stop", *, stop: str | None = None, tokens: int = 9) -> Finished:
    return Finished(reason, Usage(12, 4, tokens, 2), Timing(), stop=stop)


def events(parsed: ParsedRequest, fed: list[Any]) -> list[dict[str, Any]]:
    """The data of every event; its name is the data's type."""
    stream = anthropic_messages.Stream(parsed, META)
    sent = b"".join(stream.feed(event) for event in fed) + stream.end()
    found = []
    for block in sent.decode().strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_conversation_is_read_from_blocks() -> None:
    parsed = read(
        system=[{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind.", "cache_control": {}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "2+2,"}, {"type": "text", "text": "and the time?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "two tools", "signature": "abc"},
                    {"type": "text", "text": "Wait."},
                    {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 2, "b": 2}},
                    {"type": "tool_use", "id": "t2", "name": "now", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "4"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "content": [{"type": "text", "text": "no clock"}],
                        "is_error": True,
                    },
                    {"type": "text", "text": "Go on."},
                ],
            },
        ],
    )
    calls = (ToolCall("add", {"a": 2, "b": 2}, "t1"), ToolCall("now", {}, "t2"))
    assert parsed.request.messages == (
        Message("system", "Be brief.\nBe kind."),
        Message("user", "2+2,\nand the time?"),
        Message("assistant", "Wait.", "two tools", calls),
        Message("tool", "4", tool_call_id="t1"),
        Message("tool", "Error: no clock", tool_call_id="t2"),
        Message("user", "Go on."),
    )
    assert read(system="Be brief.").request.messages[0] == Message("system", "Be brief.")
    assert read(messages=[{"role": "system", "content": "x"}, USER]).request.messages[0] == Message("system", "x")


def test_a_text_document_is_text_and_what_another_maker_hid_is_left_out() -> None:
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Read me."}}
    hidden = {
        "role": "assistant",
        "content": [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "A"}],
    }
    request = read(messages=[{"role": "user", "content": [document]}, hidden, USER]).request
    assert [message.content for message in request.messages] == ["Read me.", "A", USER["content"]]
    assert request.messages[1].thinking is None


def test_limits_and_sampling_are_read_and_metadata_is_not() -> None:
    parsed = read(stop_sequences=["END"], temperature=0.5, top_p=0.9, top_k=5, metadata={"user_id": "u"}, stream=True)
    assert parsed.request.sampling == Overrides(temperature=0.5, top_p=0.9, top_k=5)
    assert (parsed.request.max_tokens, parsed.request.stop, parsed.stream) == (100, ("END",), True)


@pytest.mark.parametrize(
    ("thinking", "effort", "switch", "budget"),
    [
        (None, None, None, None),
        (None, "low", None, 2048),
        ({"type": "disabled"}, None, False, None),
        ({"type": "enabled", "budget_tokens": 20}, "low", True, 20),
        ({"type": "adaptive"}, None, None, None),
        ({"type": "adaptive"}, "low", None, 2048),
        ({"type": "adaptive"}, "max", None, None),
    ],
)
def test_thinking_is_a_switch_with_a_budget(
    thinking: Any, effort: str | None, switch: bool | None, budget: int | None
) -> None:
    request = read(thinking=thinking, output_config={"effort": effort}).request
    assert (request.think, request.budget) == (switch, budget)


@pytest.mark.parametrize(
    ("choice", "offered", "must_call", "parallel"),
    [
        (None, 2, (), True),
        ({"type": "auto"}, 2, (), True),
        ({"type": "auto", "disable_parallel_tool_use": True}, 2, (), False),
        ({"type": "any"}, 2, ("add", "now"), True),
        ({"type": "tool", "name": "now", "disable_parallel_tool_use": True}, 2, ("now",), False),
        ({"type": "none"}, 0, (), True),
    ],
)
def test_tool_choice(choice: Any, offered: int, must_call: tuple[str, ...], parallel: bool) -> None:
    request = read(tools=TOOLS, tool_choice=choice).request
    assert (len(request.tools), request.must_call, request.parallel_calls) == (offered, must_call, parallel)


def test_tools_and_the_form_of_the_answer_are_json_schemas() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    request = read(tools=TOOLS[:1], output_config={"format": {"type": "json_schema", "schema": schema}}).request
    assert request.tools == (Tool("add", "Adds.", {"type": "object"}),)
    assert request.format == JsonFormat(schema)


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"model": None}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "assistant", "content": "So"}]}, "messages"),
        (user({"type": "image", "source": {}}), "messages[0].content[0].type"),
        (user({"type": "document", "source": {}}), "messages[0].content[0].type"),
        (user({"type": "tool_use", "id": "t", "name": "f", "input": {}}), "messages[0].content[0].type"),
        (user({"text": "hi"}), "messages[0].content[0].type"),
        (user({"type": "text"}), "messages[0].content[0].text"),
        (user({"type": "tool_result", "content": "4"}), "messages[0].content[0].tool_use_id"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"thinking": {}}, "thinking.type"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "sub"}}, "tool_choice.name"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"top_p": 2}, "top_p"),
        ({"mcp_servers": [{"type": "url", "url": "http://x", "name": "x"}]}, "mcp_servers"),
    ],
)
def test_what_is_wrong_names_the_field(more: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as caught:
        read(**more)
    assert caught.value.field == field


def test_the_form_of_an_answer_may_stand_in_its_older_place() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    assert read(output_format=form).request.format == JsonFormat({"type": "object"})


def test_tokens_are_counted_of_a_body_without_a_limit() -> None:
    body = {"model": "demo", "messages": [USER], "thinking": {"type": "enabled", "budget_tokens": 2000}}
    assert anthropic_messages.read_count(body).request.budget == 2000
    assert anthropic_messages.counted(12) == {"input_tokens": 12}


FED = [
    Started(12, 4, thinking=True),
    Working(3, 12),
    Thinking("let"),
    Thinking(" me"),
    Text("Hello"),
    Text(" you"),
    ToolCall("add", {"a": 1}),
    ToolCall("now", {}),
    Text("Bye"),
    end("tool_calls"),
]
SIGNATURE = hashlib.sha256(b"let me").hexdigest()
FIRST, SECOND = "toolu_0123456789abcdef0000", "toolu_0123456789abcdef0001"


def test_a_stream_opens_and_closes_a_block_for_every_kind_of_content() -> None:
    shape = [(event["type"], event.get("index"), event.get("delta", {}).get("type")) for event in events(read(), FED)]
    assert shape == [
        ("message_start", None, None),
        ("content_block_start", 0, None),
        ("content_block_delta", 0, "thinking_delta"),
        ("content_block_delta", 0, "thinking_delta"),
        ("content_block_delta", 0, "signature_delta"),
        ("content_block_stop", 0, None),
        ("content_block_start", 1, None),
        ("content_block_delta", 1, "text_delta"),
        ("content_block_delta", 1, "text_delta"),
        ("content_block_stop", 1, None),
        ("content_block_start", 2, None),
        ("content_block_delta", 2, "input_json_delta"),
        ("content_block_stop", 2, None),
        ("content_block_start", 3, None),
        ("content_block_delta", 3, "input_json_delta"),
        ("content_block_stop", 3, None),
        ("content_block_start", 4, None),
        ("content_block_delta", 4, "text_delta"),
        ("content_block_stop", 4, None),
        ("message_delta", None, None),
        ("message_stop", None, None),
    ]


def test_a_streams_blocks_and_numbers() -> None:
    sent = events(read(), FED)
    assert sent[0]["message"]["usage"] == {
        "input_tokens": 8,
        "cache_read_input_tokens": 4,
        "cache_creation_input_tokens": 0,
        "output_tokens": 0,
        "output_tokens_details": {"thinking_tokens": 0},
    }
    assert sent[4]["delta"]["signature"] == SIGNATURE
    assert sent[10]["content_block"] == {"type": "tool_use", "id": FIRST, "name": "add", "input": {}}
    assert sent[11]["delta"]["partial_json"] == '{"a": 1}'
    assert sent[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert (sent[-2]["usage"]["input_tokens"], sent[-2]["usage"]["output_tokens"]) == (8, 9)


def test_a_whole_answer() -> None:
    fed = [event for event in FED if event != Text("Bye")]
    assert anthropic_messages.response_body(read(), META, [Answer.of(fed)]) == {
        "id": "msg_0123456789abcdef01234567",
        "type": "message",
        "role": "assistant",
        "model": "demo",
        "content": [
            {"type": "thinking", "thinking": "let me", "signature": SIGNATURE},
            {"type": "text", "text": "Hello you"},
            {"type": "tool_use", "id": FIRST, "name": "add", "input": {"a": 1}},
            {"type": "tool_use", "id": SECOND, "name": "now", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 8,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 0,
            "output_tokens": 9,
            "output_tokens_details": {"thinking_tokens": 2},
        },
    }


def test_thinking_that_is_to_be_omitted_leaves_its_signature() -> None:
    parsed = read(thinking={"type": "enabled", "budget_tokens": 20, "display": "omitted"})
    sent = events(parsed, FED)
    assert "thinking_delta" not in [event.get("delta", {}).get("type") for event in sent]
    assert sent[2]["delta"] == {"type": "signature_delta", "signature": SIGNATURE}
    content = anthropic_messages.response_body(parsed, META, [Answer.of(FED)])["content"]
    assert content[0] == {"type": "thinking", "thinking": "", "signature": SIGNATURE}


@pytest.mark.parametrize(
    ("finished", "reason", "sequence"),
    [
        (end(), "end_turn", None),
        (end(stop="END"), "stop_sequence", "END"),
        (end("tool_calls"), "tool_use", None),
        (end("length", tokens=100), "max_tokens", None),
        (end("length"), "model_context_window_exceeded", None),
    ],
)
def test_why_an_answer_ended(finished: Finished, reason: str, sequence: str | None) -> None:
    fed = [Started(12, 4, thinking=False), Text("x"), finished]
    whole = anthropic_messages.response_body(read(), META, [Answer.of(fed)])
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    assert events(read(), fed)[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (BadField("x", "is missing"), "invalid_request_error"),
        (ContextTooLong(10, 5), "invalid_request_error"),
        (WrongKey("no key"), "authentication_error"),
        (ModelNotFound("no model"), "not_found_error"),
        (TooLarge("too large"), "request_too_large"),
        (Busy("full"), "overloaded_error"),
        (EngineError("broken"), "api_error"),
    ],
)
def test_errors_have_anthropics_types(problem: LocalqwenError, kind: str) -> None:
    body = anthropic_messages.error(problem)
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["error"]["message"].startswith(problem.message)
    sent = anthropic_messages.Stream(read(), META).error(problem).decode()
    assert sent == f"event: error\ndata: {json.dumps(body, separators=(',', ':'), ensure_ascii=False)}\n\n"
