"""The values of the chat layer: what is asked, and what comes. Frozen, typed, without I/O; JSON exists only at the
edges. A Message and a Request check what they are given, and raise UsageError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from localqwen.chat import shapes
from localqwen.errors import UsageError

Role = Literal["system", "user", "assistant", "tool"]
ThinkingMode = Literal["switch", "always", "never"]
ThinkingEnd = Literal["model", "budget", "user"]


@dataclass(frozen=True)
class ToolCall:
    """A call that the model wrote. `arguments` is always a JSON object."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True)
class Tool:
    """A function the model may call; `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return OpenAI's shape, which Qwen3 was trained on."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Message:
    """One turn. An assistant's thinking is kept beside its text: the template decides what of it is shown again.
    `content` None, of an assistant with tool calls, becomes ""."""

    role: Role
    content: str
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""

    def __post_init__(self) -> None:
        shapes.check_role(self.role, "role")
        if self.content is None and self.role == "assistant" and self.tool_calls:
            object.__setattr__(self, "content", "")
        shapes.check(self.content, str, "content", "text")
        shapes.check(self.thinking, (str, type(None)), "thinking", "text")
        shapes.check(self.tool_call_id, str, "tool_call_id", "text")
        calls = shapes.items(self.tool_calls, "tool_calls")
        for number, call in enumerate(calls):
            shapes.check(call, ToolCall, f"tool_calls[{number}]", "a ToolCall")
        object.__setattr__(self, "tool_calls", tuple(calls))

    @classmethod
    def of(cls, value: Message | Mapping[str, Any], place: str = "message") -> Message:
        """Return a message as it is, or the one that a dict in OpenAI's shape describes. `place` is where an error says
        that the fault is."""
        if isinstance(value, Message):
            return value
        fields = shapes.message(value, place)
        return cls(**{**fields, "tool_calls": tuple(ToolCall(**call) for call in fields["tool_calls"])})

    def to_json(self) -> dict[str, Any]:
        """Return OpenAI's shape, as chat templates and saved conversations use it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.thinking is not None:
            message["reasoning_content"] = self.thinking
        if self.tool_calls:
            message["tool_calls"] = [_call_to_json(call) for call in self.tool_calls]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        return message

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Message:
        """Return the message that `to_json` wrote. Raises KeyError, TypeError or UsageError for other data."""
        calls = tuple(_call_from_json(call) for call in data.get("tool_calls") or ())
        thinking = data.get("reasoning_content")
        return cls(data["role"], data["content"] or "", thinking, calls, data.get("tool_call_id", ""))


