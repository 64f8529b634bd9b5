"""What an earlier version has written is read: conversations, runs, settings, conversions (fixtures/README.md)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import select
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from checkpoints import Shape, make_checkpoint, tokenizer_config, write_json
from public_surface import FIXTURES, TINY, TINY_MLX, call, call_json, parsed

import localqwen

ROOT = Path(__file__).parents[2]
SUMS, KILLED, WEATHER, GREETINGS = (
    "20261128-114050-615abf.jsonl",
    "20261128-114050-9cb476.jsonl",
    "20261128-114049-ef65d0.jsonl",
    "20261128-114056-b6b5b2.jsonl",
)
SPEED, POCKET, CHAT, SUSTAIN, QUALITY, STOPPED = (
    "20261128-114105-d1ba",
    "20261128-114108-9e22",
    "20261128-114111-dc55",
    "20261128-114114-d1d6",
    "20261128-114124-901b",
    "20261128-114146-bc93",
)
RUNS = (SPEED, POCKET, CHAT, SUSTAIN, QUALITY, STOPPED)
SHA256 = "5bd38e38120e23066a1e3d4a13ffb8726ac283ec759afb53c367256d062c4034"
BUDGET_ENDS = "Considering the limited time by the user"


@pytest.fixture(scope="module")
def used() -> Path:
    """A home in which the demo model has run: it is converted, and the engine is probed."""
    call_json("run", "demo", "hi", "--json", "--threads", "1", "--engine", "gguf")
    return Path(os.environ["LOCALQWEN_HOME"])


@pytest.fixture
def home(used: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home that the earlier version left; without the user's models.toml, which a process reads only once."""
    folder = tmp_path / "home"
    shutil.copytree(FIXTURES / "home", folder, symlinks=True)
    (folder / "models.toml").unlink()
    for file in (used / "cache" / "converted").glob("demo-*-Q8_0.gguf*"):
        shutil.copy2(file, folder / "cache" / "converted")
    shutil.copy(used / "cache" / "probe.json", folder / "cache")
    (link,) = (folder / "modelscope").rglob("small-q8_0.gguf")
    link.unlink()  # an archive may have made a file of it
    link.symlink_to(f"../../blobs/{SHA256}")
    monkeypatch.setenv("LOCALQWEN_HOME", str(folder))
    return folder


# Conversations


#: A template that shows all of every message, where the makers' own drops the thinking of earlier answers.
SHOWS_EVERYTHING = """\
{%- for message in messages %}
<|im_start|>{{ message.role }}{{ message.reasoning_content }}|{{ message.content }}
    {%- for call in message.tool_calls %}|{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor -%}
<|im_end|>
{%- endfor -%}
<|im_start|>assistant
{%- if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"""


