"""Qwen-Agent's assistant with the MCP server of the time over stdio, against a real port.

The scripted engine plays the model: the demo thinks and calls, but it writes `time` for `time-get_current_time` and
made-up time zones; such names are beyond 3 million parameters. All else is real: the client, the tool's server, the
chat template of Qwen3, and the tool call between them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from local_server import serving

from localqwen.engines.scripted import ScriptedEngine
from localqwen.models import provide

CHILD = Path(__file__).parents[1] / "support" / "qwen_agent_child.py"
CALL = '<tool_call>\n{"name": "time-get_current_time", "arguments": {"timezone": "Asia/Shanghai"}}\n</tool_call>'
ANSWERS = (f"<think>\nI look at the clock.\n</think>\n\n{CALL}", "<think>\nIt is known now.\n</think>\n\nIt is late.")


def template() -> str:
    config = json.loads((provide.demo_checkpoint() / "tokenizer_config.json").read_text("utf-8"))
    return str(config["chat_template"])


@pytest.mark.parametrize(
    "settings",
    [
        {},  # tools in Qwen-Agent's own prompt; it reads the calls out of the text
        {"use_raw_api": True},  # tools and calls in the fields of the OpenAI API
    ],
    ids=["own prompt", "raw api"],
)
def test_the_time_is_told_through_a_real_tool_call(settings: dict[str, Any], tmp_path: Path) -> None:
    engine = ScriptedEngine(ANSWERS, chat_template=template(), context_length=32768)
    with serving(engine, name="demo") as server:
        messages = ask(f"{server.url}/v1", settings, tmp_path)
        seen = engine.vocabulary()
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
    assert b"is_dst" in seen  # a word of the tool's answer alone: the model has read it


def ask(url: str, settings: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """In a process of its own, which leaves its threads and its working files behind there."""
    command = [sys.executable, str(CHILD), url, "what time is it", json.dumps(settings)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("MESSAGES ")]
    assert lines, done.stderr
    found: list[dict[str, Any]] = json.loads(lines[0].removeprefix("MESSAGES "))
    return found
