"""Nothing that others rely on has vanished: names, commands, settings, JSON keys, HTTP paths (see `public.json`).

The file was written at the version whose promises it holds (see `public_surface.py`). A later version may add.
"""

from __future__ import annotations

import contextlib
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
from hub_server import serving as hub_serving
from public_surface import (
    BENCH,
    RECORD,
    REPORTS,
    REQUESTS,
    TINY,
    Server,
    Setting,
    answers,
    arguments_of,
    attributes,
    call,
    call_json,
    command,
    command_at,
    error_classes,
    metrics,
    options_of,
    parameters,
    parsed,
    report,
    required,
    routes,
    serving,
    takes_any_keyword,
    vanished,
)

import convert
import localqwen
from localqwen import LocalqwenError, Message, Overrides, Request
from localqwen.errors import ModelNotFound

ROOT = Path(__file__).parents[2]
RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
PYTHON, COMMANDS, SETTINGS, SERVER = (RECORDED[part] for part in ("python", "commands", "settings", "server"))


def fail_with(complaints: list[str]) -> None:
    """Fail with every complaint on a line of its own, if there is one."""
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


# Python


def test_every_public_name_can_be_imported() -> None:
    for module, name in ((localqwen, "localqwen"), (convert, "convert")):
        gone = [each for each in PYTHON[f"{name}.__all__"] if each not in module.__all__ or not hasattr(module, each)]
        fail_with([f"{name}.{each} has vanished" for each in gone])


def test_every_event_is_still_one() -> None:
    """A class that was renamed is still matched under its old name, which is an alias."""
    now = get_args(localqwen.Event)
    fail_with(
        [f"localqwen.{each} is no Event any more" for each in PYTHON["events"] if getattr(localqwen, each) not in now]
    )


@pytest.mark.parametrize("name", [*PYTHON["functions"], *PYTHON["made"]])
def test_a_call_that_was_right_stays_right(name: str) -> None:
    """Positional parameters keep their order, the others their names, and no new one must be given."""
    recorded, now = (PYTHON["functions"] | PYTHON["made"])[name], parameters(name)
    position, keywords = recorded["positional"], recorded["keyword"]
    complaints = []
    if now["positional"][: len(position)] != position:
        complaints.append(f"{name} took {', '.join(position)} by position and takes {', '.join(now['positional'])}")
    if not takes_any_keyword(name):
        gone = [each for each in keywords if each not in now["keyword"] + now["positional"]]
        complaints += [f"{name} does not take {each}= any more" for each in gone]
    known = {*position, *keywords, "self"}
    complaints += [f"{name} now demands {each}" for each in required(name) if each not in known]
    fail_with(complaints)


@pytest.mark.parametrize("name", PYTHON["read"])
def test_a_value_keeps_its_fields(name: str) -> None:
    kind = pkgutil.resolve_name(name)
    complaints = [f"{name}.{each} has vanished" for each in PYTHON["read"][name] if each not in attributes(kind)]
    matched = PYTHON["matched"].get(name, [])
    if list(kind.__match_args__)[: len(matched)] != matched:
        complaints.append(f"{name} was matched as {matched} and is as {list(kind.__match_args__)}")
    fail_with(complaints)


@pytest.fixture(scope="module")
def demo() -> Iterator[Any]:
    """The demo model, opened with every keyword that `load` has taken."""
    keywords = PYTHON["functions"]["localqwen:load"]["keyword"]
    given = dict.fromkeys(keywords) | {"engine": "gguf", "threads": 1, "context_length": 512, "force": False}
    model = localqwen.load("demo", **given)
    yield model
    model.close()