def _call_to_json(call: ToolCall) -> dict[str, Any]:
    data: dict[str, Any] = {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
    return {"id": call.id, **data} if call.id else data


def _call_from_json(data: Mapping[str, Any]) -> ToolCall:
    function = data.get("function", data)
    return ToolCall(function["name"], function["arguments"], data.get("id", ""))


@dataclass(frozen=True)
class SamplingOverrides:
    """What a user set of the sampling; None leaves the preset of the model and its mode."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None

    def over(self, other: SamplingOverrides) -> SamplingOverrides:
        """Return these values where they are set, else those of `other`."""
        names = self.__dataclass_fields__
        return SamplingOverrides(
            **{n: getattr(other, n) if getattr(self, n) is None else getattr(self, n) for n in names}
        )

    def set_values(self) -> dict[str, float | int]:
        """Return what was set, by name."""
        return {name: value for name in self.__dataclass_fields__ if (value := getattr(self, name)) is not None}


#: The name of SamplingOverrides in earlier versions.
Overrides = SamplingOverrides


@dataclass(frozen=True)
class JsonFormat:
    """Makes the text of an answer JSON: of this schema, or any object where it is None."""

    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Request:
    """What an answer is asked for. Messages and tools may be dicts in OpenAI's shape, and become Message and Tool.

    `think` None lets the last soft switch in the messages decide, else the model's default. `budget` is the number of
    tokens that may be spent inside the thinking (0 = thinking off, None = no limit). `max_tokens` None = up to the end
    of the context. `sampling` holds for the whole answer, `thinking_sampling` and `text_sampling` for one phase of it.

    `format` constrains the text, never the thinking. `must_call` names the tools of which the answer has to call one
    (() leaves it to the model); `parallel_calls` False ends the answer after its first call. `logprobs` N gives every
    token of the text its own logprob and the N likeliest. `read_calls` False leaves calls in the text, for clients that
    describe tools in a prompt of their own and read the answer themselves. `prompt` takes the place of the messages:
    text that is continued as it stands, without a template, without thinking and tool calls.

    Raises UsageError that names the place of a fault, as in `messages[2].role`, and where there is nothing to answer.
    """

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    think: bool | None = None
    budget: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: SamplingOverrides = SamplingOverrides()
    thinking_sampling: SamplingOverrides = SamplingOverrides()
    text_sampling: SamplingOverrides = SamplingOverrides()
    format: JsonFormat | None = None
    must_call: tuple[str, ...] = ()
    parallel_calls: bool = True
    read_calls: bool = True
    logprobs: int | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        messages = shapes.items(self.messages, "messages")
        if not messages and self.prompt is None:
            raise UsageError("there are no messages", 'ask something: Request([Message("user", "Hello")])')
        turns = tuple(Message.of(message, f"messages[{number}]") for number, message in enumerate(messages))
        tools = shapes.items(self.tools, "tools")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(shapes.items(self.stop, "stop"))
        object.__setattr__(self, "messages", turns)
        object.__setattr__(self, "tools", tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)))
        object.__setattr__(self, "stop", stops)
        self._check_fields()

    def _check_fields(self) -> None:
        for number, stop in enumerate(self.stop):
            shapes.check(stop, str, f"stop[{number}]", "text")
        for name in ("budget", "max_tokens", "logprobs"):
            if getattr(self, name) is not None:
                shapes.check(getattr(self, name), int, name, "a whole number")
        for name in ("sampling", "thinking_sampling", "text_sampling"):
            shapes.check(getattr(self, name), SamplingOverrides, name, "a SamplingOverrides")
        shapes.check(self.think, (bool, type(None)), "think", "true, false or None")
        shapes.check(self.prompt, (str, type(None)), "prompt", "text")
        shapes.check(self.format, (JsonFormat, type(None)), "format", "a JsonFormat")


def _tool(value: Tool | Mapping[str, Any], place: str) -> Tool:
    return value if isinstance(value, Tool) else Tool(**shapes.tool(value, place))


@dataclass(frozen=True)
class Usage:
    """Tokens. `completion_tokens` and `thinking_tokens` count what the model generated, tags and the stop token among
    the former; the text that ends a thinking budget is appended, not generated, and counts in neither."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    thinking_tokens: int = 0


@dataclass(frozen=True)
class Timing:
    """Milliseconds from the request (`load_ms`: of opening the model) and tokens per second; None where it never came.

    `prompt_per_second` counts the prompt tokens that were computed, not those found in the cache. `prompt_ms` is the
    time of computing them, `predicted_ms` that between generated tokens, `total_ms` all until the end.
    """

    load_ms: float | None = None
    first_token_ms: float | None = None
    first_answer_ms: float | None = None
    prompt_per_second: float | None = None
    predicted_per_second: float | None = None
    prompt_ms: float | None = None
    predicted_ms: float | None = None
    total_ms: float | None = None


@dataclass(frozen=True)
class Started:
    """The prompt is known; `thinking` says whether the answer was asked to think."""

    prompt_tokens: int
    cached_tokens: int
    thinking: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class PrefillProgress:
    """Says that a step gave nothing to show: the prompt is being computed, or the text so far may be part of a tag. So
    a reader gets control after every step, and can show how far a slow prompt is."""

    prefilled: int
    prompt_tokens: int


#: The name of PrefillProgress in earlier versions.
Working = PrefillProgress


@dataclass(frozen=True)
class Thinking:
    """A part of the thinking, without its tags."""

    text: str


@dataclass(frozen=True)
class TokenLogprob:
    """One token of the text and the natural logarithm of its probability; `top` are the likeliest ones at its place,
    best first. `text` holds a replacement character where the token is a part of a character."""

    token: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        """Return the token's bytes as text."""
        return self.token.decode(errors="replace")


@dataclass(frozen=True)
class Text:
    """A part of the answer. `logprobs` are those of the tokens that came since the last Text, where they were asked
    for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The last event. `thinking_end` says who closed the thinking; None where there was none, or it never closed.
    `stop` is the stop string that ended the answer."""

    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: Usage
    timing: Timing
    thinking_end: ThinkingEnd | None = None
    stop: str | None = None

    @property
    def budget_forced(self) -> bool:
        """Return whether the thinking was ended because its budget was spent."""
        return self.thinking_end == "budget"


Event = Started | PrefillProgress | Thinking | Text | ToolCall | Finished
