"""OpenAI's `/v1/responses`, stateless: the client sends the whole conversation, the server stores nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from localqwen.chat.answer import Answer
from localqwen.chat.messages import (
    Event,
    Finished,
    JsonFormat,
    Message,
    Request,
    Started,
    Text,
    Thinking,
    TokenLogprob,
    ToolCall,
)
from localqwen.errors import LocalqwenError
from localqwen.serve import encoding
from localqwen.serve.api import ParsedRequest, ResponseMeta
from localqwen.serve.fields import Fields, shown
from localqwen.serve.openai import items as openai_items
from localqwen.serve.openai import request as openai_request
from localqwen.serve.openai import response as openai_response
from localqwen.serve.openai.items import Item, item_id

error = openai_response.error
#: Fields of the request that the response repeats.
_ECHOED = (
    "instructions", "max_output_tokens", "metadata", "reasoning", "temperature", "text", "tool_choice", "tools",
    "top_p",
)  # fmt: skip
_LOGPROBS = "message.output_text.logprobs"


def read(body: Mapping[str, Any]) -> ParsedRequest:
    """Parse the body of a responses request. Raise BadField if a field is wrong or cannot be obeyed."""
    fields = Fields(body)
    _refuse(fields)
    think, budget = openai_request.thinking(fields)
    tools, must_call = openai_request.tool_choice(fields, openai_request.tools(fields))
    instructions = fields.text("instructions")
    meta = (Message("system", instructions),) if instructions else ()
    request = Request(
        messages=(*meta, *_input(fields)),
        tools=tools,
        think=think,
        budget=budget,
        max_tokens=openai_request.limit(fields, "max_output_tokens"),
        sampling=openai_request.sampling(fields),
        format=_format(fields),
        must_call=must_call,
        read_calls=bool(tools),
        parallel_calls=fields.flag("parallel_tool_calls") is not False,
        logprobs=_logprobs(fields),
    )
    echoed = {name: body[name] for name in _ECHOED if body.get(name) is not None}
    return ParsedRequest(fields.text("model") or "", request, stream=fields.flag("stream") or False, extra=echoed)


def _refuse(fields: Fields) -> None:
    """Raise BadField if a field would change the answer and cannot be obeyed."""
    for name in ("previous_response_id", "conversation", "prompt"):
        if fields.has(name):
            raise fields.wrong(name, "is unknown: this server stores nothing", "send the whole conversation")
    fields.refuse({"background": "cannot be true: this server stores no response for later"})


def _logprobs(fields: Fields) -> int | None:
    """Return how many likely tokens to report in each place; None if the client does not want log-probabilities."""
    top = fields.whole("top_logprobs", 0, openai_request.MOST_LOGPROBS)
    return top or 0 if top is not None or _LOGPROBS in fields.texts("include") else None


def _input(fields: Fields) -> tuple[Message, ...]:
    if isinstance(fields.data.get("input"), str):
        return (Message("user", fields.needed_text("input")),)
    if not fields.list("input"):
        raise fields.wrong("input", "is empty" if fields.has("input") else "is missing")
    turns: list[Message | _Turn] = []
    for item in fields.objects("input"):
        _add(turns, item)
    return tuple(turn.message() if isinstance(turn, _Turn) else turn for turn in turns)


@dataclass
class _Turn:
    """An assistant's turn that grows item by item."""

    thinking: str | None = None
    texts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def message(self) -> Message:
        return Message("assistant", "".join(self.texts), self.thinking, tuple(self.calls))


def _add(turns: list[Message | _Turn], item: Fields) -> None:
    """Append an input item to the turns. Reasoning, text and calls of one answer are separate items in this API; in a
    chat template they are one message."""
    match item.text("type") or "message":
        case "message":
            role = openai_request.ROLES[item.one_of("role", tuple(openai_request.ROLES)) or "user"]
            text = openai_request.content(item, "content")
            if role == "assistant":
                _last(turns).texts.append(text)
            else:
                turns.append(Message(role, text))
        case "reasoning":
            text = "".join(part.needed_text("text") for name in ("content", "summary") for part in item.objects(name))
            turns.append(_Turn(text or None))
        case "function_call":
            arguments = openai_request.arguments(item, "arguments")
            call = ToolCall(item.needed_text("name"), arguments, item.text("call_id") or "")
            _last(turns).calls.append(call)
        case "function_call_output":
            output = openai_request.content(item, "output")
            turns.append(Message("tool", output, tool_call_id=item.text("call_id") or ""))
        case other:
            raise item.wrong(
                "type", f"is {shown(other)}, it must be message, reasoning, function_call or function_call_output"
            )