def test_a_model_says_what_it_is_and_streams_events(demo: Any) -> None:
    assert (demo.name, demo.engine_name, demo.thinking_mode, demo.context_length) == (
        "demo",
        "llama.cpp",
        "switch",
        512,
    )
    request = Request([Message("user", "What is 2 + 3?")], sampling=Overrides(temperature=0))
    events = list(demo.stream(request))
    thinking = "".join(event.text for event in events if isinstance(event, localqwen.Thinking))
    text = "".join(event.text for event in events if isinstance(event, localqwen.Text))
    started, finished = events[0], events[-1]
    assert (isinstance(started, localqwen.Started), isinstance(finished, localqwen.Finished)) == (True, True)
    assert (thinking.startswith("Add 2 and 3."), text) == (True, "2 + 3 = 5.")
    usage, timing = finished.usage, finished.timing
    assert started.prompt_tokens == usage.prompt_tokens
    assert usage.completion_tokens > usage.thinking_tokens > usage.cached_tokens == 0
    times = (timing.load_ms, timing.first_token_ms, timing.first_answer_ms, timing.prompt_ms, timing.predicted_ms)
    assert min(*times, timing.total_ms, timing.prompt_per_second, timing.predicted_per_second) > 0
    assert (finished.finish_reason, finished.budget_forced, finished.thinking_end) == ("stop", False, "model")


def test_the_thinking_can_be_ended_and_the_answer_cancelled(demo: Any) -> None:
    stream = demo.stream(Request([Message("user", "What is 123 + 456?")], sampling=Overrides(temperature=0)))
    next(event for event in stream if isinstance(event, localqwen.Thinking))
    demo.end_thinking()
    finished = list(stream)[-1]
    assert finished.thinking_end == "user"
    stream = demo.stream(Request([Message("user", "What is 123 + 456?")], max_tokens=50))
    next(stream)
    stream.close()
    assert list(stream) == []


def test_an_engine_takes_ids_and_gives_logits() -> None:
    from localqwen import engines

    engine = engines.open("demo", engine="gguf", context_length=64, threads=1)
    with contextlib.closing(engine):
        ids = engine.tokenize("<|im_start|>user\n2 + 3", special=True)
        assert len(engine.tokenize("<|im_start|>user\n2 + 3", special=False)) > len(ids)
        assert sum(len(block) for block in engine.evaluate(ids)) == len(ids)
        template = localqwen.chat.template.ChatTemplate(engine.chat_template, engine.special_tokens)
        rendered = template.render([{"role": "user", "content": "2 + 3"}], tools=None, enable_thinking=False)
        assert rendered.startswith("<|im_start|>user\n2 + 3<|im_end|>\n<|im_start|>assistant\n<think>")
        assert all(callable(getattr(engine, name)) for name in ("start", "step", "cancel"))


def test_output_is_parsed_however_it_is_cut() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    parsed = localqwen.parse_output(["<thi", "nk>\nhm\n</think>\n\nYes.", call])
    assert (parsed.thinking, parsed.content) == ("hm", "Yes.")
    assert [(each.name, each.arguments) for each in parsed.tool_calls] == [("f", {"a": 1})]
    assert localqwen.parse_output(["hm</think>Yes."], start="open").content == "Yes."
    assert localqwen.parse_output(["<think>"], start="off").thinking == localqwen.parse_output([""]).thinking


def test_names_of_models_have_one_parser() -> None:
    from localqwen.models import names

    for text in ("demo", "qwen3", "qwen3:4b", "qwen3:4b-q8_0", "hf:a/b", "hf:a/b:q4_k_m", "ms:a/b", "./x.gguf"):
        assert names.parse(text) == names.parse(text), text
    assert names.parse("qwen3:4b") != names.parse("qwen3:4b-q8_0")
    with pytest.raises(ModelNotFound, match="qwen3:5b"):
        names.parse("qwen3:5b")


def test_every_error_keeps_its_exit_code_status_and_parents() -> None:
    now = error_classes()
    complaints = []
    for name, recorded in RECORDED["errors"].items():
        found = now.get(name)
        if found is None:
            complaints.append(f"localqwen.errors.{name} has vanished")
            continue
        for part in ("exit_code", "http_status"):
            if found[part] != recorded[part]:
                complaints.append(f"{name}.{part} was {recorded[part]} and is {found[part]}")
        complaints += [f"{name} is no {base} any more" for base in recorded["is"] if base not in found["is"]]
    fail_with(complaints)
    error = LocalqwenError("what", "how")
    assert (error.message, error.hint, str(error)) == ("what", "how", "what")


