"""Qwen-Agent's assistant with the MCP server of the time over stdio, against a real port.

The scripted engine plays the model: the demo thinks and calls, but it writes `time` for `time-get_current_time` and
made-up time zones; such names are beyond 3 million parameters. All else is real: the client, the tool's server, the
chat template of Qwen3, and the tool call between them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from local_server import serving

from localqwen.engines.scripted import ScriptedEngine
from localqwen.models import converted

CHILD = Path(__file__).parents[1] / "support" / "qwen_agent_child.py"
CALL = '<tool_call>\n{"name": "time-get_current_time", "arguments": {"timezone": "Asia/Shanghai"}}\n</tool_call>'
ANSWERS = (f"<think>\nI look at the clock.\n</think>\n\n{CALL}", "<think>\nIt is known now.\n</think>\n\nIt is late.")


def template() -> str:
    config = json.loads((converted.demo_checkpoint() / "tokenizer_config.json").read_text("utf-8"))
    return str(config["chat_template"])


#: Where the tools stand -> Qwen-Agent's settings for it.
SETTINGS: dict[str, dict[str, Any]] = {
    "own prompt": {},  # Qwen-Agent's prompt, and it reads the calls out of the text
    "raw api": {"use_raw_api": True},  # the fields of the OpenAI API
}
Asked = dict[str, tuple[list[bytes], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """The words that the engine of each of SETTINGS has read, and the messages of that conversation."""
    with ExitStack() as servers:
        engines = [ScriptedEngine(ANSWERS, chat_template=template(), context_length=32768) for _ in SETTINGS]
        urls = [f"{servers.enter_context(serving(engine, name='demo')).url}/v1" for engine in engines]
        messages = ask(urls, list(SETTINGS.values()), tmp_path_factory.mktemp("agent"))
        words = [engine.vocabulary() for engine in engines]
    return dict(zip(SETTINGS, zip(words, messages, strict=True), strict=True))


@pytest.mark.parametrize("tools", SETTINGS)
def test_the_time_is_told_through_a_real_tool_call(tools: str, asked: Asked) -> None:
    words, messages = asked[tools]
    called = next(message["function_call"] for message in messages if message.get("function_call"))
    assert called["name"] == "time-get_current_time"
    assert json.loads(called["arguments"]) == {"timezone": "Asia/Shanghai"}
    told = json.loads(next(message["content"] for message in messages if message["role"] == "function"))
    assert told["timezone"] == "Asia/Shanghai"
    assert abs(datetime.now(UTC) - datetime.fromisoformat(told["datetime"])) < timedelta(minutes=5)
    assert messages[-1]["content"] == "It is late."
    assert [message["reasoning_content"] for message in messages if message.get("reasoning_content")] == [
        "I look at the clock.",
        "It is known now.",
    ]
    assert b"is_dst" in words  # a word of the tool's answer alone: the model has read it


def ask(urls: list[str], settings: list[dict[str, Any]], folder: Path) -> list[list[dict[str, Any]]]:
    """In a process of its own, which leaves its threads and its working files behind there."""
    arguments = [part for url, each in zip(urls, settings, strict=True) for part in (url, json.dumps(each))]
    command = [sys.executable, str(CHILD), "what time is it", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("MESSAGES ")]
    assert len(lines) == len(urls), done.stderr
    return [json.loads(line.removeprefix("MESSAGES ")) for line in lines]
