"""`localqwen run`: one prompt, one answer. The answer alone on stdout; thinking and statistics on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import click

from localqwen.chat import ChatModel
from localqwen.chat.answer import Answer
from localqwen.chat.messages import Message, Request, Started, Tool
from localqwen.cli import INTERRUPTED, console
from localqwen.cli.answer import receive
from localqwen.cli.config import ConfiguredCommand
from localqwen.cli.loading import Loading, loading_options
from localqwen.cli.options import Settings, answer_options, json_option
from localqwen.errors import UsageError


@click.command("run", cls=ConfiguredCommand)
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--system", default="", metavar="TEXT", help="System prompt.")
@click.option(
    "--tools", type=click.Path(path_type=Path), metavar="FILE", help="Tools that the model may call: a JSON list."
)
@answer_options
@loading_options
@json_option
def command(
    model: str,
    prompt: tuple[str, ...],
    system: str,
    tools: Path | None,
    settings: Settings,
    loading: Loading,
    as_json: bool,
) -> int:
    """Answer one PROMPT with MODEL: `demo`, a .gguf file or a checkpoint folder.

    Text from a pipe comes before the prompt:  cat notes.txt | localqwen run demo "Summarise this"
    """
    text = whole_prompt(piped_text(sys.stdin), prompt)
    request = settings.request([Message("user", text)], system=system, tools=read_tools(tools))
    opened = loading.open(loading.ensure(loading.resolve(model)))
    try:
        if as_json:
            return answer_json(opened, request, sys.stdout, sys.stderr)
        return answer(opened, request, sys.stdout, sys.stderr, settings)
    finally:
        opened.close()


def answer(model: ChatModel, request: Request, out: TextIO, aside: TextIO, settings: Settings) -> int:
    """Stream the answer to a request. Return the exit code."""
    printer = console.Printer(console.Channel(out), console.Channel(aside), settings.hide_thinking)
    received = None
    try:
        received = receive(model, request, printer.show)
    finally:
        printer.finish(newline_if_empty=received is not None and not received.tool_calls)
    if settings.stats:
        printer.note(console.stats_line(received, model))
    return _outcome(received, printer.aside)


def answer_json(model: ChatModel, request: Request, out: TextIO, aside: TextIO) -> int:
    """Write one JSON object to `out` when the answer is complete. Return the exit code."""
    channel = console.Channel(aside)

    def show_warnings(event: object) -> None:
        for warning in event.warnings if isinstance(event, Started) else ():
            channel.line(f"warning: {warning}")

    received = receive(model, request, show_warnings)
    out.write(json.dumps(report(model, received), ensure_ascii=False) + "\n")
    out.flush()
    return _outcome(received, channel)


def report(model: ChatModel, received: Answer) -> dict[str, Any]:
    """Return the object of --json. A stopped answer has no counts, and "interrupted" as its finish reason."""
    done = received.finished
    names = ("first_token_ms", "first_answer_ms", "prompt_per_second", "predicted_per_second")
    timing = {name: getattr(done.timing, name) if done else None for name in names}
    counts = ("prompt_tokens", "cached_tokens", "completion_tokens", "thinking_tokens")
    return {
        "model": model.name,
        "engine": model.engine_name,
        "content": received.content,
        "thinking": received.thinking or None,
        "tool_calls": [asdict(call) for call in received.tool_calls],
        "finish_reason": done.finish_reason if done else "interrupted",
        "budget_forced": bool(done and done.budget_forced),
        "usage": asdict(done.usage) if done else dict.fromkeys(counts),
        "timings": {"load_ms": model.load_ms, **timing},
    }


def _outcome(received: Answer, aside: console.Channel) -> int:
    if received.cut:
        aside.line(f"warning: {console.LENGTH_WARNING}")
    return 0 if received.finished else INTERRUPTED


def whole_prompt(piped: str, words: Sequence[str]) -> str:
    """Return the piped text and the words as one prompt. Raise UsageError if both are empty."""
    parts = [part for part in (piped.strip("\n"), " ".join(words)) if part.strip()]
    if not parts:
        raise UsageError("there is no prompt", 'localqwen run demo "What is 17 + 25?"; to talk: localqwen chat')
    text = "\n\n".join(parts)
    if any("\ud800" <= character <= "\udfff" for character in text):  # Python's mark for bytes that are not UTF-8
        raise UsageError("the prompt is not UTF-8 text", "use a terminal that writes UTF-8")
    return text


def piped_text(stdin: TextIO | None) -> str:
    """Return the text of a pipe or file, "" for a terminal or a closed input. Raise UsageError if it is not UTF-8."""
    if stdin is None or stdin.closed or stdin.isatty():
        return ""
    try:
        return stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise UsageError(
            f"standard input is not UTF-8 text: byte 0x{exc.object[exc.start]:02x} at position {exc.start}",
            "convert it first, e.g. iconv -f latin1 -t utf-8 FILE | localqwen run …",
        ) from exc


def read_tools(path: Path | None) -> tuple[Tool, ...]:
    """Return the tools of a JSON list, in OpenAI's shape or as functions. Raise UsageError that names the entry."""
    if path is None:
        return ()
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror}", "give the path of a JSON file") from exc
    except ValueError as exc:
        raise UsageError(f"{path} is not JSON: {exc}", _TOOLS_HINT) from exc
    if not isinstance(listed, list):
        raise UsageError(f"{path} does not contain a list", _TOOLS_HINT)
    return tuple(_tool(entry, f"tool {number} of {path}") for number, entry in enumerate(listed, 1))


_TOOLS_HINT = 'write [{"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}]'


def _tool(entry: Any, where: str) -> Tool:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UsageError(f"{where} has no name", _TOOLS_HINT)
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise UsageError(f"{where}: its parameters are not an object", _TOOLS_HINT)
    return Tool(function["name"], str(function.get("description") or ""), parameters)