@pytest.fixture(scope="module")
def showing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose prompts hold everything that a conversation knows."""
    folder = make_checkpoint(tmp_path_factory.mktemp("model") / "Showing", Shape(hidden=64, layers=1))
    write_json(folder / "tokenizer_config.json", tokenizer_config() | {"chat_template": SHOWS_EVERYTHING})
    return folder


def go_on(home: Path, log: str, *lines: str, flags: Sequence[str | Path] = ()) -> str:
    """Continue a conversation from a pipe, as the one that was written to last. Return what is said beside answers."""
    os.utime(home / "conversations" / log, (2**31, 2**31))
    code, _, aside = call("chat", *flags, "--continue", "--stats", stdin="".join(f"{line}\n" for line in lines))
    assert code == 0, aside
    return aside


def prompt_tokens(aside: str) -> int:
    """Return how long the prompt of the last answer was, from its statistics."""
    return int(re.findall(r"prompt ([\d,]+) tokens", aside)[-1].replace(",", ""))


def tokens_of(*messages: Mapping[str, Any], model: str | Path = "demo", thinking: bool = True) -> int:
    """Return how long the prompt of these messages is."""
    from localqwen import engines

    with contextlib.closing(engines.open(model, context_length=64, threads=1)) as engine:
        template = localqwen.chat.template.ChatTemplate(engine.chat_template, engine.special_tokens)
        return len(engine.tokenize(template.render(messages, enable_thinking=thinking), special=True))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, thinking: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "reasoning_content": thinking, **more}


def test_a_conversation_goes_on_with_its_settings(home: Path) -> None:
    """The last word for each setting counts; what was taken back is gone."""
    aside = go_on(home, SUMS, "/set", "/budget", "/system", "/undo", "/undo", "/undo")
    shown = [("temperature", "0"), ("seed", "7"), ("max_tokens", "200"), ("stop", "'###'")]
    for name, value in shown:
        assert re.search(rf"\b{name}\s+{re.escape(value)}$", aside, re.MULTILINE), name
    assert re.search(r"\b6 tokens of thinking", aside)
    assert "Be brief." in aside
    questions = [aside.index(text) for text in ("thanks", "What is 123 + 456?", "What is 17 + 25?")]
    assert questions == sorted(questions)
    assert "2 + 3" not in aside


def test_a_conversation_goes_on_with_its_messages(home: Path) -> None:
    aside = go_on(home, SUMS, "thanks")
    assert BUDGET_ENDS in aside  # thinking is on, with a budget of six tokens
    said = [
        {"role": "system", "content": "Be brief."},
        *(user("What is 17 + 25?"), assistant("17 + 25 = 42.")),
        *(user("What is 123 + 456?"), assistant("123 + 456 = 579.", "Add 123")),
        *(user("thanks"), assistant("You're welcome! 😊", "A thank")),
    ]
    assert prompt_tokens(aside) == tokens_of(*said, user("thanks"))


def test_an_answer_that_was_cut_off_by_the_end_of_its_program_is_kept(home: Path) -> None:
    """And the torn line behind it is no line of the log that goes on."""
    aside = go_on(home, KILLED, "thanks /no_think")
    said = [user("hello /no_think"), assistant("Hello! I am the demo model of localqwen. How can I help? 👋")]
    said += [user("What is 345 + 678?"), assistant("345 + 678 = 1")]
    assert prompt_tokens(aside) == tokens_of(*said, user("thanks /no_think"), thinking=False)
    lines = (home / "conversations" / KILLED).read_text(encoding="utf-8").splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)


@pytest.mark.parametrize(("log", "kept"), [(SUMS, (0, 4, 5, 6, 7, 8)), (WEATHER, (0, 1))])
def test_thinking_and_tool_calls_of_a_conversation_are_kept(
    home: Path, showing: Path, log: str, kept: tuple[int, ...]
) -> None:
    lines = (home / "conversations" / log).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    logged = [record["message"] for record in records if record.get("type") == "message"]
    said = [logged[number] for number in kept]
    assert any(message.get("reasoning_content") for message in said)
    assert any(message.get("tool_calls") for message in said) is (log == WEATHER)
    system = {"role": "system", "content": records[1]["text"]}
    aside = go_on(home, log, "thanks /no_think", flags=[showing, "--max-tokens", "1", "--ctx", "2048"])
    asked = user("thanks /no_think")
    assert prompt_tokens(aside) == tokens_of(system, *said, asked, model=showing, thinking=False)


def test_conversations_have_the_names_that_were_given_them(home: Path) -> None:
    code, _, aside = call("chat", "demo", stdin="/resume\n/resume greetings\n/undo\n/undo\n/resume sums\n/undo\n")
    assert code == 0, aside
    for name, messages in (("sums", 6), ("greetings", 4)):
        assert re.search(rf"^{name}\b.*\b{messages} messages\b.*\bdemo$", aside, re.MULTILINE), name
    taken_back = [aside.index(text) for text in ("Two lines: Über 日本", "What is 1 + 1?", "thanks")]
    assert taken_back == sorted(taken_back)


def test_the_lines_of_earlier_chats_are_recalled_on_a_terminal(home: Path) -> None:
    """The last of them was /bye: the key for the line before, and Enter, leave."""
    before = (home / "conversations" / "history").read_bytes()
    keyboard, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "localqwen", "chat", "demo", "--threads", "1"],
        preexec_fn=lambda: os.login_tty(os.dup(terminal)),  # noqa: PLW1509  (no threads here)
        env=os.environ | {"TERM": "dumb", "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        screen = b""
        while b">>>" not in screen and process.poll() is None:
            if select.select([keyboard], [], [], 0.05)[0]:
                screen += os.read(keyboard, 1 << 16)
        assert process.poll() is None, screen
        os.write(keyboard, b"\x1b[A\r")
        try:
            assert process.wait(30) == 0, screen
        finally:
            process.kill()
            os.close(terminal)
            os.close(keyboard)
    assert (home / "conversations" / "history").read_bytes().startswith(before)


# Runs of the benchmark


def records(name: str) -> list[dict[str, Any]]:
    lines = (FIXTURES / "home" / "bench" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_runs_are_listed(home: Path) -> None:
    found = call_json("bench", "list", "--json")["runs"]
    assert [run["id"] for run in found] == sorted(RUNS, reverse=True)
    assert {run["id"]: run["complete"] for run in found} == {run: run != STOPPED for run in RUNS}
    kinds = {run["id"]: {*run["kinds"]} - {"load", "memory"} for run in found}
    assert kinds == {
        SPEED: {"prefill", "decode"}, POCKET: {"prefill", "decode", "workload"}, CHAT: {"chat"},
        SUSTAIN: {"sustain"}, QUALITY: {"prefill", "decode", "quality"}, STOPPED: {"prefill", "decode"},
    }  # fmt: skip
    assert {run["id"]: run["subjects"] for run in found}[QUALITY] == ["demo gguf", "demo mlx"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_shown_with_everything_that_was_measured(home: Path, name: str) -> None:
    """Every sample of the log, and the median of each metric."""
    head, *lines = records(name)
    samples = [line for line in lines if "values" in line]
    shown = call_json("bench", "show", name, "--json")
    assert {key: shown[key] for key in head} == head
    assert shown["complete"] is (name != STOPPED)
    assert [shown["subjects"][0][key] for key in ("label", "engine", "quant")] == [
        lines_of_subjects(lines)[0][key] for key in ("label", "engine", "quant")
    ]
    assert shown["notes"] == [line["note"] for line in lines if "note" in line]
    kept = [sample for row in shown["rows"] for sample in row["samples"]]
    assert len(kept) == len(samples)
    assert [sample for sample in samples if sample not in kept] == []
    for row in shown["rows"]:
        for metric, summary in row["metrics"].items():
            values = [sample["values"][metric] for sample in row["samples"] if metric in sample["values"]]
            assert summary["median"] == pytest.approx(statistics.median(values)), (row["test"], metric)


def lines_of_subjects(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line["subject_of_run"] for line in lines if "subject_of_run" in line]


def test_verdicts_of_a_profile_are_kept(home: Path) -> None:
    shown = call_json("bench", "show", POCKET, "--json")
    assert shown["profile"] == "pocket"
    assert shown["verdicts"] == records(POCKET)[-1]["verdicts"]
    assert {each["limit"]: each["allowed"] for each in shown["verdicts"]}["memory"] == 2e9


def test_two_runs_are_compared(home: Path) -> None:
    rows = call_json("bench", "compare", SPEED, POCKET, "--json")["rows"]
    (row,) = [row for row in rows if row["test"]["kind"] == "decode" and row["metric"] == "tokens_per_second"]
    medians = [
        statistics.median(
            line["values"]["tokens_per_second"]
            for line in records(name)
            if line.get("test", {}).get("kind") == "decode"
        )
        for name in (SPEED, POCKET)
    ]
    assert row["medians"] == pytest.approx(medians)
    assert row["ratio"]["value"] == pytest.approx(medians[1] / medians[0])


@pytest.mark.parametrize("form", [(), ("--csv",), ("--markdown",), ("--llama-bench",)])
def test_a_run_is_found_by_last_by_its_beginning_and_as_a_file(home: Path, form: tuple[str, ...]) -> None:
    for one, other in (("last", STOPPED), ("last-5", SPEED), (SPEED[:-3], str(home / "bench" / f"{SPEED}.jsonl"))):
        shown, same = call("bench", "show", one, *form), call("bench", "show", other, *form)
        assert shown == same
        assert (shown[0], "demo" in shown[1]) == (0, True)


# What was measured of this machine


def fingerprint(home: Path) -> str:
    """Return the name of this build of llama.cpp on this processor: the key of what the probe has found."""
    (key,) = json.loads((home / "cache" / "probe.json").read_text())
    return str(key)


def test_tuned_settings_are_used(home: Path) -> None:
    """Kept per file, build and number of cores; those of another machine stay in the file and change nothing."""
    model, file = home / "models" / TINY.name, home / "cache" / "tuning.json"
    (earlier,) = json.loads(file.read_text()).items()
    key, values = earlier
    assert call_json("tune", model, "--show", "--json")["settings"] is None
    states = [[model.name, model.stat().st_size, fingerprint(home), cores] for cores in range(1, os.cpu_count() + 1)]
    keys = [hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16] for state in states]
    mine = {**values, "threads": 1, "batch": 64}
    file.write_text(json.dumps({key: values, **dict.fromkeys(keys, mine)}, indent=1))
    shown = call_json("tune", model, "--show", "--json")["settings"]
    assert {name: shown[name] for name in mine} == mine
    assert shown["tuned"] is True
    assert call("tune", model, "--forget")[0] == 0
    assert call_json("tune", model, "--show", "--json")["settings"] is None
    assert json.loads(file.read_text())[key] == values


def test_a_run_uses_what_was_probed_hashed_and_configured(home: Path) -> None:
    """The probe's finding, the digest of a file that has not changed, the user's profile, the file of defaults."""
    model, probed = home / "models" / TINY.name, home / "cache" / "probe.json"
    (before,) = json.loads((FIXTURES / "home" / "cache" / "probe.json").read_text()).values()
    probed.write_text(json.dumps({fingerprint(home): before | {"use_extra_bufts": False}}, indent=1))
    state = model.stat()
    key = hashlib.sha256(f"{model.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:24]
    (home / "cache" / "hashes" / key).write_text("ab" * 32)
    shown = call_json("bench", model, "--profile", "pocket", "--repeats", "1", "--json")
    (subject,) = shown["subjects"]
    assert subject["sha256"] == "ab" * 32
    assert subject["settings"]["use_extra_bufts"] is False
    assert subject["threads"] == 1
    workload = [row["test"] for row in shown["rows"] if row["test"]["kind"] == "workload"]
    assert [(test["prompt"], test["generate"], test["turn"]) for test in workload] == [(24, 8, 1), (24, 8, 2)]
    allowed = {each["limit"]: each["allowed"] for each in shown["verdicts"]}
    assert allowed == {"threads": 2, "memory": 2e9, "first_answer_ms": 60000, "tokens_per_second": 1}
    kept = call_json("bench", "show", shown["id"], "--json")
    assert {name: kept[name] for name in ("rows", "verdicts")} == {name: shown[name] for name in ("rows", "verdicts")}
    assert len(call_json("bench", "list", "--json")["runs"]) == len(RUNS) + 1


def test_foreign_findings_of_the_probe_are_asked_again(home: Path) -> None:
    shutil.copy(FIXTURES / "home" / "cache" / "probe.json", home / "cache")
    foreign = fingerprint(home)
    report = call_json("run", "demo", "What is 2 + 3?", "--no-think", "--json", "--engine", "gguf")
    assert report["content"] == "2 + 3 = 5."
    assert fingerprint(home) != foreign


# What a user has written


def test_config_toml_gives_the_defaults(home: Path) -> None:
    run, chat = parsed("run", "demo", "hi"), parsed("chat", "demo")
    expected = {"--threads": 1, "--ctx": 512, "--max-tokens": 40, "--temperature": 0, "--stop": ["###"]}
    assert {flag: run[flag] for flag in expected} == expected
    assert {flag: chat[flag] for flag in ("--threads", "--budget", "--ctx")} == {
        "--threads": 1, "--budget": 300, "--ctx": None,
    }  # fmt: skip
    bench, serve = parsed("bench", "demo"), parsed("serve", "demo")
    assert [bench[flag] for flag in ("--prompt", "--generate", "--repeats", "--threads")] == [[8, 16], 4, 2, [1]]
    assert [serve[flag] for flag in ("--cors", "--keep-alive")] == [["https://a.example"], 90]


def child_json(*arguments: str) -> Any:
    """Run a command in a process of its own, with the models of `models.toml`."""
    home = Path(os.environ["LOCALQWEN_HOME"])
    shutil.copy(FIXTURES / "home" / "models.toml", home)
    command = [sys.executable, "-m", "localqwen", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_models_toml_adds_models(home: Path) -> None:
    """An entry with a shape of its own, by name and alias, and one that takes its shape from ours."""
    listed = {row["name"]: row for row in child_json("list", "--all", "--json")}
    assert [listed["house:tiny"][key] for key in ("quant", "bytes", "download_bytes")] == ["Q8_0", 60_000, 80_000]
    sequel, release = (child_json("show", name, "--json") for name in ("house:sequel", "qwen3:4b"))
    assert sequel["repository"] == "somebody/Sequel"
    for key in ("parameters", "layers", "kv_heads", "head_length", "context_length", "yarn_context", "memory"):
        assert sequel[key] == release[key], key
    tiny = child_json("show", "house:small", "--json")
    assert (tiny["name"], tiny["description"]) == ("house:tiny", "A model of this house.")
    assert (tiny["thinking"], tiny["layers"], tiny["here"]) == ("never", 1, True)
    (preset,) = tiny["sampling"].values()
    assert (preset["temperature"], preset["top_p"]) == (0.3, 0.9)


def test_a_model_of_models_toml_runs(home: Path) -> None:
    """It was converted from its repository before."""
    report = child_json("run", "house:tiny", "hi", "--json", "--max-tokens", "2")
    assert (report["model"], report["usage"]["completion_tokens"] > 0) == ("house:tiny", True)
    listed = {entry["name"]: entry["path"] for entry in child_json("list", "--json")}
    assert listed["house:tiny"] == str(home / NAMES["hf:somebody/Tiny:q8_0"])


# Models and conversions

NAMES = {
    "tiny": f"models/{TINY.name}",
    "Tiny": "cache/converted/Tiny-ad086341484d-Q8_0.gguf",
    "hf:somebody/Tiny:q8_0": "cache/converted/somebody--Tiny/Tiny-d03c70c710e6-Q8_0.gguf",
    "qwen3:4b-instruct-2507-q8_0": (
        "cache/converted/Qwen--Qwen3-4B-Instruct-2507/Qwen3-4B-Instruct-2507-d03c70c710e6-Q8_0.gguf"
    ),
    "ms:somebody/Small:q8_0": (
        "modelscope/models--somebody--Small/snapshots/d76eb79941203a5cb110aac33292aef6a7983f05/small-q8_0.gguf"
    ),
}


def typed(home: Path, name: str) -> str:
    """Return what a user types: the name, or the path where a file has none."""
    return name if ":" in name else str(home / NAMES[name])


def test_every_model_on_disk_has_its_name(home: Path) -> None:
    listed = {entry["name"]: entry for entry in call_json("list", "--json")}
    assert {name: entry["path"] for name, entry in listed.items()} == {n: str(home / path) for n, path in NAMES.items()}
    assert {(entry["quant"], entry["engine"]) for entry in listed.values()} == {("Q8_0", "llama.cpp")}


@pytest.mark.parametrize("name", NAMES)
def test_every_model_on_disk_runs_and_is_whole(home: Path, name: str) -> None:
    report = call_json("run", typed(home, name), "hi", "--json", "--max-tokens", "2")
    assert (report["engine"], report["usage"]["completion_tokens"] > 0) == ("llama.cpp", True)
    (file,) = call_json("verify", typed(home, name), "--json")["files"]
    assert (file["path"], file["ok"], file["digest"]) == (
        str(home / NAMES[name]), True, SHA256 if name.startswith("ms:") else None,
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_removed_with_its_manifest(home: Path, name: str) -> None:
    path = home / NAMES[name]
    manifest = path.with_name(f"{path.name}.json")
    had_one = manifest.exists()
    removed = call_json("rm", typed(home, name), "--json")["removed"]
    assert {str(path)} | ({str(manifest)} if had_one else set()) <= set(removed)
    assert not path.exists()
    assert not manifest.exists()
    assert name not in [entry["name"] for entry in call_json("list", "--json")]


def test_the_converted_demo_model_is_used_again(home: Path) -> None:
    (file,) = (home / "cache" / "converted").glob("demo-*.gguf")
    assert re.fullmatch(r"demo-[0-9a-f]{12}-Q8_0\.gguf", file.name)
    before = file.stat().st_mtime_ns
    call_json("run", "demo", "hi", "--json", "--engine", "gguf")
    assert [*(home / "cache" / "converted").glob("demo-*.gguf")] == [file]
    assert file.stat().st_mtime_ns == before


def test_an_mlx_folder_runs_and_goes_back_to_the_official_layout(home: Path, tmp_path: Path) -> None:
    shown = call_json("show", TINY_MLX, "--json")
    assert (shown["layers"], shown["kv_heads"], shown["head_length"], shown["bytes"]) == (1, 1, 32, 13568)
    report = call_json("run", TINY_MLX, "hi", "--json", "--max-tokens", "2")
    assert (report["engine"], report["usage"]["completion_tokens"] > 0) == ("mlx", True)
    back = tmp_path / "back"
    written = call_json("convert", TINY_MLX, "--dequantize", "--out", back, "--json")
    assert (written["path"], written["quant"]) == (str(back), "16bit")
    assert json.loads((back / "config.json").read_text())["hidden_size"] == 32


def test_a_folder_that_a_conversion_made_may_be_replaced(home: Path, tmp_path: Path) -> None:
    """It is known by its manifest; without one it is somebody's."""
    folder = tmp_path / "Tiny-MLX-4bit"
    shutil.copytree(TINY_MLX, folder)
    line = ("convert", TINY_MLX, "--dequantize", "--out", folder, "--force", "--json")
    manifest = (folder / "localqwen.json").rename(tmp_path / "localqwen.json")
    assert call(*line)[0] == 1
    manifest.rename(folder / "localqwen.json")
    assert call_json(*line)["path"] == str(folder)
    assert "quantization" not in json.loads((folder / "config.json").read_text())


def test_a_manifest_says_what_a_conversion_was_made_of(home: Path, tmp_path: Path) -> None:
    """The new one has everything that the old one has."""
    out = tmp_path / "small-Q4_0.gguf"
    matrix = FIXTURES / "tiny.imatrix.gguf"
    call_json("convert", home / "models" / TINY.name, "--quant", "q4_0", "--imatrix", matrix, "--out", out, "--json")
    assert b"quantize.imatrix.file" in out.read_bytes()
    old, new = (json.loads(path.with_name(f"{path.name}.json").read_text()) for path in (TINY, out))
    assert set(old) <= set(new)
    assert set(old["recipe"]) <= set(new["recipe"])
    assert {"bytes", "sha256"} <= set(new["outputs"][out.name])
    assert new["inputs"][TINY.name]["sha256"] == old["outputs"][TINY.name]["sha256"] == SHA256


# An archive of these files


def test_the_files_hold_no_trace_of_the_machine_that_made_them() -> None:
    def texts() -> Iterator[str]:
        for path in FIXTURES.rglob("*"):
            if path.is_file():
                yield path.read_bytes().decode("utf-8", errors="replace")

    assert not [found for text in texts() for found in re.findall(r"/(?:tmp|root|Users|work)/\S*", text)]
