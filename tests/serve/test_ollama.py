"""Ollama's API: bodies in, lines out, as tables; then the real `ollama` client against a real port."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import make_checkpoint

import convert
from localqwen.chat.answer import Answer
from localqwen.chat.messages import (
    Finished,
    JsonFormat,
    Message,
    Overrides,
    Started,
    Text,
    Thinking,
    Timing,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
    Working,
)
from localqwen.engines import selection
from localqwen.errors import BadField, LocalqwenError, ModelNotFound, Unsupported
from localqwen.models import registry
from localqwen.models.listing import Listing, RemoteFile
from localqwen.models.local_files import LocalFile
from localqwen.models.names import Repository
from localqwen.models.pull import Plan, Step
from localqwen.serve.api import ParsedRequest, ResponseMeta
from localqwen.serve.model_names import KnownModel
from localqwen.serve.model_pool import ModelStatus
from localqwen.serve.ollama import chat as ollama_chat
from localqwen.serve.ollama import generate as ollama_generate
from localqwen.serve.ollama import models as ollama_models

META = ResponseMeta("0123456789abcdef01234567", "qwen3:4b", 1_750_000_000.25)
CREATED = "2025-06-15T15:06:40.250000Z"
USER = {"role": "user", "content": "hi"}
TIMING = Timing(2.0, 5.0, 7.0, 100.0, 50.0, prompt_ms=4.0, predicted_ms=60.0, total_ms=70.0)
END = Finished("stop", Usage(12, 4, 5, 2), TIMING)
NUMBERS = {
    "done": True,
    "done_reason": "stop",
    "total_duration": 72_000_000,
    "load_duration": 2_000_000,
    "prompt_eval_count": 12,
    "prompt_eval_duration": 4_000_000,
    "eval_count": 5,
    "eval_duration": 60_000_000,
}
EVENTS = [
    Started(12, 4, thinking=True),
    Working(3, 12),
    Thinking("let me"),
    Thinking(" see"),
    Text("Hello"),
    ToolCall("add", {"a": 1, "b": [2]}),
    ToolCall("now", {}),
    END,
]


def chat(**more: Any) -> ParsedRequest:
    parsed = ollama_chat.read({"model": "qwen3:4b", "messages": [USER], **more})
    return replace(parsed, extra={**parsed.extra, "load_ms": 2.0})


def generate(**more: Any) -> ParsedRequest:
    return ollama_generate.read({"model": "qwen3:4b", "prompt": "hi", **more})


def lines(parsed: ParsedRequest, events: list[Any]) -> list[dict[str, Any]]:
    stream = ollama_chat.Stream(parsed, META)
    sent = b"".join(stream.feed(event) for event in events) + stream.end()
    return [json.loads(line) for line in sent.splitlines()]


def test_a_chat_is_read_with_thinking_calls_and_results() -> None:
    call = {"id": "c1", "function": {"name": "add", "arguments": {"a": 1}}}
    parsed = chat(
        messages=[
            {"role": "system", "content": "Be brief."},
            USER,
            {"role": "assistant", "content": None, "thinking": "I add", "tool_calls": [call]},
            {"role": "tool", "content": "3", "tool_name": "add", "tool_call_id": "c1"},
        ],
        tools=[
            {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
        ],
    )
    assert parsed.request.messages == (
        Message("system", "Be brief."),
        Message("user", "hi"),
        Message("assistant", "", "I add", (ToolCall("add", {"a": 1}, "c1"),)),
        Message("tool", "3", tool_call_id="c1"),
    )
    assert parsed.request.tools == (Tool("add", "Adds.", {"type": "object"}),)
    assert parsed.stream


@pytest.mark.parametrize(
    ("think", "switch", "budget"),
    [
        (None, None, None),
        (True, True, None),
        (False, False, None),
        ("low", True, 2048),
        ("medium", True, 8192),
        ("high", True, None),
        ("none", False, None),
    ],
)
def test_think_is_a_switch_or_a_level_that_is_a_budget(think: Any, switch: bool | None, budget: int | None) -> None:
    for parsed in (chat(think=think), generate(think=think)):
        assert (parsed.request.think, parsed.request.budget) == (switch, budget)


def test_options_become_sampling_limit_and_stops() -> None:
    options = {
        "temperature": 0, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "seed": 7, "num_predict": 9, "stop": ["END", "\n"],
        "repeat_penalty": 1.1, "presence_penalty": 1.5, "frequency_penalty": 0.5, "num_ctx": 4096, "mirostat": 2,
    }  # fmt: skip
    parsed = chat(options=options)
    assert parsed.request.sampling == Overrides(0.0, 0.9, 40, 0.05, 1.5, 0.5, 1.1, 7)
    assert (parsed.request.max_tokens, parsed.request.stop) == (9, ("END", "\n"))


@pytest.mark.parametrize(("limit", "tokens"), [(None, None), (-1, None), (-2, None), (0, None), (1, 1)])
def test_num_predict_below_one_is_no_limit(limit: int | None, tokens: int | None) -> None:
    assert chat(options={"num_predict": limit}).request.max_tokens == tokens


@pytest.mark.parametrize(
    ("format", "expected"),
    [(None, None), ("", None), ("json", JsonFormat()), ({"type": "object"}, JsonFormat({"type": "object"}))],
)
def test_format_is_json_or_a_schema(format: Any, expected: JsonFormat | None) -> None:
    assert chat(format=format).request.format == generate(format=format).request.format == expected


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [
        (None, None), (0, 0), ("0", 0), (-1, math.inf), ("-1", math.inf), ("-1m", math.inf), (90, 90), (1.5, 1.5),
        ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("300ms", 0.3), ("10s", 10), ("24h", 86400),
    ],
)  # fmt: skip
def test_keep_alive_is_seconds_or_a_duration(keep_alive: Any, seconds: float | None) -> None:
    assert chat(keep_alive=keep_alive).keep_alive == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("parsed", "reason"),
    [
        (chat(messages=[]), "load"),
        (ollama_chat.read({"model": "qwen3:4b"}), "load"),
        (chat(messages=[], keep_alive=0), "unload"),
        (generate(prompt=""), "load"),
        (generate(prompt="", raw=True, keep_alive="0s"), "unload"),
    ],
)
def test_nothing_to_answer_loads_or_unloads_the_model(parsed: ParsedRequest, reason: str) -> None:
    assert ollama_chat.is_load(parsed)
    answer = ollama_chat.loaded(parsed, META)
    assert (answer["done"], answer["done_reason"], answer["created_at"]) == (True, reason, CREATED)


def test_generate_makes_a_conversation_of_system_and_prompt_and_raw_makes_none() -> None:
    parsed = generate(system="Be brief.", template="")
    assert parsed.request.messages == (Message("system", "Be brief."), Message("user", "hi"))
    raw = generate(raw=True)
    assert (raw.request.messages, raw.request.prompt) == ((), "hi")
    assert not ollama_chat.is_load(raw)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [USER]}, "model"),
        ({"model": 3, "messages": [USER]}, "model"),
        ({"model": "m", "messages": "hi"}, "messages"),
        ({"model": "m", "messages": ["hi"]}, "messages[0]"),
        ({"model": "m", "messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"model": "m", "messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"model": "m", "messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content"),
        ({"model": "m", "messages": [{**USER, "images": ["aGk="]}]}, "messages[0].images"),
        ({"model": "m", "messages": [{**USER, "tool_calls": [{"function": {"name": "f"}}]}]}, "messages[0].role"),
        ({"model": "m", "messages": [USER, {"role": "assistant", "content": "So"}]}, "messages"),
        ({"model": "m", "messages": [USER], "tools": [{"function": {}}]}, "tools[0].function.name"),
        ({"model": "m", "messages": [USER], "think": "deeply"}, "think"),
        ({"model": "m", "messages": [USER], "think": 3}, "think"),
        ({"model": "m", "messages": [USER], "options": {"top_p": 2}}, "options.top_p"),
        ({"model": "m", "messages": [USER], "options": {"num_ctx": "big"}}, "options.num_ctx"),
        ({"model": "m", "messages": [USER], "options": []}, "options"),
        ({"model": "m", "messages": [USER], "format": "xml"}, "format"),
        ({"model": "m", "messages": [USER], "keep_alive": "soon"}, "keep_alive"),
        ({"model": "m", "messages": [USER], "keep_alive": True}, "keep_alive"),
        ({"model": "m", "messages": [USER], "top_logprobs": 3}, "top_logprobs"),
        ({"model": "m", "messages": [USER], "stream": "yes"}, "stream"),
    ],
)
def test_a_chat_that_is_wrong_names_the_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as caught:
        ollama_chat.read(body)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"suffix": "return x"}, "suffix"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"images": ["aGk="]}, "images"),
        ({"raw": True, "system": "Be brief."}, "system"),
        ({"raw": True, "think": True}, "think"),
        ({"prompt": 3}, "prompt"),
    ],
)
def test_what_generate_cannot_do_is_an_error_that_names_the_field(more: dict[str, Any], field: str) -> None:
    with pytest.raises(BadField) as caught:
        generate(**more)
    assert caught.value.field == field


def test_a_context_beyond_the_servers_is_refused_with_both_numbers() -> None:
    ollama_chat.check_context(chat(), 4096)
    ollama_chat.check_context(chat(options={"num_ctx": 4096}), 4096)
    with pytest.raises(Unsupported, match=r"8,192 tokens, this server's has 4,096"):
        ollama_chat.check_context(chat(options={"num_ctx": 8192}), 4096)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("qwen3:4b-q4_K_M", "qwen3:4b-q4_K_M"),
        ("hf.co/Qwen/Qwen3-4B-GGUF:Q8_0", "hf:Qwen/Qwen3-4B-GGUF:Q8_0"),
        ("huggingface.co/o/r", "hf:o/r"),
        ("modelscope.cn/o/r", "ms:o/r"),
    ],
)
def test_a_repository_may_have_ollamas_name_and_the_answer_repeats_it(typed: str, name: str) -> None:
    parsed = chat(model=typed)
    assert parsed.model == name
    assert ollama_chat.loaded(parsed, META)["model"] == typed


def test_a_streamed_chat_is_a_line_for_every_piece_and_the_numbers_last() -> None:
    def message(**parts: Any) -> dict[str, Any]:
        said = {"role": "assistant", "content": "", **parts}
        return {"model": "qwen3:4b", "created_at": CREATED, "message": said, "done": False}

    calls = [
        {"id": "call_0123456789abcdef0000", "function": {"index": 0, "name": "add", "arguments": {"a": 1, "b": [2]}}},
        {"id": "call_0123456789abcdef0001", "function": {"index": 1, "name": "now", "arguments": {}}},
    ]
    assert lines(chat(), EVENTS) == [
        message(thinking="let me"),
        message(thinking=" see"),
        message(content="Hello"),
        message(tool_calls=calls[:1]),
        message(tool_calls=calls[1:]),
        {**message(), **NUMBERS},
    ]
    whole = ollama_chat.response_body(chat(), META, [Answer.of(EVENTS)])
    assert whole == {**message(content="Hello", thinking="let me see", tool_calls=calls), **NUMBERS}


def test_generate_answers_in_response_and_thinking() -> None:
    events = [Started(12, 4, thinking=True), Thinking("hm"), Text("Hello"), END]
    parts = [{key: line[key] for key in ("response", "thinking") if key in line} for line in lines(generate(), events)]
    assert parts == [{"response": "", "thinking": "hm"}, {"response": "Hello"}, {"response": ""}]
    whole = ollama_chat.response_body(generate(), META, [Answer.of(events)])
    assert (whole["response"], whole["thinking"], whole["done_reason"]) == ("Hello", "hm", "stop")


def test_an_answer_that_was_cut_says_length() -> None:
    cut = Finished("length", Usage(1, 0, 1, 0), Timing())
    assert lines(chat(), [cut])[-1]["done_reason"] == "length"


def test_logprobs_are_told_where_they_were_asked_for() -> None:
    top = (TokenLogprob(b"Hi", -0.25), TokenLogprob(b"Yo", -math.inf))
    events = [Started(1, 0, thinking=False), Text("Hi", (TokenLogprob(b"Hi", -0.25, top),)), END]
    told = lines(chat(logprobs=True, top_logprobs=2), events)[0]["logprobs"]
    assert told == ollama_chat.response_body(chat(logprobs=True), META, [Answer.of(events)])["logprobs"]
    assert [(entry["token"], entry["logprob"]) for entry in told[0]["top_logprobs"]] == [("Hi", -0.25), ("Yo", -9999.0)]
    assert "logprobs" not in lines(chat(), events)[0]


def test_an_error_has_one_field_with_the_hint_also_in_mid_stream() -> None:
    problem = ModelNotFound("there is no model 'x'", "models here: demo")
    assert ollama_chat.error(problem) == {"error": "there is no model 'x' (models here: demo)"}
    assert json.loads(ollama_chat.Stream(chat(), META).error(problem)) == ollama_chat.error(problem)


FILES = (RemoteFile("a.gguf", 3 << 20, "a" * 64), RemoteFile("b.json", 100, "b" * 40))
PLAN = Plan(
    Repository("hf", "o/r"), "hf", Listing("o/r", "main", "c" * 40, FILES), FILES, "Q8_0", True, None, 0  # type: ignore[arg-type]
)  # fmt: skip


def test_a_pull_tells_each_files_bytes_under_its_digest_and_not_every_step() -> None:
    told: list[Any] = []
    report = ollama_models.Lines(PLAN, told.append)
    total = PLAN.total_bytes
    for done in range(0, (3 << 20) + 1, 1 << 16):
        report(Step("load", "a.gguf", done, total))
    report(Step("check", "a.gguf", 3 << 20, total))
    report(Step("load", "b.json", (3 << 20) + 100, total))
    report(Step("convert", "r", 10, 20))
    assert [(line["status"], line.get("digest", "")[:9], line["completed"], line["total"]) for line in told] == [
        ("pulling aaaaaaaaaaaa", "sha256:aa", 0, 3 << 20),
        ("pulling aaaaaaaaaaaa", "sha256:aa", 1 << 20, 3 << 20),
        ("pulling aaaaaaaaaaaa", "sha256:aa", 2 << 20, 3 << 20),
        ("pulling aaaaaaaaaaaa", "sha256:aa", 3 << 20, 3 << 20),
        ("verifying aaaaaaaaaaaa", "sha256:aa", 3 << 20, 3 << 20),
        ("pulling bbbbbbbbbbbb", "sha1:bbbb", 100, 100),
        ("converting to Q8_0", "", 10, 20),
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": "demo"}, ollama_models.Pull("demo", stream=True)),
        ({"name": "demo", "stream": False}, ollama_models.Pull("demo", stream=False)),
    ],
)
def test_a_pull_is_read_under_both_names_of_its_field(body: dict[str, Any], expected: ollama_models.Pull) -> None:
    assert ollama_models.read_pull(body) == expected


@pytest.mark.parametrize("name", ["/etc/passwd", "./README.md", "README.md", "no-such-model"])
def test_a_pull_of_a_path_tells_nothing_of_the_disk(name: str) -> None:
    with pytest.raises(LocalqwenError) as caught:
        ollama_models.run_pull(ollama_models.Pull(name, stream=False), lambda line: None)
    assert caught.value.http_status == 404


def demo_model() -> KnownModel:
    found = selection.resolve("demo")
    return KnownModel("demo", found.files, found.entry)


def test_what_is_here_and_what_is_loaded_have_names_with_tags() -> None:
    entry = registry.find("qwen3:4b")
    file = LocalFile("qwen3:4b", Path("gone.gguf"), 2_500_000_000, "Q4_K_M", 1_750_000_000.0, entry=entry)
    known = [demo_model(), KnownModel("qwen3:4b", file, entry)]
    demo, real = ollama_models.tags(known, {"demo": "it died"})["models"]
    assert (demo["name"], demo["model"], demo["size"] > 1_000_000) == ("demo:latest", "demo:latest", True)
    assert (demo["set_aside"], "set_aside" in real) == ("it died", False)
    assert (real["name"], real["size"], real["modified_at"]) == ("qwen3:4b", 2_500_000_000, "2025-06-15T15:06:40Z")
    assert real["details"]["parameter_size"] == "4.0B"
    assert real["details"]["quantization_level"] == "Q4_K_M"
    loaded = [
        ModelStatus("demo", "llama.cpp", 4096, 4, 0, 0, 60.0),
        ModelStatus("qwen3:4b", "llama.cpp", 40960, 4, 0, 0, math.inf),
    ]
    running = ollama_models.ps(loaded, known, 1_750_000_000.0)["models"]
    assert [(each["name"], each["context_length"], each["expires_at"]) for each in running] == [
        ("demo:latest", 4096, "2025-06-15T15:07:40Z"),
        ("qwen3:4b", 40960, "9999-12-31T23:59:59Z"),
    ]


def test_a_model_without_an_entry_is_listed_with_what_its_files_say(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "mine")
    convert.convert_to_mlx(folder, tmp_path / "mine-4bit", bits=4, group_size=32)
    for place, quant in ((folder, "BF16"), (tmp_path / "mine-4bit", "4bit")):
        known = KnownModel(place.name, selection.resolve(place).files)
        listed, shown = ollama_models.tags([known])["models"][0], ollama_models.show(known)
        details = {"format": "safetensors", "family": "qwen3", "quantization_level": quant}
        assert details.items() <= listed["details"].items()
        assert listed["details"] == shown["details"]
        assert listed["details"]["parameter_size"].endswith("M")
        assert listed["size"] > 0
        assert shown["model_info"]["qwen3.context_length"] > 0
        assert shown["capabilities"][0] == "completion"
    gone = KnownModel("mine", selection.resolve(folder).files)
    shutil.rmtree(folder)
    assert ollama_models.tags([gone])["models"][0]["details"]["parameter_size"] == ""


@pytest.mark.parametrize(
    ("template", "mode"),
    [
        ("{% if enable_thinking is defined %}…", "switch"),
        ("…{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}", "always"),
        ("<think>…{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}", "never"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "never"),
        ("", "never"),
    ],
)
def test_a_template_is_read_and_never_run_in_the_servers_process(template: str, mode: str) -> None:
    assert ollama_models._mode(template) == mode


def test_a_model_is_shown_from_its_header() -> None:
    shown = ollama_models.show(demo_model())
    assert shown["details"]["parameter_size"] == "3.30M"
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert "<|im_start|>" in shown["template"]
    assert shown["model_info"]["general.architecture"] == "qwen3"
    assert shown["model_info"]["qwen3.context_length"] > 0
    assert shown["parameters"].splitlines()[0].split() == ["temperature", "0.6"]
