"""The OpenAI APIs as pure functions: a body in, bytes out. No server."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from localqwen.chat.answer import Answer
from localqwen.chat.messages import (
    Event,
    Finished,
    JsonFormat,
    Message,
    Started,
    Text,
    Thinking,
    Timing,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)
from localqwen.errors import BadField, Busy, ContextTooLong, EngineError, LocalqwenError, ModelNotFound, WrongKey
from localqwen.serve.api import ResponseMeta
from localqwen.serve.fields import Fields
from localqwen.serve.openai import chat as openai_chat
from localqwen.serve.openai import completions as openai_completions
from localqwen.serve.openai import response as openai_response
from localqwen.serve.openai import responses as openai_responses

HELLO = [{"role": "user", "content": "hello"}]
META = ResponseMeta("0123456789abcdef01234567", "qwen3:4b", 1_700_000_000.5)
ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
USAGE = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=7, thinking_tokens=3)
TIMING = Timing(None, 12.0, 20.0, 300.0, 35.0, 20.0, 200.0, 250.0)
DONE = Finished("stop", USAGE, TIMING, "model")
EVENTS: Sequence[Event] = [Started(10, 4, True), Thinking("Hm"), Thinking("m"), Text("Hi"), Text(" there"), DONE]


def chat(**fields: Any) -> Any:
    return openai_chat.read({"messages": HELLO, **fields})


def chunks(data: bytes) -> list[dict[str, Any]]:
    """The JSON of a server-sent stream that ends with [DONE]."""
    parts = data.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def streamed(parsed: Any, events: Sequence[Event] = EVENTS, meta: ResponseMeta = META) -> list[dict[str, Any]]:
    stream = openai_chat.Stream(parsed, meta)
    return chunks(b"".join(stream.feed(event) for event in events) + stream.end())


def deltas(parsed: Any, events: Sequence[Event] = EVENTS) -> list[Mapping[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in streamed(parsed, events)]


def test_a_plain_request() -> None:
    parsed = chat(model="qwen3:4b", temperature=0.5, max_tokens=9, stop="END", seed=3)
    assert parsed.model == "qwen3:4b"
    assert not parsed.stream
    assert parsed.request.messages == (Message("user", "hello"),)
    assert (parsed.request.sampling.temperature, parsed.request.sampling.seed) == (0.5, 3)
    assert (parsed.request.max_tokens, parsed.request.stop, parsed.request.think) == (9, ("END",), None)


def test_messages_of_every_role() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    parsed = chat(
        messages=[
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "reasoning": "Hm.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        ]
    )
    assert parsed.request.messages == (
        Message("system", "Be kind."),
        Message("user", "ab"),
        Message("assistant", "", "Hm.", (ToolCall("add", {"a": 1}, "call_1"),)),
        Message("tool", "1", tool_call_id="call_1"),
    )


@pytest.mark.parametrize(
    ("fields", "think", "budget"),
    [
        ({}, None, None),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False, None),
        ({"enable_thinking": True}, True, None),
        ({"thinking_budget": 100}, None, 100),
        ({"thinking_token_budget": 0}, None, 0),
        ({"reasoning_budget_tokens": -1}, None, None),
        ({"custom_params": {"thinking_budget": 5}}, None, 5),
        ({"reasoning_effort": "none"}, False, None),
        ({"reasoning_effort": "low"}, True, 2048),
        ({"reasoning_effort": "high"}, True, None),
        ({"reasoning": {"effort": "minimal"}}, True, 512),
        ({"reasoning_effort": "low", "thinking_budget": 7}, None, 7),
        ({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}}, False, None),
        ({"thinking": {"type": "disabled"}}, False, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, True, 9),
        ({"thinking": {"type": "auto"}}, None, None),
    ],
)
def test_the_thinking_fields_of_every_server_mean_one_thing(
    fields: dict[str, Any], think: bool | None, budget: int | None
) -> None:
    request = chat(**fields).request
    assert (request.think, request.budget) == (think, budget)


@pytest.mark.parametrize(
    ("choice", "shown", "must_call"),
    [
        (None, 1, ()),
        ("auto", 1, ()),
        ("none", 0, ()),
        ("required", 1, ("add",)),
        ({"type": "function", "function": {"name": "add"}}, 1, ("add",)),
        ({"type": "function", "name": "add"}, 1, ("add",)),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}, 0, ()),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]}, 1, ("add",)),
    ],
)
def test_tool_choice(choice: Any, shown: int, must_call: tuple[str, ...]) -> None:
    request = chat(tools=[ADD], tool_choice=choice).request
    assert request.tools == (Tool("add", "Adds.", {"type": "object"}),) * shown
    assert request.must_call == must_call


def test_the_form_of_an_answer() -> None:
    schema = {"type": "object"}
    strict = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert chat(response_format={"type": "text"}).request.format is None
    assert chat(response_format={"type": "json_object"}).request.format == JsonFormat()
    assert chat(response_format=strict).request.format == JsonFormat(schema)


BAD = [
    ({}, "messages", "is missing"),
    ({"messages": []}, "messages", "is empty"),
    ({"messages": "hello"}, "messages", "must be a list, not a string"),
    ({"messages": ["hello"]}, "messages[0]", "must be an object"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "is missing"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "'wizard'"),
    ({"messages": [{"role": 3, "content": "x"}]}, "messages[0].role", "must be a string, not a whole number"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
    ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages[0].content", "must be a string"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "read text only",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
        "is not JSON",
    ),
    ({"messages": HELLO, "model": 3}, "model", "must be a string"),
    ({"messages": HELLO, "temperature": "hot"}, "temperature", "must be a number"),
    ({"messages": HELLO, "temperature": True}, "temperature", "must be a number"),
    ({"messages": HELLO, "temperature": -1}, "temperature", "must be a number from 0 to 100"),
    ({"messages": HELLO, "max_tokens": 0}, "max_tokens", "at least 1"),
    ({"messages": HELLO, "max_tokens": 1.5}, "max_tokens", "whole number"),
    ({"messages": HELLO, "n": 0}, "n", "between"),
    ({"messages": HELLO, "n": 1000}, "n", "between"),
    ({"messages": HELLO, "stop": 5}, "stop", "must be a string or a list"),
    ({"messages": HELLO, "stream": "yes"}, "stream", "true or false"),
    ({"messages": HELLO, "stream_options": 1}, "stream_options", "must be an object"),
    ({"messages": HELLO, "top_logprobs": 3}, "top_logprobs", "needs"),
    ({"messages": HELLO, "tools": {}}, "tools", "must be a list"),
    ({"messages": HELLO, "tools": [{"type": "web_search"}]}, "tools[0].type", "only functions"),
    ({"messages": HELLO, "tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "is missing"),
    ({"messages": HELLO, "tool_choice": "required"}, "tool_choice", "no tools"),
    (
        {"messages": HELLO, "tools": [ADD], "tool_choice": {"function": {"name": "sub"}}},
        "tool_choice.function.name",
        "'sub'",
    ),
    ({"messages": HELLO, "response_format": {"type": "xml"}}, "response_format.type", "one of"),
    ({"messages": HELLO, "response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
    ({"messages": HELLO, "reasoning_effort": "some"}, "reasoning_effort", "one of"),
    ({"messages": HELLO, "chat_template_kwargs": []}, "chat_template_kwargs", "must be an object"),
    ({"messages": HELLO, "tools": [ADD], "tool_choice": {"type": "web_search"}}, "tool_choice.type", "only functions"),
    ({"messages": HELLO, "stop": ["a"] * 65}, "stop", "65 strings"),
    ({"messages": HELLO, "stop": "a" * 1001}, "stop", "1,000 characters"),
    ({"messages": HELLO, "logit_bias": {"50256": -100}}, "logit_bias", "is not supported"),
    ({"messages": HELLO, "guided_json": {"type": "object"}}, "guided_json", "response_format"),
    ({"messages": HELLO, "functions": [ADD["function"]]}, "functions", "as tools"),
    ({"messages": HELLO, "add_generation_prompt": False}, "add_generation_prompt", "that you began"),
    ({"messages": HELLO, "continue_final_message": True}, "continue_final_message", "that you began"),
    ({"messages": HELLO, "modalities": ["text", "audio"]}, "modalities", "text only"),
]


@pytest.mark.parametrize(("body", "field", "what"), BAD, ids=[case[1] + " " + case[2] for case in BAD])
def test_a_wrong_field_is_named(body: dict[str, Any], field: str, what: str) -> None:
    with pytest.raises(BadField) as raised:
        openai_chat.read(body)
    assert raised.value.field == field
    assert what in f"{raised.value.message} {raised.value.hint}"


def test_unknown_fields_are_nobodys_business() -> None:
    assert chat(user="me", store=True, frobnicate={"a": []}).request == chat().request


def test_a_field_that_cannot_be_obeyed_and_asks_for_nothing_is_no_error() -> None:
    nothing = {"logit_bias": {}, "functions": [], "guided_json": None, "ignore_eos": False, "min_tokens": 0}
    assert chat(**nothing, modalities=["text"], add_generation_prompt=True).request == chat().request


def test_a_stream_in_openais_shape() -> None:
    first, *rest = streamed(chat(stream=True))
    assert first == {
        "id": "chatcmpl-0123456789abcdef01234567",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "qwen3:4b",
        "system_fingerprint": first["system_fingerprint"],
        "choices": [
            {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        ],
    }
    assert [chunk["choices"][0]["delta"] for chunk in rest] == [
        {"reasoning_content": "Hm", "reasoning": "Hm"},
        {"reasoning_content": "m", "reasoning": "m"},
        {"content": "Hi"},
        {"content": " there"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in rest] == [None] * 4 + ["stop"]
    assert rest[-1]["timings"]["predicted_n"] == 7


def test_usage_comes_last_where_it_was_asked_for() -> None:
    *before, last = streamed(chat(stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in before)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 7,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }


def test_thinking_can_be_hidden_put_into_the_text_or_sent_in_one_field() -> None:
    assert {"content": "Hi"} in deltas(chat(include_reasoning=False))
    assert not any("reasoning" in delta for delta in deltas(chat(include_reasoning=False)))
    inline = "".join(delta.get("content", "") for delta in deltas(chat(separate_reasoning=False)))
    assert inline == "<think>\nHmm\n</think>\n\nHi there"
    one = streamed(chat(), meta=ResponseMeta("0" * 24, "m", 0.0, ("reasoning",)))
    assert one[1]["choices"][0]["delta"] == {"reasoning": "Hm"}


def test_a_tool_call_streams_as_a_delta() -> None:
    events = [Started(1, 0, False), ToolCall("add", {"a": "ä"}), ToolCall("add", {}), DONE]
    assert deltas(chat(), events)[1:3] == [
        {
            "tool_calls": [
                {
                    "index": number,
                    "id": META.call_id(0, number),
                    "type": "function",
                    "function": {"name": "add", "arguments": arguments},
                }
            ]
        }
        for number, arguments in enumerate(['{"a": "ä"}', "{}"])
    ]


def test_an_error_in_the_middle_of_a_stream_is_told_in_it() -> None:
    stream = openai_chat.Stream(chat(), META)
    told = chunks(stream.feed(Started(1, 0, False)) + stream.error(EngineError("it broke")))
    assert told[-1]["error"]["message"] == "it broke"


def test_a_whole_answer() -> None:
    body = openai_chat.response_body(chat(), META, [Answer.of(EVENTS), Answer.of(EVENTS)])
    assert body["object"] == "chat.completion"
    assert [choice["index"] for choice in body["choices"]] == [0, 1]
    message = body["choices"][0]["message"]
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("Hi there", "Hmm", "Hmm")
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (10, 14)
    assert body["timings"] == {
        "cache_n": 4,
        "prompt_n": 6,
        "prompt_ms": 20.0,
        "prompt_per_token_ms": pytest.approx(20 / 6),
        "prompt_per_second": 300.0,
        "predicted_n": 7,
        "predicted_ms": 200.0,
        "predicted_per_token_ms": pytest.approx(200 / 7),
        "predicted_per_second": 35.0,
    }


def test_logprobs_have_the_bytes_of_their_tokens() -> None:
    half = TokenLogprob(b"\xc3", float("-inf"))
    entry = TokenLogprob(b"Hi", -0.5, (TokenLogprob(b"Hi", -0.5), half))
    body = openai_chat.response_body(
        chat(logprobs=True, top_logprobs=2), META, [Answer.of([EVENTS[0], Text("Hi", (entry,)), DONE])]
    )
    assert body["choices"][0]["logprobs"]["content"] == [
        {
            "token": "Hi",
            "logprob": -0.5,
            "bytes": [72, 105],
            "top_logprobs": [
                {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
                {"token": "�", "logprob": -9999.0, "bytes": [0xC3]},
            ],
        }
    ]


@pytest.mark.parametrize(
    ("error", "code", "kind", "param"),
    [
        (BadField("n", "is wrong"), None, "invalid_request_error", "n"),
        (ContextTooLong(5000, 4096), "context_length_exceeded", "invalid_request_error", "messages"),
        (ModelNotFound("no x"), "model_not_found", "invalid_request_error", "model"),
        (WrongKey("no"), "invalid_api_key", "invalid_request_error", None),
        (Busy("full"), None, "server_error", None),
    ],
)
def test_errors_in_openais_shape(error: LocalqwenError, code: str | None, kind: str, param: str | None) -> None:
    body = openai_response.error(error)["error"]
    assert (body["code"], body["type"], body["param"]) == (code, kind, param)
    assert error.message in body["message"]


def test_a_prompt_that_is_too_long_is_told_with_both_numbers() -> None:
    body = openai_response.error(ContextTooLong(5000, 4096))["error"]
    assert (body["n_prompt_tokens"], body["n_ctx"]) == (5000, 4096)
    assert "5,000" in body["message"]
    assert "4,096" in body["message"]


def test_completions_continue_a_text() -> None:
    parsed = openai_completions.read({"prompt": "Once", "logprobs": 1})
    assert (parsed.request.prompt, parsed.request.max_tokens, parsed.request.messages) == ("Once", 16, ())
    assert openai_completions.read({"prompt": ["a"], "max_tokens": -1}).request.max_tokens is None
    entries = (TokenLogprob(b" up", -1.0, (TokenLogprob(b" up", -1.0),)), TokenLogprob(b"on", -2.0))
    events = [Started(1, 0, False), Text(" upon", entries), DONE]
    body = openai_completions.response_body(parsed, META, [Answer.of(events)])
    assert body["choices"][0] == {
        "index": 0,
        "text": " upon",
        "logprobs": {
            "tokens": [" up", "on"],
            "token_logprobs": [-1.0, -2.0],
            "top_logprobs": [{" up": -1.0}, {}],
            "text_offset": [0, 3],
        },
        "finish_reason": "stop",
    }
    echoing = openai_completions.read({"prompt": "Once", "echo": True})
    assert openai_completions.response_body(echoing, META, [Answer.of(events)])["choices"][0]["text"] == "Once upon"
    stream = openai_completions.Stream(echoing, META)
    told = chunks(b"".join(stream.feed(event) for event in events) + stream.end())
    assert "".join(chunk["choices"][0]["text"] for chunk in told) == "Once upon"


@pytest.mark.parametrize("prompt", [None, "", [], ["a", "b"], 3, [1, 2]])
def test_completions_take_one_text(prompt: Any) -> None:
    with pytest.raises(BadField, match="prompt"):
        openai_completions.read({"prompt": prompt})


@pytest.mark.parametrize(
    ("more", "field"),
    [({"echo": True, "logprobs": 1}, "echo"), ({"best_of": 2}, "best_of"), ({"suffix": "!"}, "suffix")],
)
def test_completions_refuse_what_they_cannot_do(more: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as raised:
        openai_completions.read({"prompt": "Once", **more})
    assert raised.value.field == field
    assert openai_completions.read({"prompt": "Once", "best_of": 2, "n": 2}).answers == 2


def test_responses_put_the_items_of_one_answer_together() -> None:
    parsed = openai_responses.read(
        {
            "instructions": "Be kind.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "2+2?"}]},
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
                {"type": "function_call", "call_id": "c", "name": "add", "arguments": '{"a": 2}'},
                {"type": "function_call_output", "call_id": "c", "output": "4"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4."}]},
                {"role": "user", "content": "Sure?"},
            ],
            "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
            "reasoning": {"effort": "low"},
        }
    )
    assert parsed.request.messages == (
        Message("system", "Be kind."),
        Message("user", "2+2?"),
        Message("assistant", "", "Hm.", (ToolCall("add", {"a": 2}, "c"),)),
        Message("tool", "4", tool_call_id="c"),
        Message("assistant", "4."),
        Message("user", "Sure?"),
    )
    assert parsed.request.format == JsonFormat({"type": "object"})
    assert (parsed.request.think, parsed.request.budget) == (True, 2048)


def test_responses_stream_numbered_events_that_open_and_close_every_item() -> None:
    parsed = openai_responses.read({"input": "hello", "stream": True})
    stream = openai_responses.Stream(parsed, META)
    events: Sequence[Event] = [*EVENTS[:-1], ToolCall("add", {"a": 1}), DONE]
    data = b"".join(stream.feed(event) for event in events) + stream.end()
    told = [json.loads(part.partition("\ndata: ")[2]) for part in data.decode().split("\n\n")[:-1]]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"].removeprefix("response.") for event in told] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    final = told[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["reasoning", "message", "function_call"]
    assert final["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
    calls = [*EVENTS[:-1], ToolCall("add", {"a": 1}), DONE]
    assert openai_responses.response_body(parsed, META, [Answer.of(calls)])["output"] == final["output"]


@pytest.mark.parametrize(
    "more",
    [{"previous_response_id": "resp_1"}, {"conversation": {"id": "c"}}, {"prompt": {"id": "p"}}, {"background": True}],
)
def test_responses_have_no_memory(more: dict[str, Any]) -> None:
    with pytest.raises(BadField, match="this server stores no"):
        openai_responses.read({"input": "x", **more})


def test_responses_tell_the_logprobs_that_were_asked_for() -> None:
    top = TokenLogprob(b"Hi", -0.5)
    told = {"token": "Hi", "bytes": [72, 105], "logprob": -0.5}
    events = [EVENTS[0], Text("Hi", (TokenLogprob(b"Hi", -0.5, (top,)),)), DONE]
    parsed = openai_responses.read({"input": "x", "top_logprobs": 1})
    (message,) = openai_responses.response_body(parsed, META, [Answer.of(events)])["output"]
    assert message["content"][0]["logprobs"] == [{**told, "top_logprobs": [told]}]
    stream = openai_responses.Stream(parsed, META)
    data = b"".join(stream.feed(event) for event in events) + stream.end()
    sent = [json.loads(line.removeprefix("data: ")) for line in data.decode().splitlines() if line.startswith("data")]
    assert [event["logprobs"] for event in sent if event["type"] == "response.output_text.delta"] == [
        message["content"][0]["logprobs"]
    ]
    assert sent[-1]["response"]["output"] == [message]
    assert openai_responses.read({"input": "x", "include": ["message.output_text.logprobs"]}).request.logprobs == 0


def test_a_cut_response_is_incomplete() -> None:
    cut = Finished("length", USAGE, TIMING)
    parsed = openai_responses.read({"input": "x"})
    body = openai_responses.response_body(parsed, META, [Answer.of([*EVENTS[:4], cut])])
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in body["output"]] == ["completed", "incomplete"]
    stream = openai_responses.Stream(parsed, META)
    last = (b"".join(stream.feed(event) for event in [*EVENTS[:4], cut]) + stream.end()).decode().split("data: ")[-1]
    assert json.loads(last)["response"]["output"] == body["output"]


@pytest.mark.parametrize(
    ("value", "message"),
    [(float("nan"), "is nan"), (True, "must be a number, not true or false"), ("1", "must be a number, not a string")],
)
def test_a_number_is_a_number(value: Any, message: str) -> None:
    with pytest.raises(BadField, match=message):
        Fields({"x": value}).number("x", 0, 1)
    assert Fields({"x": 20.0}).whole("x") == 20