# The command line


def test_the_entry_point_is_where_installers_look_for_it() -> None:
    assert '[project.scripts]\nlocalqwen = "localqwen.cli:main"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_line_that_was_right_stays_right(line: str) -> None:
    path = line.split()
    found, context = command_at(*path)
    if (context.info_name or "").split()[-1] != path[-1]:
        pytest.fail(f"localqwen {line} has vanished", pytrace=False)
    recorded, now = COMMANDS[line], command(found)
    complaints = []
    for number, before in enumerate(recorded["arguments"]):
        after = now["arguments"][number : number + 1]
        if not after or (after[0]["required"] and not before["required"]) or after[0]["count"] != before["count"]:
            complaints.append(f"argument {number + 1} was {before} and is {after[0] if after else 'gone'}")
    new = arguments_of(found)[len(recorded["arguments"]) :]
    complaints += [f"the argument {each.name} is new and required" for each in new if each.required]
    known = {name for flag in recorded["flags"].values() for name in flag["names"]}
    options = options_of(found)
    complaints += [f"{each.opts[0]} is required" for each in options if each.required and not known & {*each.opts}]
    for name, before in recorded["flags"].items():
        after = next((flag for flag in now["flags"].values() if name in flag["names"]), None)
        complaints += [f"{name} has vanished"] if after is None else _changes(name, before, after)
    fail_with([f"localqwen {line}: {complaint}" for complaint in complaints])


