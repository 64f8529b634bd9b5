"""OpenAI's `/v1/responses`, without memory: the client sends the whole conversation, nothing is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from localqwen.chat.messages import Event, Finished, JsonFormat, Message, Request, Started, Text, Thinking, ToolCall
from localqwen.errors import LocalqwenError
from localqwen.serve import openai_common, openai_fields, wire
from localqwen.serve.asked import Answer, Asked, Head
from localqwen.serve.fields import Fields

error = openai_common.error
#: Fields that go back in the response as they came.
_ECHOED = (
    "instructions", "max_output_tokens", "metadata", "reasoning", "temperature", "text", "tool_choice", "tools",
    "top_p",
)  # fmt: skip
Item = dict[str, Any]


def read(body: Mapping[str, Any]) -> Asked:
    fields = Fields(body)
    if fields.has("previous_response_id"):
        raise fields.wrong("previous_response_id", "is unknown: nothing is stored here", "send the whole conversation")
    think, budget = openai_fields.thinking(fields)
    tools, must_call = openai_fields.tool_choice(fields, openai_fields.tools(fields))
    instructions = fields.text("instructions")
    head = (Message("system", instructions),) if instructions else ()
    request = Request(
        messages=(*head, *_input(fields)),
        tools=tools,
        think=think,
        budget=budget,
        max_tokens=openai_fields.limit(fields, "max_output_tokens"),
        sampling=openai_fields.sampling(fields),
        format=_format(fields),
        must_call=must_call,
        read_calls=bool(tools),
        parallel_calls=fields.flag("parallel_tool_calls") is not False,
    )
    echoed = {name: body[name] for name in _ECHOED if body.get(name) is not None}
    return Asked(fields.text("model") or "", request, stream=fields.flag("stream") or False, extra=echoed)


def _input(fields: Fields) -> tuple[Message, ...]:
    if isinstance(fields.data.get("input"), str):
        return (Message("user", fields.needed_text("input")),)
    if not fields.list("input"):
        raise fields.wrong("input", "is empty" if fields.has("input") else "is missing")
    turns: list[Message] = []
    for item in fields.objects("input"):
        _add(turns, item)
    return tuple(turns)


def _add(turns: list[Message], item: Fields) -> None:
    """Reasoning, text and calls of one answer are items of their own here; in a template they are one message."""
    match item.text("type") or "message":
        case "message":
            role = openai_fields.ROLES[item.one_of("role", tuple(openai_fields.ROLES)) or "user"]
            text = openai_fields.content(item, "content")
            if role == "assistant":
                _extend(turns, lambda last: replace(last, content=last.content + text))
            else:
                turns.append(Message(role, text))
        case "reasoning":
            text = "".join(part.needed_text("text") for name in ("content", "summary") for part in item.objects(name))
            turns.append(Message("assistant", "", text or None))
        case "function_call":
            arguments = openai_fields.arguments(item, "arguments")
            call = ToolCall(item.needed_text("name"), arguments, item.text("call_id") or "")
            _extend(turns, lambda last: replace(last, tool_calls=(*last.tool_calls, call)))
        case "function_call_output":
            output = openai_fields.content(item, "output")
            turns.append(Message("tool", output, tool_call_id=item.text("call_id") or ""))
        case other:
            raise item.wrong("type", f"is {other!r}: it must be message, reasoning, function_call or its output")


def _extend(turns: list[Message], change: Callable[[Message], Message]) -> None:
    if not turns or turns[-1].role != "assistant":
        turns.append(Message("assistant", ""))
    turns[-1] = change(turns[-1])


def _format(fields: Fields) -> JsonFormat | None:
    text = fields.object("text")
    given = text.object("format") if text is not None else None
    if given is None:
        return None
    kind = given.one_of("type", ("text", "json_object", "json_schema"))
    if kind == "json_object":
        return JsonFormat()
    if kind != "json_schema":
        return None
    schema = given.object("schema")
    if schema is None:
        raise given.wrong("schema", "is missing")
    return JsonFormat(schema.data)


class Stream:
    """The events of one response, numbered; each item of the output is opened, filled and closed in turn."""

    media_type = wire.SSE

    def __init__(self, asked: Asked, head: Head) -> None:
        self._asked = asked
        self._head = head
        self._number = 0
        self._done: list[Item] = []
        self._open: tuple[str, list[str]] | None = None  # kind of the open item, and its text so far
        self._finished: Finished | None = None

    def feed(self, event: Event, index: int = 0) -> bytes:
        match event:
            case Started():
                running = {"response": _response(self._asked, self._head, [], None)}
                return self._event("response.created", running) + self._event("response.in_progress", running)
            case Thinking(text):
                return self._text("reasoning", text)
            case Text(text):
                return self._text("message", text)
            case ToolCall():
                return self._close() + self._call(event)
            case Finished():
                self._finished = event
                return self._close()
        return b""

    def end(self) -> bytes:
        assert self._finished is not None
        response = _response(self._asked, self._head, self._done, self._finished)
        return self._event(f"response.{response['status']}", {"response": response})

    def error(self, error: LocalqwenError) -> bytes:
        response = _response(self._asked, self._head, self._done, None)
        problem = openai_common.error(error)["error"]
        response |= {"status": "failed", "error": {"code": "server_error", "message": problem["message"]}}
        return self._event("response.failed", {"response": response})

    def _text(self, kind: str, text: str) -> bytes:
        opened = b""
        if self._open is None or self._open[0] != kind:
            opened = self._close() + self._begin(kind)
        assert self._open is not None
        self._open[1].append(text)
        where = self._where(self._open_id(kind))
        if kind == "reasoning":
            return opened + self._event("response.reasoning_text.delta", {**where, "delta": text})
        return opened + self._event("response.output_text.delta", {**where, "delta": text, "logprobs": []})

    def _begin(self, kind: str) -> bytes:
        self._open = (kind, [])
        item = _item(kind, self._open_id(kind), "")
        added = self._event(
            "response.output_item.added",
            {"output_index": len(self._done), "item": {**item, "status": "in_progress", "content": []}},
        )
        part = {**self._where(item["id"]), "part": item["content"][0]}
        return added + self._event("response.content_part.added", part)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        kind, parts = self._open
        text = "".join(parts)
        item = _item(kind, self._open_id(kind), text)
        where = self._where(item["id"])
        if kind == "reasoning":
            closed = self._event("response.reasoning_text.done", {**where, "text": text})
        else:
            closed = self._event("response.output_text.done", {**where, "text": text, "logprobs": []})
        closed += self._event("response.content_part.done", {**where, "part": item["content"][0]})
        self._open = None
        return closed + self._finish_item(item)

    def _call(self, found: ToolCall) -> bytes:
        item = _call(found, self._head, len(self._done))
        where = {"item_id": item["id"], "output_index": len(self._done)}
        begun = {"output_index": len(self._done), "item": {**item, "arguments": "", "status": "in_progress"}}
        given = {**where, "arguments": item["arguments"]}
        return (
            self._event("response.output_item.added", begun)
            + self._event("response.function_call_arguments.delta", {**where, "delta": item["arguments"]})
            + self._event("response.function_call_arguments.done", {**given, "name": item["name"]})
            + self._finish_item(item)
        )

    def _finish_item(self, item: Item) -> bytes:
        done = self._event("response.output_item.done", {"output_index": len(self._done), "item": item})
        self._done.append(item)
        return done

    def _open_id(self, kind: str) -> str:
        return _item_id(kind, self._head, len(self._done))

    def _where(self, item_id: str) -> dict[str, Any]:
        return {"item_id": item_id, "output_index": len(self._done), "content_index": 0}

    def _event(self, name: str, data: Mapping[str, Any]) -> bytes:
        numbered = {"type": name, "sequence_number": self._number, **data}
        self._number += 1
        return wire.sse(numbered, name)


def whole(asked: Asked, head: Head, answers: Sequence[Answer]) -> Mapping[str, Any]:
    answer = answers[0]
    items: list[Item] = []
    for kind, text in (("reasoning", answer.thinking), ("message", answer.text)):
        if text:
            items.append(_item(kind, _item_id(kind, head, len(items)), text))
    for found in answer.calls:
        items.append(_call(found, head, len(items)))
    return _response(asked, head, items, answer.finished)


_PREFIXES = {"reasoning": "rs", "message": "msg", "call": "fc"}


def _item_id(kind: str, head: Head, position: int) -> str:
    return f"{_PREFIXES[kind]}_{head.id}{position:02x}"


def _item(kind: str, item_id: str, text: str) -> Item:
    if kind == "reasoning":
        part = {"type": "reasoning_text", "text": text}
        return {"id": item_id, "type": "reasoning", "summary": [], "content": [part], "status": "completed"}
    shown = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"id": item_id, "type": "message", "role": "assistant", "status": "completed", "content": [shown]}


def _call(found: ToolCall, head: Head, position: int) -> Item:
    return {
        "id": _item_id("call", head, position),
        "type": "function_call",
        "call_id": head.call_id(0, position),
        "name": found.name,
        "arguments": json.dumps(dict(found.arguments), ensure_ascii=False),
        "status": "completed",
    }


def _response(asked: Asked, head: Head, items: Sequence[Item], finished: Finished | None) -> dict[str, Any]:
    cut = finished is not None and finished.finish_reason == "length"
    status = "in_progress" if finished is None else "incomplete" if cut else "completed"
    response: dict[str, Any] = {
        "id": f"resp_{head.id}",
        "object": "response",
        "created_at": int(head.created),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "model": head.model,
        "output": list(items),
        "parallel_tool_calls": asked.request.parallel_calls,
        "previous_response_id": None,
        "store": False,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {},
        "truncation": "disabled",
        **asked.extra,
        "usage": _usage(finished) if finished else None,
    }
    return response


def _usage(finished: Finished) -> dict[str, Any]:
    used = finished.usage
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": used.thinking_tokens},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
