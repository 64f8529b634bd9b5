"""What the server says has the shape that the clients' own types demand, though the clients forgive more."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import anthropic.types
import ollama
import openai.types
import openai.types.chat
import openai.types.responses
import pytest
from local_server import serving
from pydantic import TypeAdapter

from localqwen.chat.answer import Answer
from localqwen.chat.messages import Event, Finished, Started, Text, Thinking, Timing, TokenLogprob, ToolCall, Usage
from localqwen.engines.scripted import ScriptedEngine
from localqwen.serve.anthropic import messages as anthropic_api
from localqwen.serve.api import ResponseMeta
from localqwen.serve.http.mappers import Api
from localqwen.serve.ollama import chat as ollama_api
from localqwen.serve.ollama import generate as ollama_generate
from localqwen.serve.openai import chat as openai_chat
from localqwen.serve.openai import completions as openai_completions
from localqwen.serve.openai import responses as openai_responses

META = ResponseMeta("0123456789abcdef01234567", "qwen3:4b", 1_700_000_000.5)
TIMING = Timing(None, 12.0, 20.0, 300.0, 35.0, 20.0, 200.0, 250.0)
USAGE = Usage(10, 4, 7, 3)
LIKELY = (TokenLogprob(b"Hi", -0.5, (TokenLogprob(b"Hi", -0.5), TokenLogprob(b"\xf0", -2.0))),)
#: What a model can do within one answer.
ANSWERS: Mapping[str, Sequence[Event]] = {
    "text": [Text("Hi", LIKELY), Text("!"), Finished("stop", USAGE, TIMING)],
    "thinking": [Thinking("Hm"), Thinking("m"), Text("Hi"), Finished("stop", USAGE, TIMING, "model")],
    "calls": [
        Thinking("Hm"),
        Text("Let me see."),
        ToolCall("add", {"a": 1}),
        ToolCall("add", {}),
        Finished("tool_calls", USAGE, TIMING, "model"),
    ],
    "stopped": [Text("Hi"), Finished("stop", USAGE, TIMING, None, "!")],
    "cut": [Thinking("Hm"), Finished("length", USAGE, TIMING)],
    "nothing": [Finished("stop", USAGE, Timing())],
}
MESSAGES = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
FLAT_TOOL = {"type": "function", "name": "add", "parameters": {}, "strict": False}
APIS: Mapping[str, tuple[Api, dict[str, Any], Any, Any]] = {
    "chat": (
        openai_chat,
        {"messages": MESSAGES, "tools": TOOLS, "logprobs": True, "stream_options": {"include_usage": True}},
        openai.types.chat.ChatCompletion,
        openai.types.chat.ChatCompletionChunk,
    ),
    "completions": (openai_completions, {"prompt": "hello", "logprobs": 2}, openai.types.Completion, None),
    "responses": (
        openai_responses,
        {"input": "hello", "instructions": "Be kind.", "tools": [FLAT_TOOL]},
        openai.types.responses.Response,
        openai.types.responses.ResponseStreamEvent,
    ),
    "messages": (
        anthropic_api,
        {"model": "m", "max_tokens": 9, "messages": MESSAGES},
        anthropic.types.Message,
        anthropic.types.RawMessageStreamEvent,
    ),
    "ollama chat": (
        ollama_api,
        {"model": "m", "messages": MESSAGES, "logprobs": True},
        ollama.ChatResponse,
        ollama.ChatResponse,
    ),
    "ollama generate": (
        ollama_generate,
        {"model": "m", "prompt": "hello"},
        ollama.GenerateResponse,
        ollama.GenerateResponse,
    ),
}  # fmt: skip


def told(data: bytes) -> list[Any]:
    """The JSON of server-sent events or of lines."""
    lines = [line.removeprefix("data: ") for line in data.decode().splitlines() if line.startswith(("data: ", "{"))]
    return [json.loads(line) for line in lines if line != "[DONE]"]


#: A text that is merely continued calls no tool.
CASES = [(name, kind) for name in APIS for kind in ANSWERS if (name, kind) != ("completions", "calls")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_answers_have_the_shape_of_their_clients_types(name: str, kind: str) -> None:
    api, body, whole, streamed = APIS[name]
    parsed, events = api.read(body), [Started(10, 4, thinking=True), *ANSWERS[kind]]
    TypeAdapter(whole).validate_json(json.dumps(api.response_body(parsed, META, [Answer.of(events)])))
    if streamed is not None:  # OpenAI's completions stream under the type of a whole one, which they do not meet
        stream = api.Stream(parsed, META)
        sent = told(b"".join(stream.feed(event) for event in events) + stream.end())
        assert sent
        for each in sent:
            TypeAdapter(streamed).validate_json(json.dumps(each))


def test_models_have_the_shape_of_every_client() -> None:
    with serving(ScriptedEngine([]), name="demo") as server:
        for client in (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="x"),
            anthropic.Anthropic(base_url=server.url, api_key="x"),
        ):
            with client:
                listed = next(model for model in client.models.list() if model.id == "demo")
                type(listed).model_validate_json(listed.model_dump_json())
                assert listed.id == client.models.retrieve("demo").id == "demo"
