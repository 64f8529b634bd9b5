"""What a program hands over: messages, tools and requests, as values or as dicts in OpenAI's shape."""

from typing import Any

import pytest

import localqwen
from localqwen.chat.messages import JsonFormat, Message, Request, Tool, ToolCall
from localqwen.errors import UsageError

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def test_dicts_in_openais_shape_become_messages() -> None:
    request = Request(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "1 "}, {"type": "text", "text": "+ 1?"}]},
            {"role": "assistant", "content": None, "reasoning_content": "I add.", "tool_calls": [CALL]},
            {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "add"},
            Message("user", "Sure?"),
        ]  # type: ignore[list-item]
    )
    assert request.messages == (
        Message("system", "Be brief."),
        Message("user", "1 + 1?"),
        Message("assistant", "", "I add.", (ToolCall("add", {"a": 1}, "c1"),)),
        Message("tool", "2", tool_call_id="c1"),
        Message("user", "Sure?"),
    )


def test_what_a_message_says_in_json_is_that_message() -> None:
    message = Message("assistant", "Two.", "I add.", (ToolCall("add", {"a": 1}, "c1"),))
    assert Message.of(message.to_json()) == message


def test_tools_may_be_dicts_with_or_without_their_wrapping() -> None:
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    wrapped: Any = {"type": "function", "function": function}
    request = Request([Message("user", "hi")], tools=[wrapped, function, Tool("now")])  # type: ignore[list-item]
    assert request.tools == (Tool("add", "Adds.", {"type": "object"}),) * 2 + (Tool("now"),)


def test_an_assistant_with_calls_needs_no_content() -> None:
    call = ToolCall("now", {})
    assert Message("assistant", None, tool_calls=(call,)).content == ""  # type: ignore[arg-type]
    assert Message("assistant", "", tool_calls=[call]).tool_calls == (call,)  # type: ignore[arg-type]


def test_a_request_keeps_what_it_was_made_of() -> None:
    messages = [Message("user", "hi")]
    request = Request(messages, stop="END")  # type: ignore[arg-type]
    messages.append(Message("user", "more"))
    assert (len(request.messages), request.stop) == (1, ("END",))


def test_a_prompt_takes_the_place_of_messages() -> None:
    assert Request([], prompt="Once upon").messages == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"role": "usr", "content": "x"}, "role is 'usr', it must be system, user, assistant or tool"),
        ({"role": None, "content": "x"}, "role is None, it must be"),
        ({"role": ["user"], "content": "x"}, "role is a list, it must be"),
        ({"role": "user", "content": None}, "content must be text, not None"),
        ({"role": "assistant", "content": None}, "content must be text, not None"),
        ({"role": "user", "content": 3}, "content must be text, not a whole number"),
        ({"role": "user", "content": "x", "thinking": True}, "thinking must be text, not true or false"),
        ({"role": "assistant", "content": "", "tool_calls": [CALL]}, r"tool_calls\[0\] must be a ToolCall, not a dict"),
    ],
)
def test_a_wrong_message_is_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Message(**fields)


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "there are no messages"),
        ("hi", "messages must be a list, not text"),
        (None, "messages must be a list, not None"),
        ({"role": "user"}, "messages must be a list, not a dict"),
        ([USER, "hi"], r"messages\[1\] must be a Message or a dict, not text"),
        ([USER, USER, {"role": "usr", "content": "x"}], r"messages\[2\]\.role is 'usr'"),
        ([{"content": "x"}], r"messages\[0\]\.role is None"),
        ([{"role": "user"}], r"messages\[0\]\.content must be text or a list of text parts, not None"),
        ([{"role": "assistant", "content": None}], r"messages\[0\]\.content must be text"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\.content\[0\] must be"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            r"messages\[0\]\.content\[0\]\.type is 'image_url', it must be 'text'",
        ),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            r"messages\[0\]\.content\[0\]\.text must be text, not None",
        ),
        ([{**USER, "reasoning_content": 1}], r"messages\[0\]\.reasoning_content must be text"),
        ([{**USER, "tool_call_id": 1}], r"messages\[0\]\.tool_call_id must be text"),
        ([{"role": "assistant", "tool_calls": {}}], r"messages\[0\]\.content must be text"),
        ([{"role": "assistant", "tool_calls": "add"}], r"messages\[0\]\.tool_calls must be a list"),
        (
            [{"role": "assistant", "tool_calls": ["add"]}],
            r"messages\[0\]\.tool_calls\[0\] must be a ToolCall or a dict",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}],
            r"messages\[0\]\.tool_calls\[0\]\.function\.name must be text, not None",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}],
            r"messages\[0\]\.tool_calls\[0\]\.function\.arguments is no JSON",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[" * 100_000}}]}],
            r"messages\[0\]\.tool_calls\[0\]\.function\.arguments is no JSON",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[]"}}]}],
            r"messages\[0\]\.tool_calls\[0\]\.function\.arguments must be an object",
        ),
    ],
)
def test_a_wrong_list_of_messages_is_told_with_the_place(messages: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Request(messages)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": ["add"]}, r"tools\[0\] must be a Tool or a dict, not text"),
        ({"tools": [{"type": "function", "function": {}}]}, r"tools\[0\] has no name"),
        ({"tools": [{"name": "add", "parameters": []}, {"name": "b", "parameters": [1]}]}, r"tools\[1\]\.parameters"),
        ({"stop": [3]}, r"stop\[0\] must be text"),
        ({"budget": "10"}, "budget must be a whole number, not text"),
        ({"max_tokens": True}, "max_tokens must be a whole number, not true or false"),
        ({"logprobs": 1.5}, "logprobs must be a whole number, not a number"),
        ({"think": "no"}, "think must be true, false or None, not text"),
        ({"sampling": {"temperature": 1}}, "sampling must be a SamplingOverrides, not a dict"),
        ({"text_sampling": None}, "text_sampling must be a SamplingOverrides, not None"),
        ({"format": {"type": "object"}}, "format must be a JsonFormat, not a dict"),
        ({"prompt": b"x"}, "prompt must be text, not a bytes"),
    ],
)
def test_a_wrong_field_of_a_request_is_told(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Request([Message("user", "hi")], **fields)


def test_the_names_of_earlier_versions_stay() -> None:
    assert localqwen.Overrides is localqwen.SamplingOverrides
    assert localqwen.Working is localqwen.PrefillProgress
    assert Request([Message("user", "hi")], format=JsonFormat()).format == JsonFormat()
