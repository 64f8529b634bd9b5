"""The real `ollama` client against a real port: with the demo model, the scripted engine, and a hub on loopback."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from hub_server import serving as hub_serving
from local_server import Running, eventually, serving

import localqwen
from localqwen.engines.scripted import ScriptedEngine
from localqwen.models import converted
from localqwen.serve.http.ollama_routes import MOST_PULLS
from localqwen.serve.ollama import models as ollama_models

SUM = [{"role": "user", "content": "What is 17 + 25?"}]
HI = [{"role": "user", "content": "hi"}]
#: The form of an answer that even the demo can only end.
SURE = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}},
    "required": ["sure"],
    "additionalProperties": False,
}
COLD = {"temperature": 0, "seed": 1}


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
      a: the first
      b: the second
    """
    return a + b


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with serving(None, name="demo") as server:
        yield server


@pytest.fixture(scope="module")
def client(demo: Running) -> ollama.Client:
    return ollama.Client(demo.url)


def scripted(*answers: str) -> Any:
    return serving(ScriptedEngine(answers), name="demo")


def test_the_demo_answers_a_chat_and_tells_its_numbers(client: ollama.Client) -> None:
    answer = client.chat("demo", SUM, options=COLD)
    assert answer.message.thinking
    assert "42" in (answer.message.content or "")
    assert (answer.model, answer.done, answer.done_reason) == ("demo", True, "stop")
    assert answer.created_at is not None
    assert answer.created_at.endswith("Z")
    counts = (answer.prompt_eval_count, answer.eval_count, answer.total_duration, answer.eval_duration)
    assert all(count and count > 0 for count in counts)
    assert answer.total_duration >= answer.eval_duration  # type: ignore[operator]


def test_a_streamed_chat_gives_the_same_in_pieces(client: ollama.Client) -> None:
    whole = client.chat("demo:latest", SUM, options=COLD)
    parts = list(client.chat("demo", SUM, options=COLD, stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == whole.message.thinking
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("stop", whole.eval_count)


def test_think_is_a_switch_and_num_predict_a_limit(client: ollama.Client) -> None:
    answer = client.chat("demo", SUM, think=False, options=COLD | {"num_predict": 3})
    assert (answer.message.thinking, answer.eval_count, answer.done_reason) == (None, 3, "length")
    assert client.chat("demo", SUM, think="low", options=COLD).message.thinking


def test_generate_with_system_and_raw(client: ollama.Client) -> None:
    answer = client.generate("demo", "What is 17 + 25?", system="You are a helpful assistant.", options=COLD)
    assert answer.thinking
    assert "42" in (answer.response or "")
    raw = client.generate("demo", "What is", raw=True, options=COLD | {"num_predict": 2})
    assert (raw.thinking, raw.eval_count) == (None, 2)
    pieces = client.generate("demo", "What is 17 + 25?", stream=True, think=False, options=COLD | {"num_predict": 4})
    assert [piece.done for piece in pieces][-1]


@pytest.mark.parametrize("form", ["json", SURE])
def test_the_form_of_an_answer_is_kept(client: ollama.Client, form: Any) -> None:
    answer = client.chat("demo", SUM, format=form, think=False, options=COLD | {"num_predict": 60})
    assert answer.done_reason == "stop"
    value = json.loads(answer.message.content or "")
    assert isinstance(value, dict)
    assert form == "json" or value in ({"sure": True}, {"sure": False})


def test_a_python_function_is_a_tool_and_its_result_goes_back() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 17, "b": 25}}\n</tool_call>'
    with scripted(f"<think>\nI add.\n</think>\n\n{call}", "It is 42.", f"Look: {call}") as server:
        client = ollama.Client(server.url)
        first = client.chat("demo", SUM, tools=[add])
        (called,) = first.message.tool_calls or ()
        assert (called.function.name, called.function.arguments) == ("add", {"a": 17, "b": 25})
        assert (first.message.thinking, first.done_reason) == ("I add.", "stop")
        result = {"role": "tool", "tool_name": "add", "content": str(add(**called.function.arguments))}
        second = client.chat("demo", [*SUM, first.message, result], tools=[add])
        assert second.message.content == "It is 42."
        without = client.chat("demo", SUM, think=False)  # no tool was offered: the text is text
        assert (without.message.tool_calls, without.message.content) == (None, f"Look: {call}")