def _last(turns: list[Message | _Turn]) -> _Turn:
    """Return the assistant's turn at the end, a new one if somebody else spoke last."""
    if turns and isinstance(turns[-1], _Turn):
        return turns[-1]
    turns.append(turn := _Turn())
    return turn


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


@dataclass
class _Open:
    """The output item that is being written."""

    kind: str
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Stream:
    """Encodes the numbered events of one response. Each output item is opened, filled and closed before the next."""

    media_type = encoding.SSE

    def __init__(self, parsed: ParsedRequest, meta: ResponseMeta) -> None:
        self._parsed = parsed
        self._meta = meta
        self._number = 0
        self._done: list[Item] = []
        self._open: _Open | None = None
        self._finished: Finished | None = None

    def feed(self, event: Event, index: int = 0) -> bytes:
        """Return the events that one event of the answer stands for; `index` is always 0."""
        match event:
            case Started():
                running = {"response": openai_items.response(self._parsed, self._meta, [], None)}
                return self._event("response.created", running) + self._event("response.in_progress", running)
            case Thinking(text):
                return self._text("reasoning", text)
            case Text(text, logprobs):
                return self._text("message", text, logprobs)
            case ToolCall():
                return self._close() + self._call(event)
            case Finished():
                self._finished = event
                return self._close(openai_items.status(event))
        return b""

    def end(self) -> bytes:
        """Return the last event, with the whole response."""
        assert self._finished is not None
        response = openai_items.response(self._parsed, self._meta, self._done, self._finished)
        return self._event(f"response.{response['status']}", {"response": response})

    def error(self, error: LocalqwenError) -> bytes:
        """Return the event `response.failed`, after an answer that failed in the middle."""
        response = openai_items.response(self._parsed, self._meta, self._done, None)
        problem = openai_response.error(error)["error"]
        response |= {"status": "failed", "error": {"code": "server_error", "message": problem["message"]}}
        return self._event("response.failed", {"response": response})

    def _text(self, kind: str, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        opened = b""
        if self._open is None or self._open.kind != kind:
            opened = self._close() + self._begin(kind)
        assert self._open is not None
        self._open.texts.append(text)
        self._open.logprobs += logprobs
        where = self._where(self._open_id(kind))
        if kind == "reasoning":
            return opened + self._event("response.reasoning_text.delta", {**where, "delta": text})
        entries = [openai_response.logprob(each) for each in logprobs]
        return opened + self._event("response.output_text.delta", {**where, "delta": text, "logprobs": entries})

    def _begin(self, kind: str) -> bytes:
        self._open = _Open(kind)
        item = openai_items.written(kind, self._open_id(kind), "", "in_progress")
        added = self._event(
            "response.output_item.added", {"output_index": len(self._done), "item": {**item, "content": []}}
        )
        part = {**self._where(item["id"]), "part": item["content"][0]}
        return added + self._event("response.content_part.added", part)

    def _close(self, state: str = "completed") -> bytes:
        if self._open is None:
            return b""
        kind, text = self._open.kind, "".join(self._open.texts)
        item = openai_items.written(kind, self._open_id(kind), text, state, self._open.logprobs)
        where, part = self._where(item["id"]), item["content"][0]
        if kind == "reasoning":
            closed = self._event("response.reasoning_text.done", {**where, "text": text})
        else:
            done = {**where, "text": text, "logprobs": part["logprobs"]}
            closed = self._event("response.output_text.done", done)
        closed += self._event("response.content_part.done", {**where, "part": part})
        self._open = None
        return closed + self._finish_item(item)

    def _call(self, found: ToolCall) -> bytes:
        item = openai_items.called(found, self._meta, len(self._done))
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
        return item_id(kind, self._meta, len(self._done))

    def _where(self, item_id: str) -> dict[str, Any]:
        return {"item_id": item_id, "output_index": len(self._done), "content_index": 0}

    def _event(self, name: str, data: Mapping[str, Any]) -> bytes:
        numbered = {"type": name, "sequence_number": self._number, **data}
        self._number += 1
        return encoding.sse(numbered, name)


def response_body(parsed: ParsedRequest, meta: ResponseMeta, answers: Sequence[Answer]) -> Mapping[str, Any]:
    """Return the body of a response that is not streamed, a `response` object."""
    answer = answers[0]
    items: list[Item] = []
    for kind, text, logprobs in (("reasoning", answer.thinking, ()), ("message", answer.content, answer.logprobs)):
        if text:
            items.append(openai_items.written(kind, item_id(kind, meta, len(items)), text, logprobs=logprobs))
    for found in answer.tool_calls:
        items.append(openai_items.called(found, meta, len(items)))
    if items:
        items[-1]["status"] = openai_items.status(answer.end)
    return openai_items.response(parsed, meta, items, answer.end)