def _changes(name: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    found = [f"{each} has vanished (it was {name})" for each in before["names"] if each not in after["names"]]
    found += [f"{each} has vanished" for each in before["off"] if each not in after["off"]]
    found += [
        f"{name} does not take {each} any more"
        for each in before["values"]
        if after["values"] and each not in after["values"]
    ]
    if before["kind"] != after["kind"] and (before["kind"], after["kind"]) != ("value", "repeated"):
        found.append(f"{name} was a {before['kind']} and is a {after['kind']}")
    if before["default"] != after["default"]:
        found.append(f"the default of {name} was {before['default']!r} and is {after['default']!r}")
    return found


def test_the_subcommands_of_bench_are_all_recorded() -> None:
    assert {f"bench {name}" for name in BENCH} <= set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("--version",), 0),
        ((), 2),
        (("fly",), 2),
        (("run", "demo"), 2),
        (("run", "demo", "hi", "--fly"), 2),
        (("run", "demo", "hi", "--budget", "-1"), 2),
        (("run", "qwen3:5b", "hi"), 1),
        (("run", "./no.gguf", "hi"), 1),
        (("run", "qwen3:4b", "hi"), 1),
        (("show", "nothing-of-that-name"), 1),
        (("bench", "show", "19990101"), 1),
        (("chat", "demo", "--continue"), 1),
    ],
)
def test_exit_codes(arguments: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Success is 0, what is not there 1, wrong usage 2; an error has its message and a hint on stderr."""
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    found, out, aside = call(*arguments)
    assert found == code, aside
    if code and arguments:
        assert re.match(r"Error: .+\n\nhint: .+\n", aside), aside
        assert out == ""


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    """A command that waits for a file is stopped there."""
    fifo = tmp_path / "tools.json"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "localqwen", "run", "demo", "hi", "--tools", str(fifo)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        writer = _opened_by_reader(fifo, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        os.close(writer)


def _opened_by_reader(fifo: Path, process: subprocess.Popen[str]) -> int:
    """Wait until the process reads the file. Return the end to write into."""
    while process.poll() is None:
        with contextlib.suppress(OSError):
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.005)
    raise AssertionError(f"ended with {process.returncode} before it read the file")


# Settings


def _all_settings() -> list[Setting]:
    return [Setting(name, flag, value) for name, flags in SETTINGS.items() for flag, value in flags.items()]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", SETTINGS)
def test_every_key_of_config_toml_does_what_its_flag_does(name: str, home: Path) -> None:
    """In the command's own table, and at the top of the file."""
    complaints = []
    for setting in [each for each in _all_settings() if each.command == name]:
        given = parsed(*setting.line())
        ambiguous = setting.value == setting.key  # `json` is a switch everywhere but in [bench]
        for where in (f"[{name}]\n",) if ambiguous else (f"[{name}]\n", ""):
            (home / "config.toml").write_text(where + setting.toml)
            try:
                now = parsed(*setting.without())
            except AssertionError as error:
                complaints.append(f"{where.strip()} {setting.toml.strip()} is refused: {error}")
                continue
            if now[setting.flag] != given[setting.flag]:
                complaints.append(f"{where.strip()} {setting.toml.strip()} gives {setting.flag} {now[setting.flag]!r}")
        (home / "config.toml").unlink()
    fail_with(complaints)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_variable_does_what_its_flag_does(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LOCALQWEN_RUN_CTX for one command, LOCALQWEN_CTX for all; of several values a variable holds one."""
    complaints = []
    for setting in [each for each in _all_settings() if each.command == name]:
        one = setting.value[0] if isinstance(setting.value, list) else setting.value
        given = parsed(*Setting(name, setting.flag, one).line())[setting.flag]
        for variable in (setting.own_variable, setting.variable):
            with monkeypatch.context() as patch:
                patch.setenv(variable, setting.text)
                now = parsed(*setting.without())[setting.flag]
            if now != given:
                complaints.append(f"{variable}={setting.text} gives {setting.flag} {now!r}, not {given!r}")
    fail_with(complaints)


def test_the_model_of_chat_can_be_configured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, name in (('model = "a.gguf"', "a.gguf"), ('model = "a.gguf"\n[chat]\nmodel = "b.gguf"', "b.gguf")):
        (home / "config.toml").write_text(text)
        code, _, aside = call("chat")
        assert (code, name in aside) == (1, True), aside
    monkeypatch.setenv("LOCALQWEN_MODEL", "c.gguf")
    assert "c.gguf" in call("chat")[2]


def test_an_unknown_key_of_config_toml_is_an_error(home: Path) -> None:
    (home / "config.toml").write_text("buget = 3\n")
    code, _, aside = call("list")
    assert (code, "budget" in aside) == (2, True), aside


@pytest.mark.parametrize(("value", "traced"), [("", False), ("1", True)])
def test_localqwen_debug_shows_where_a_bug_happened(value: str, traced: bool) -> None:
    script = "from localqwen.cli import main; main(['--version']); raise ValueError('a bug')"
    environment = os.environ | {"LOCALQWEN_DEBUG": value}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert done.returncode == 1
    assert "a bug" in done.stderr
    assert ("Traceback" in done.stderr) is traced


def test_localqwen_bench_key_is_shown_to_the_measured_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Strict(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_error(401)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("LOCALQWEN_BENCH_KEY", "sesame")
    with HTTPServer(("127.0.0.1", 0), Strict) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        code, _, _ = call("bench", "--url", f"http://127.0.0.1:{server.server_port}/v1", "demo", "--chat")
        server.shutdown()
    assert (code, set(seen)) == (1, {"Bearer sesame"})


def test_shells_complete_commands(home: Path) -> None:
    environment = os.environ | {"_LOCALQWEN_COMPLETE": "bash_complete", "COMP_WORDS": "localqwen ru", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "localqwen"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.stdout == "plain,run\n"
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = call("completion", shell)
        assert (code, "_LOCALQWEN_COMPLETE" in out) == (0, True)


# JSON


@pytest.mark.parametrize("label", REPORTS)
def test_a_report_keeps_its_keys(label: str, tmp_path: Path) -> None:
    fail_with([f"{label} --json: {each}" for each in vanished(RECORDED["reports"][label], report(label, tmp_path))])


def test_every_command_that_has_json_is_checked() -> None:
    """`list` and `rm` need something on disk, `pull` needs a hub: they are checked below."""
    checked = {" ".join(words.split()[:1]) for words in (" ".join(line) for line in REPORTS.values())}
    with_json = {line.split()[0] for line, found in COMMANDS.items() if "--json" in found["flags"]}
    assert with_json - checked == {"pull", "rm", "list"} - checked


def test_list_verify_and_rm_keep_their_keys(home: Path) -> None:
    (home / "models").mkdir()
    (home / "models" / TINY.name).write_bytes(TINY.read_bytes())
    (entry,) = call_json("list", "--json")
    assert {key: entry[key] for key in ("name", "quant", "engine", "bytes")} == {
        "name": "tiny", "quant": "Q8_0", "engine": "llama.cpp", "bytes": TINY.stat().st_size,
    }  # fmt: skip
    assert {"path", "modified", "used"} <= set(entry)
    path = entry["path"]
    checked = call_json("verify", path, "--json")
    assert (checked["name"], checked["ok"], len(checked["files"])) == (path, True, 1)
    removed = call_json("rm", path, "--json")
    assert (removed["removed"], removed["kept"], removed["freed_bytes"]) == ([path], [], entry["bytes"])
    assert call_json("list", "--json") == []


def test_pull_keeps_its_keys(tmp_path: Path) -> None:
    with hub_serving({"somebody/Small": {"small-q8_0.gguf": TINY.read_bytes()}}) as hub:
        moved = {"HF_HOME": str(tmp_path / "hf"), "LOCALQWEN_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint}
        line = [sys.executable, "-m", "localqwen", "pull", "hf:somebody/Small:q8_0", "--json"]
        environment = os.environ | moved | {"NO_PROXY": "*", "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        (pulled,) = json.loads(done.stdout)
        commit = hub.commit("somebody/Small")
    assert Path(pulled.pop("path")).read_bytes() == TINY.read_bytes()
    (file,) = pulled.pop("files")
    assert (file["path"], file["bytes"], len(file["digest"])) == ("small-q8_0.gguf", TINY.stat().st_size, 64)
    expected = {"name": "hf:somebody/Small:q8_0", "quant": "Q8_0", "repository": "somebody/Small", "commit": commit}
    expected |= {"transferred_bytes": file["bytes"], "converted": False, "checked": True}
    assert {key: pulled[key] for key in expected} == expected
    assert isinstance(pulled["source"], str)


# HTTP


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Says where it listens, and ends with 0 after SIGTERM (two of them: test_serve_clients)."""
    with serving() as started:
        yield started


@pytest.fixture(scope="module")
def answered(server: Server) -> dict[str, dict[str, str]]:
    return answers(server)


def test_every_route_is_there(server: Server) -> None:
    now = routes(server)
    gone = [f"{method.upper()} {path} has vanished" for path, methods in SERVER["routes"].items()
            for method in methods if method not in now.get(path, [])]  # fmt: skip
    fail_with(gone)


@pytest.mark.parametrize("label", REQUESTS)
def test_an_answer_keeps_its_keys(label: str, answered: dict[str, dict[str, str]]) -> None:
    fail_with([f"{label}: {each}" for each in vanished(SERVER["answers"][label], answered[label])])


def test_the_metrics_keep_their_names_and_labels(server: Server, answered: dict[str, dict[str, str]]) -> None:
    assert answered
    now = metrics(server)
    fail_with([f"the metric {each} has vanished" for each in SERVER["metrics"] if each not in now])


def test_the_first_line_of_serve_names_address_and_model(server: Server) -> None:
    assert server.first_line.startswith(f"http://127.0.0.1:{server.port}/v1 ")
    assert "demo" in server.first_line


# Tools beside the package


def test_checkpoints_and_a_hub_are_made_by_one_folder_of_the_tests() -> None:
    (checkpoints,) = (ROOT / "tests").rglob("checkpoints.py")
    assert (checkpoints.parent / "hub_server.py").is_file()
    assert re.search(r"^def make_checkpoint\($", checkpoints.read_text(), re.MULTILINE)


def test_random_checkpoint_takes_a_size_and_a_folder() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "random_checkpoint.py"), "--help"]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"\{0\.6b,1\.7b,4b,8b,14b,32b\} folder", " ".join(usage.split()))