def test_streamed_tool_calls_come_whole() -> None:
    calls = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>' * 2
    with scripted(calls) as server:
        parts = list(ollama.Client(server.url).chat("demo", SUM, tools=[add], think=False, stream=True))
    found = [call.function for part in parts for call in part.message.tool_calls or ()]
    assert [call.arguments for call in found] == [{"a": 1, "b": 2}] * 2


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ({"model": "qwen3:99b", "messages": HI}, 404, "demo"),
        ({"model": "qwen3:4b-q4_K_M", "messages": HI}, 404, "localqwen pull qwen3:4b"),
        ({"model": "demo", "messages": HI, "options": {"num_ctx": 1_000_000}}, 400, "1,000,000 tokens"),
        ({"model": "demo", "messages": [{"role": "user", "content": "a " * 9000}]}, 400, "context holds"),
        ({"model": "demo", "messages": HI, "options": {"top_p": 7}}, 400, "options.top_p"),
        ({"model": "demo", "messages": HI, "format": {"type": "nonsense"}}, 400, "nonsense"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_a_status_and_a_reason(
    client: ollama.Client, arguments: dict[str, Any], status: int, said: str, stream: bool
) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        list(client.chat(**arguments, stream=stream))
    assert caught.value.status_code == status
    assert said in caught.value.error


def test_a_model_that_cannot_think_says_so() -> None:
    plain = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    with serving(ScriptedEngine(["x"], chat_template=plain), name="demo") as server:
        client = ollama.Client(server.url)
        with pytest.raises(ollama.ResponseError, match="cannot think") as caught:
            client.chat("demo", HI, think=True)
        assert caught.value.status_code == 400
        assert client.chat("demo", HI).message.content == "x"


def test_models_are_listed_shown_loaded_and_unloaded(demo: Running, client: ollama.Client) -> None:
    assert "demo:latest" in [model.model for model in client.list().models]
    shown = client.show("demo")
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert (shown.modelinfo or {})["general.architecture"] == "qwen3"
    assert client.chat("demo", [], keep_alive=0).done_reason == "unload"
    assert eventually(lambda: not client.ps().models)
    assert client.generate("demo", keep_alive=-1).done_reason == "load"
    (running,) = client.ps().models
    assert (running.model, running.context_length) == ("demo:latest", 2048)
    assert running.expires_at is not None
    assert running.expires_at.year == 9999
    assert client.chat("demo", HI, think=False, keep_alive="5m", options=COLD | {"num_predict": 2}).done
    assert client.ps().models[0].expires_at.year < 9999  # type: ignore[union-attr]
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("no-such-model")
    assert caught.value.status_code == 404


def test_an_empty_request_renews_how_long_a_loaded_model_stays(client: ollama.Client) -> None:
    client.generate("demo", keep_alive=-1)
    (kept,) = client.ps().models
    client.generate("demo", keep_alive="5m")
    (renewed,) = client.ps().models
    assert kept.expires_at is not None
    assert renewed.expires_at is not None
    assert kept.expires_at.year == 9999 > renewed.expires_at.year


def test_a_context_that_is_too_long_is_refused_also_before_the_model_is_loaded(client: ollama.Client) -> None:
    client.chat("demo", [], keep_alive=0)
    assert eventually(lambda: not client.ps().models)
    with pytest.raises(ollama.ResponseError, match="this server's has 2,048") as caught:
        client.chat("demo", HI, options={"num_ctx": 4096})
    assert caught.value.status_code == 400


def test_the_version_is_one_of_ollama_that_can_think(demo: Running) -> None:
    """Clients compare it before they send `think` or its levels."""
    with urllib.request.urlopen(f"{demo.url}/api/version") as response:
        told = json.load(response)
    assert tuple(map(int, told["version"].split("."))) >= (0, 12)
    assert told["localqwen"] == localqwen.__version__


def test_a_pull_tells_real_progress_and_what_was_pulled_answers(tmp_path: Path) -> None:
    """`localqwen serve` as a user starts it; a hub on loopback has the demo's bytes under an official name."""
    file = converted.demo_conversion().file().read_bytes()
    with hub_serving({"Qwen/Qwen3-0.6B-GGUF": {"Qwen3-0.6B-Q8_0.gguf": file}}) as hub:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": hub.endpoint,
            "NO_PROXY": "*",
        }
        command = f"{sys.executable} -m localqwen serve demo --port 0 --threads 1 --ctx 512"
        process = subprocess.Popen(command.split(), env=environment, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            url = next(line for line in process.stderr if line.startswith("http://")).partition("/v1")[0]
            _pull(ollama.Client(url), len(file))
        finally:
            process.terminate()
            process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_pull_that_nobody_watches_any_more_ends(
    demo: Running, client: ollama.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transfer is stood in for; a real one asks `tell` as often, after every 64 KiB."""

    def endless(parsed: ollama_models.Pull, tell: ollama_models.Report) -> None:
        for done in itertools.count():
            tell({"status": "pulling", "digest": "sha256:0", "total": 1 << 40, "completed": done})
            time.sleep(0.002)

    def pulling() -> int:
        return sum(thread.name == "localqwen-pull" for thread in threading.enumerate())

    monkeypatch.setattr(ollama_models, "run_pull", endless)
    watched = [client.pull("qwen3:4b", stream=True) for _ in range(MOST_PULLS)]
    assert all(next(lines).status == "pulling" for lines in watched)
    with pytest.raises(ollama.ResponseError) as busy:
        client.pull("qwen3:8b")
    assert busy.value.status_code == 503
    assert pulling() == MOST_PULLS
    for lines in watched:
        lines.close()  # type: ignore[attr-defined]
    assert eventually(lambda: pulling() == 0)


def _pull(client: ollama.Client, size: int) -> None:
    with pytest.raises(ollama.ResponseError) as unknown:
        list(client.pull("qwen3:99b", stream=True))
    assert unknown.value.status_code == 404
    lines = list(client.pull("qwen3:0.6b", stream=True))
    assert (lines[0].status, lines[-1].status) == ("pulling manifest", "success")
    loading = [line for line in lines if (line.status or "").startswith("pulling ") and line.digest]
    assert loading[-1].completed == loading[-1].total == size
    assert [line.completed for line in loading] == sorted(line.completed or 0 for line in loading)
    assert client.pull("qwen3:0.6b").status == "success"
    assert "qwen3:0.6b" in [model.model for model in client.list().models]
    answer = client.chat("qwen3:0.6b-q8_0", HI, think=False, options={"num_predict": 3})
    assert (answer.model, answer.eval_count) == ("qwen3:0.6b-q8_0", 3)
