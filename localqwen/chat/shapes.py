"""Checks of what a program hands over as messages and tools, and the reading of OpenAI's shapes of them.

Everything raises UsageError that names the place of the fault, as in `messages[2].role`. Values come out as plain
Python: the classes that they become are in `messages.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from localqwen.errors import UsageError

ROLES = ("system", "user", "assistant", "tool")
#: OpenAI's newer word for the system's messages.
_DEVELOPER = "developer"
_MESSAGE_HINT = 'write Message("user", "Hello") or {"role": "user", "content": "Hello"}'
_TOOL_HINT = 'write {"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}'


def kind(value: object) -> str:
    """Return what a value is, in words for a message."""
    names: Mapping[type, str] = {
        type(None): "None", bool: "true or false", str: "text", int: "a whole number", float: "a number",
    }  # fmt: skip
    return names.get(type(value), f"a {type(value).__name__}")


def check(value: object, types: type | tuple[type, ...], place: str, what: str) -> None:
    """Raise UsageError where a value has none of the types. True and False are no numbers."""
    if not isinstance(value, types) or (isinstance(value, bool) and types is int):
        raise UsageError(f"{place} must be {what}, not {kind(value)}")


def check_role(role: object, place: str) -> None:
    """Raise UsageError for a role that Qwen3 does not have."""
    if role not in ROLES:
        shown = repr(role) if isinstance(role, str) else kind(role)
        raise UsageError(f"{place} is {shown}, it must be {', '.join(ROLES[:-1])} or {ROLES[-1]}", _MESSAGE_HINT)


def items(value: object, place: str) -> Sequence[Any]:
    """Return a list or tuple as it is."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise UsageError(f"{place} must be a list, not {kind(value)}")
    return value


def message(data: object, place: str) -> dict[str, Any]:
    """Return the fields of a Message from a dict in OpenAI's shape. Keys that only its API knows are left out."""
    if not isinstance(data, Mapping):
        raise UsageError(f"{place} must be a Message or a dict, not {kind(data)}", _MESSAGE_HINT)
    role = "system" if data.get("role") == _DEVELOPER else data.get("role")
    check_role(role, f"{place}.role")
    thinking = data.get("reasoning_content")
    check(thinking, (str, type(None)), f"{place}.reasoning_content", "text")
    listed = items(data.get("tool_calls") or (), f"{place}.tool_calls")
    calls = [call(each, f"{place}.tool_calls[{number}]") for number, each in enumerate(listed)]
    answered = data.get("tool_call_id") or ""
    check(answered, str, f"{place}.tool_call_id", "text")
    content = data.get("content")
    text = "" if content is None and role == "assistant" and calls else text_of(content, f"{place}.content")
    return {"role": role, "content": text, "thinking": thinking, "tool_calls": calls, "tool_call_id": answered}


def text_of(content: object, place: str) -> str:
    """Return a content as text: text as it is, or the text parts of a list joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise UsageError(f"{place} must be text or a list of text parts, not {kind(content)}")
    return "".join(_part(part, f"{place}[{number}]") for number, part in enumerate(content))


def _part(part: object, place: str) -> str:
    if not isinstance(part, Mapping):
        raise UsageError(f'{place} must be {{"type": "text", "text": …}}, not {kind(part)}')
    if part.get("type") != "text":
        raise UsageError(f"{place}.type is {part.get('type')!r}, it must be 'text'", "Qwen3 reads text only")
    text = part.get("text")
    check(text, str, f"{place}.text", "text")
    return str(text)


def call(data: object, place: str) -> dict[str, Any]:
    """Return the fields of a ToolCall from a dict in OpenAI's shape; its arguments are an object, or one as JSON."""
    check(data, Mapping, place, "a ToolCall or a dict")
    assert isinstance(data, Mapping)
    function = data.get("function", data)
    check(function, Mapping, f"{place}.function", "a dict")
    inner = f"{place}.function" if function is not data else place
    check(function.get("name"), str, f"{inner}.name", "text")
    identity = data.get("id") or ""
    check(identity, str, f"{place}.id", "text")
    arguments = _object(function.get("arguments"), f"{inner}.arguments")
    return {"name": function["name"], "arguments": arguments, "id": identity}


def _object(value: object, place: str) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError) as exc:
            raise UsageError(f"{place} is no JSON: {exc}") from exc
    check(value, Mapping, place, "an object, or one as JSON")
    assert isinstance(value, Mapping)
    return value


def tool(data: object, place: str) -> dict[str, Any]:
    """Return the fields of a Tool from a dict in OpenAI's shape, or from the bare function."""
    function = data.get("function", data) if isinstance(data, Mapping) else None
    if not isinstance(function, Mapping):
        raise UsageError(f"{place} must be a Tool or a dict, not {kind(data)}", _TOOL_HINT)
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise UsageError(f"{place} has no name", _TOOL_HINT)
    description, parameters = function.get("description") or "", function.get("parameters") or {}
    check(description, str, f"{place}.description", "text")
    check(parameters, Mapping, f"{place}.parameters", "an object")
    return {"name": function["name"], "description": description, "parameters": parameters}
