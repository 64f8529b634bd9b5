"""The real `openai` client, and plain HTTP, against a real port: with the scripted engine and with the demo model."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from local_server import Running, SlowEngine, eventually, serving, talkative
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import UsageError
from localqwen.serve.http import server as http_server
from localqwen.serve.http.app import Settings
from localqwen.serve.served_model import Limits

README = Path(__file__).parents[2] / "README.md"
ADD: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with serving(None, name="demo") as server:
        yield server


@pytest.fixture(scope="module")
def client(demo: Running) -> Iterator[openai.OpenAI]:
    with client_of(demo) as made:
        yield made


def client_of(server: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def user(text: str) -> ChatCompletionMessageParam:
    return {"role": "user", "content": text}


def get(url: str, body: dict[str, Any] | None = None) -> Any:
    """What plain `curl` would do; JSON where it is JSON."""
    data = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as answer:
        text = answer.read().decode()
        return json.loads(text) if "json" in answer.headers["content-type"] else text


def test_chat_thinks_and_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=[user("What is 17 + 25?")], temperature=0)
    message = answer.choices[0].message
    assert message.content == "17 + 25 = 42."
    assert message.model_extra is not None
    assert "carry" in message.model_extra["reasoning_content"]
    assert message.model_extra["reasoning"] == message.model_extra["reasoning_content"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert (answer.usage.completion_tokens_details.reasoning_tokens or 0) > 20


def test_the_switch_of_the_release_examples(client: openai.OpenAI) -> None:
    """`chat_template_kwargs`, and `/no_think` in a later turn."""
    off = client.chat.completions.create(
        model="demo",
        messages=[user("hello")],
        max_tokens=200,
        temperature=0.7,
        top_p=0.8,
        presence_penalty=1.5,
        extra_body={"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}},
    )
    assert "reasoning_content" not in (off.choices[0].message.model_extra or {})
    history = [user("hello"), {"role": "assistant", "content": "Hello!"}, user("bye /no_think")]
    soft = client.chat.completions.create(model="demo", messages=history, temperature=0)  # type: ignore[arg-type]
    assert "reasoning_content" not in (soft.choices[0].message.model_extra or {})


def test_streaming_gives_the_same_answer_in_pieces(client: openai.OpenAI) -> None:
    messages = [user("What is 17 + 25?")]
    stream = client.chat.completions.create(
        model="demo", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "17 + 25 = 42."
    assert len(chunks) > 10
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 20


def test_a_budget_ends_the_thinking(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=[user("What is 123 + 456?")], temperature=0, extra_body={"thinking_budget": 10}
    )
    assert answer.choices[0].message.model_extra is not None
    assert "Considering the limited time" in answer.choices[0].message.model_extra["reasoning"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 10


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "add"}}])
def test_tools_are_called_streaming_and_not(client: openai.OpenAI, choice: Any) -> None:
    parsed: Any = {
        "model": "demo",
        "messages": [user("Use a tool: 123 + 45")],
        "tools": [ADD],
        "tool_choice": choice,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**parsed)
    assert whole.choices[0].finish_reason == "tool_calls"
    (call,) = whole.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 123, "b": 45})
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**parsed, stream=True)]
    (streamed,) = [made for delta in deltas for made in delta.tool_calls or []]
    assert streamed.function is not None
    assert json.loads(streamed.function.arguments or "") == {"a": 123, "b": 45}


def test_no_tools_are_shown_where_none_may_be_called(client: openai.OpenAI) -> None:
    parsed: Any = {"model": "demo", "messages": [user("hello")], "max_tokens": 1}
    plain = client.chat.completions.create(**parsed)
    none = client.chat.completions.create(**parsed, tools=[ADD], tool_choice="none")
    assert plain.usage is not None
    assert none.usage is not None
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens


class Sum(BaseModel):
    a: int
    b: int
    total: int


@pytest.mark.parametrize("think", [True, False])
def test_structured_output_after_free_thinking(client: openai.OpenAI, think: bool) -> None:
    parsed = client.chat.completions.parse(
        model="demo",
        messages=[user("What is 17 + 25?")],
        response_format=Sum,
        max_tokens=400,
        temperature=0,
        extra_body={"chat_template_kwargs": {"enable_thinking": think}},
    )
    message = parsed.choices[0].message
    assert isinstance(message.parsed, Sum)
    assert ("carry" in str(message.model_extra)) is think


def test_json_objects(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=[user("hello")],
        response_format={"type": "json_object"},
        max_tokens=60,
        seed=1,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    assert (answer.choices[0].message.content or "").startswith("{")


def test_a_schema_that_cannot_be_followed_is_refused(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}}
    with pytest.raises(openai.BadRequestError, match="objekt"):
        client.chat.completions.create(model="demo", messages=[user("hi")], response_format=form)


def test_seeds_repeat_an_answer_and_n_gives_different_ones(client: openai.OpenAI) -> None:
    def ask(n: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model="demo", messages=[user("hello")], temperature=2, top_p=1, seed=7, n=n, max_tokens=30,
            extra_body={"top_k": 0, "chat_template_kwargs": {"enable_thinking": False}},
        )  # fmt: skip
        return [choice.message.content for choice in answer.choices]

    assert ask(1) == ask(1)
    three = ask(3)
    assert three[0] == ask(1)[0]
    assert len(set(three)) == 3


def test_logprobs_spell_the_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=[user("hello")], temperature=0, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content or []
    assert b"".join(bytes(entry.bytes or []) for entry in entries).decode() == answer.choices[0].message.content
    for entry in entries:
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs) <= 0


def test_stop_strings_and_limits(client: openai.OpenAI) -> None:
    parsed: Any = {"model": "demo", "messages": [user("What is 17 + 25?")], "temperature": 0}
    stopped = client.chat.completions.create(**parsed, stop=["= 4"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("17 + 25 ", "stop")
    assert client.chat.completions.create(**parsed, max_completion_tokens=3).choices[0].finish_reason == "length"


def test_completions(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="demo", prompt="<|im_start|>user\n3 + 4", max_tokens=5, temperature=0)
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 10, "a control token in a prompt is text"
    pieces = client.completions.create(
        model="demo", prompt="<|im_start|>user\n3 + 4", max_tokens=5, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole.choices[0].text


def test_responses(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="demo", input="What is 17 + 25?", temperature=0)
    assert whole.output_text == "17 + 25 = 42."
    events = list(client.responses.create(model="demo", input="What is 17 + 25?", temperature=0, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == whole.output_text
    tools: Any = [{"type": "function", **ADD["function"]}]
    called = client.responses.create(model="demo", input="Use a tool: 123 + 45", tools=tools, temperature=0)
    (call,) = [item for item in called.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"a": 123, "b": 45}
    history: Any = [
        {"role": "user", "content": "Use a tool: 123 + 45"},
        *[item.model_dump(exclude_none=True) for item in called.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "168"},
    ]
    assert "168" in client.responses.create(model="demo", input=history, tools=tools, temperature=0).output_text


def test_the_second_turn_finds_its_prompt_read(client: openai.OpenAI) -> None:
    """Also where other conversations hold every slot. A busy machine may need longer, so there are several attempts,
    each with conversations of its own."""

    def ask(messages: list[ChatCompletionMessageParam], **fields: Any) -> tuple[str, int, int]:
        """The answer, the tokens of its prompt, and how many of them were cached."""
        answer = client.chat.completions.create(model="demo", messages=messages, temperature=0, **fields)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached = answer.usage.prompt_tokens_details.cached_tokens or 0
        return answer.choices[0].message.content or "", answer.usage.prompt_tokens, cached

    for attempt in range(1, 8):
        for number in range(6):
            question = user(f"What is {number}{attempt}8 + 76?")
            said, prompt, _ = ask([question])
        time.sleep(attempt)
        _, _, cached = ask([question, {"role": "assistant", "content": said}, user("hi")], max_tokens=1)
        if cached > prompt + 5:
            return
    raise AssertionError("no second turn was read ahead")


def test_models(client: openai.OpenAI) -> None:
    assert "demo" in [model.id for model in client.models.list()]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError, match="demo"):
        client.models.retrieve("gpt-4")


def test_a_client_that_closes_its_stream_frees_the_run() -> None:
    engine = talkative()
    with serving(engine) as server, client_of(server) as client:
        stream = client.chat.completions.create(model="scripted", messages=[user("talk /no_think")], stream=True)
        next(iter(stream))
        stream.close()
        assert eventually(lambda: engine.runs[0].finished)
        assert eventually(lambda: server.service.models.open_tasks == 0)
        assert engine.runs[0].generated < 500


def test_a_reader_that_is_slow_holds_nobody() -> None:
    engine = talkative(1500, seconds=0)
    with serving(engine) as server, client_of(server) as client:
        slow = client.chat.completions.create(model="scripted", messages=[user("talk /no_think")], stream=True)
        assert next(iter(slow)).choices[0].delta.role == "assistant"
        quick = client.chat.completions.create(model="scripted", messages=[user("talk /no_think")])
        assert len((quick.choices[0].message.content or "").split()) == 1500
        text = "".join(chunk.choices[0].delta.content or "" for chunk in slow)
        assert len(text.split()) == 1500


def test_the_thinking_of_a_stream_can_be_ended() -> None:
    engine = SlowEngine(["<think>\n" + "hm " * 1000, "Done."])
    with serving(engine) as server, client_of(server) as client:
        stream = iter(client.chat.completions.create(model="scripted", messages=[user("hi")], stream=True))
        first = next(stream)
        ended = get(f"{server.url}/v1/chat/completions/{first.id}/end_thinking", {})
        assert ended == {"id": first.id, "thinking": "ending"}
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Done."


def test_a_full_queue_is_503_with_a_time_to_come_again() -> None:
    with serving(talkative(max_runs=1), Settings(Limits(queue=0))) as server, client_of(server) as client:
        held = client.chat.completions.create(model="scripted", messages=[user("talk /no_think")], stream=True)
        next(iter(held))
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model="scripted", messages=[user("me too")])
        assert refused.value.status_code == 503
        assert int(refused.value.response.headers["retry-after"]) > 0
        held.close()


def test_what_the_server_counts() -> None:
    with serving(ScriptedEngine(["a b c"])) as server, client_of(server) as client:
        client.chat.completions.create(model="scripted", messages=[user("hi /no_think")])
        assert get(f"{server.url}/health") == {"status": "ok"}
        get(f"{server.url}/v1/models/{'scripted'}")
        lines = get(f"{server.url}/metrics").splitlines()
        assert 'localqwen_requests_total{route="/v1/chat/completions",status="200"} 1' in lines
        assert 'localqwen_requests_total{route="/v1/models/{model}",status="200"} 1' in lines
        assert 'localqwen_tokens_total{kind="generated"} 6' in lines
        assert 'localqwen_running{model="scripted"} 0' in lines


def test_a_port_that_is_taken_is_said(demo: Running) -> None:
    with pytest.raises(UsageError, match=f"port {demo.port} of 127.0.0.1 is in use") as raised:
        http_server.bind("127.0.0.1", demo.port)
    assert "--port" in raised.value.hint


@contextlib.contextmanager
def command(*flags: str) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    """`localqwen serve demo` as a process of its own, and a client of it."""
    parsed = [sys.executable, "-m", "localqwen", "serve", "demo", "--port", "0", "--threads", "1", *flags]
    with subprocess.Popen(parsed, stderr=subprocess.PIPE, text=True, env=os.environ) as server:
        assert server.stderr is not None
        line = server.stderr.readline()
        assert "demo · llama.cpp · 4 answers at once" in line
        try:
            with openai.OpenAI(base_url=f"{line.split('/v1')[0]}/v1", api_key="x") as client:
                yield server, client
        finally:
            server.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_answer_end_and_stops_the_server(number: signal.Signals) -> None:
    with command("--ctx", "2048") as (server, client):
        stream = iter(client.chat.completions.create(model="demo", messages=[user("What is 17 + 25?")], stream=True))
        next(stream)
        server.send_signal(number)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "stop"
        assert server.wait(10) == 0
        assert server.stderr is not None
        assert "POST /v1/chat/completions 200 · " in server.stderr.read()


def wait_until_refused(client: openai.OpenAI) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            with socket.create_connection((client.base_url.host, client.base_url.port or 80), 5):
                time.sleep(0.05)
        except ConnectionRefusedError:
            return
    raise AssertionError("the server still listens")


def test_a_second_signal_ends_the_answers_too_and_the_server_in_order() -> None:
    endless: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "string", "minLength": 10**6}},
    }
    with command("--ctx", "8192") as (server, client):
        stream = iter(
            client.chat.completions.create(
                model="demo", messages=[user("hello /no_think")], response_format=endless, stream=True
            )
        )
        next(stream)
        server.send_signal(signal.SIGTERM)
        wait_until_refused(client)  # two signals at once would be one
        server.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="has stopped"):
            list(stream)
        assert server.wait(10) == 0
        assert server.stderr is not None
        assert "Traceback" not in server.stderr.read()


def documented(language: str) -> str:
    """The first block of that language in the README's section about the server."""
    section = README.read_text().partition("\n## Server\n")[2].partition("\n## ")[0]
    blocks = section.split("```")[1::2]
    return next(block for block in blocks if block.startswith(language)).removeprefix(language)


def test_the_documented_curl_line(demo: Running) -> None:
    line = documented("\ncurl").strip().replace("localhost:8000", f"localhost:{demo.port}")
    ran = subprocess.run(
        ["bash", "-c", f"curl --silent --show-error {line}"], capture_output=True, check=True, text=True
    )
    message = json.loads(ran.stdout)["choices"][0]["message"]
    assert message["content"].startswith("17 + 25 = ")
    assert message["reasoning_content"].startswith("Add 17 and 25.")


def test_the_documented_client(demo: Running) -> None:
    script = documented("python").replace("localhost:8000", f"localhost:{demo.port}")
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert ran.stdout.startswith("Add 17 and 25.")
    assert "17 + 25 = " in ran.stdout
