"""`localqwen run` from its arguments to its streams and exit code, on the scripted engine."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import localqwen
from localqwen.chat import load
from localqwen.chat.load_options import LoadOptions
from localqwen.chat.local import LocalChatModel
from localqwen.chat.messages import Started, Text, Thinking, Working
from localqwen.cli import main
from localqwen.cli.console import Channel, Printer
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import EngineError, ModelNotFound
from localqwen.models.resolve import ResolvedModel

THOUGHT = "<think>\nb, e, r\n</think>\n\nThree r's.\n\n"


class Shell:
    """Runs the command line with a scripted model behind `load.chat_model`; remembers how it was loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.loaded: list[tuple[str, LoadOptions]] = []
        self.answers: Sequence[str] = [THOUGHT]
        self.error: Exception | None = None
        monkeypatch.setattr(load, "chat_model", self._load)

    def _load(self, model: ResolvedModel, options: LoadOptions) -> LocalChatModel:
        if self.error:
            raise self.error
        self.loaded.append((model.given, options))
        self.engine = ScriptedEngine(self.answers)
        return LocalChatModel(self.engine, model.display, thinking_mode="switch", load_ms=5.0)

    def __call__(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        code = main(arguments)
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    @property
    def prompt(self) -> str:
        """The rendered prompt of the last answer."""
        ids = {number: word.decode() for word, number in self.engine._ids.items()}
        return "".join(ids[token] for token in self.engine.runs[-1].prompt)


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    monkeypatch.setenv("LOCALQWEN_HOME", str(tmp_path))
    return Shell(monkeypatch, capsys)


def test_the_answer_alone_goes_to_stdout_and_ends_with_one_line_break(shell: Shell) -> None:
    assert shell("run", "demo", "How", "many", "r's?") == (0, "Three r's.\n", "b, e, r\n")
    assert shell.loaded == [("demo", LoadOptions())]
    assert shell.engine.closed


def test_hidden_thinking_is_hidden(shell: Shell) -> None:
    assert shell("run", "demo", "hi", "--hide-thinking") == (0, "Three r's.\n", "")


@pytest.mark.parametrize(
    ("stdin", "words", "prompt"),
    [
        (b"", ["a", "b"], "a b"),
        (b"notes\n", ["sum", "up"], "notes\n\nsum up"),
        (b"notes\n", [], "notes"),
        (b"\xef\xbb\xbfnotes", [], "notes"),
        (b" \n", ["a"], "a"),
        ("Grüße 🙂".encode(), ["?"], "Grüße 🙂\n\n?"),
    ],
)
def test_piped_text_stands_before_the_prompt(shell: Shell, stdin: bytes, words: list[str], prompt: str) -> None:
    assert shell("run", "demo", *words, stdin=stdin)[0] == 0
    assert shell.prompt.startswith(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant")


def test_flags_reach_the_engine(shell: Shell) -> None:
    shell.answers = ["Short."]
    flags = ["--no-think", "--temperature", "0.1", "--top-p", "0.5", "--top-k", "3", "--min-p", "0.2", "--seed", "7"]
    more = ["--presence-penalty", "1.5", "--max-tokens", "9", "--ctx", "99", "--threads", "2", "--engine", "llama.cpp"]
    assert shell("run", "demo", "hi", "--system", "Be kind.", *flags, *more)[:2] == (0, "Short.\n")
    run = shell.engine.runs[0]
    assert (run.max_tokens, run.sampling.temperature, run.sampling.top_p, run.sampling.top_k) == (9, 0.1, 0.5, 3)
    assert (run.sampling.min_p, run.sampling.presence_penalty, run.sampling.seed) == (0.2, 1.5, 7)
    assert shell.loaded[0][1] == LoadOptions(engine="llama.cpp", context_length=99, threads=2)
    assert shell.prompt.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi")
    assert shell.prompt.endswith("<think>\n\n</think>\n\n")


def test_stop_texts_end_the_answer(shell: Shell) -> None:
    shell.answers = ["one two three"]
    assert shell("run", "demo", "count", "--no-think", "--stop", "zero", "--stop", " three")[1] == "one two\n"


def test_json_is_one_object_with_everything(shell: Shell) -> None:
    code, out, err = shell("run", "demo", "hi", "--json", "--stats")
    assert (code, err, out.count("\n")) == (0, "", 1)
    report = json.loads(out)
    timings = report.pop("timings")
    assert report == {
        "model": "demo",
        "engine": "scripted",
        "content": "Three r's.\n\n",
        "thinking": "b, e, r",
        "tool_calls": [],
        "finish_reason": "stop",
        "budget_forced": False,
        "usage": {"prompt_tokens": 8, "cached_tokens": 0, "completion_tokens": 22, "thinking_tokens": 9},
    }
    assert list(timings) == [
        "load_ms",
        "first_token_ms",
        "first_answer_ms",
        "prompt_per_second",
        "predicted_per_second",
    ]
    assert timings["load_ms"] == 5.0


def test_a_budget_is_kept_and_reported(shell: Shell) -> None:
    shell.answers = ["<think>\n" + "on and on " * 50, "Fine."]
    report = json.loads(shell("run", "demo", "hi", "--json", "--budget", "4")[1])
    assert (report["content"], report["budget_forced"]) == ("Fine.", True)
    assert report["usage"]["thinking_tokens"] <= 5


def test_tools_are_offered_and_calls_are_printed_as_json_lines(shell: Shell, tmp_path: Path) -> None:
    shell.answers = ['<tool_call>\n{"name": "weather", "arguments": {"city": "Łódź"}}\n</tool_call>'] * 2
    tools = tmp_path / "tools.json"
    tools.write_text('[{"type": "function", "function": {"name": "weather"}}, {"name": "time", "parameters": {}}]')
    call = {"name": "weather", "arguments": {"city": "Łódź"}}
    code, out, _ = shell("run", "demo", "Weather?", "--no-think", "--tools", str(tools))
    assert (code, out) == (0, json.dumps(call, ensure_ascii=False) + "\n")
    report = json.loads(shell("run", "demo", "Weather?", "--no-think", "--tools", str(tools), "--json")[1])
    assert [(made["name"], made["arguments"]) for made in report["tool_calls"]] == [("weather", call["arguments"])]
    assert report["finish_reason"] == "tool_calls"


def test_statistics_are_one_line_on_stderr(shell: Shell) -> None:
    _, out, err = shell("run", "demo", "hi", "--stats", "--hide-thinking")
    assert out == "Three r's.\n"
    assert err.startswith("load 5 ms · first token ")
    assert "prompt 8 tokens (0 cached)" in err
    assert "answer 22 tokens (9 thinking)" in err
    assert err.count("\n") == 1


def test_an_answer_that_was_cut_is_an_answer_with_a_warning(shell: Shell) -> None:
    shell.answers = ["one two three four"]
    code, out, err = shell("run", "demo", "count", "--no-think", "--max-tokens", "3")
    assert (code, out) == (0, "one two\n")
    assert err == (
        "warning: the answer was cut at its token limit; raise it with --max-tokens, or the context with --ctx\n"
    )


def test_greedy_thinking_gets_the_chat_layers_warning(shell: Shell) -> None:
    assert shell("run", "demo", "hi", "--temperature", "0")[2].startswith("warning: greedy sampling while thinking")


BAD_INPUT: list[tuple[list[str], bytes, int, str, str]] = [
    (["run"], b"", 2, "MODEL is missing", "localqwen run --help"),
    (["run", "demo"], b"", 2, "there is no prompt", 'localqwen run demo "What is 17 + 25?"'),
    (["run", "demo", " "], b"\n", 2, "there is no prompt", "localqwen run demo"),
    (["run", "demo", "hi"], b"caf\xe9", 2, "standard input is not UTF-8 text: byte 0xe9 at position 3", "iconv"),
    (["run", "demo", "caf\udce9"], b"", 2, "the prompt is not UTF-8 text", "a terminal that writes UTF-8"),
    (
        ["run", "demo", "hi", "--bugdet", "3"],
        b"",
        2,
        "there is no option --bugdet of localqwen run",
        "did you mean --bu",
    ),
    (["run", "demo", "hi", "--budget", "x"], b"", 2, "--budget: 'x' is not a valid integer", "localqwen run --help"),
    (["run", "demo", "hi", "--budget", "-1"], b"", 2, "--budget: -1 is not in the range x>=0", "localqwen run --help"),
    (
        ["run", "demo", "hi", "--top-p", "1.5"],
        b"",
        2,
        "--top-p: 1.5 is not in the range 0<=x<=1",
        "localqwen run --help",
    ),
    (["run", "demo", "hi", "--ctx"], b"", 2, "Option '--ctx' requires an argument", "localqwen run --help"),
    (
        ["run", "demo", "hi", "--temperature", "nan"],
        b"",
        2,
        "--temperature: 'nan' is not a number",
        "localqwen run --help",
    ),
    (["run", "demo", "hi", "--tools", "no.json"], b"", 2, "cannot read no.json: No such file", "a JSON file"),
    (["runn", "demo"], b"", 2, "there is no command 'runn'", "did you mean localqwen run?"),
    (["xyzzy"], b"", 2, "there is no command 'xyzzy'", "commands: chat, run"),
    (["--verison"], b"", 2, "there is no option --verison of localqwen", "did you mean --version?"),
]


@pytest.mark.parametrize(("arguments", "stdin", "code", "message", "hint"), BAD_INPUT)
def test_bad_input_gets_a_message_a_hint_and_an_exit_code(
    shell: Shell, arguments: list[str], stdin: bytes, code: int, message: str, hint: str
) -> None:
    found, out, err = shell(*arguments, stdin=stdin)
    assert (found, out.strip()) == (code, "")
    assert err.startswith(f"Error: {message}")
    assert hint in err.partition("\n\nhint: ")[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not JSON"),
        ("{}", "does not contain a list"),
        ("[3]", "tool 1 of"),
        ('[{"name": "a"}, {"function": {}}]', "tool 2 of"),
        ('[{"name": "a", "parameters": 3}]', "its parameters are not an object"),
    ],
)
def test_a_tool_list_of_another_shape_is_explained(shell: Shell, tmp_path: Path, content: str, message: str) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(content)
    code, _, err = shell("run", "demo", "hi", "--tools", str(tools))
    assert code == 2
    assert message in err
    assert "hint: write [{" in err


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_model_that_fails_leaves_stdout_empty(shell: Shell, flags: list[str]) -> None:
    shell.error = ModelNotFound("there is no model 'dmeo'", "did you mean demo?")
    assert shell("run", "demo", "hi", *flags) == (
        1,
        "",
        "Error: there is no model 'dmeo'\n\nhint: did you mean demo?\n",
    )
    shell.error = None
    shell.answers = []  # the script is empty: the engine fails when it is asked
    assert shell("run", "demo", "hi", *flags) == (1, "", "Error: the script has no more answers\n")


def test_an_engine_that_fails_in_the_middle_leaves_the_line_ended(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = iter(range(3))

    def step(engine: ScriptedEngine) -> Any:
        if next(stepped, None) is None:
            raise EngineError("the graphics card left", "try --engine")
        return real(engine)

    real = ScriptedEngine.step
    monkeypatch.setattr(ScriptedEngine, "step", step)
    code, out, err = shell("run", "demo", "hi", "--no-think")
    assert (code, out.count("\n"), out[-1]) == (1, out.count("\n"), "\n")
    assert err == "Error: the graphics card left\n\nhint: try --engine\n"
    assert shell.engine.closed


def ctrl_c_after(steps: int) -> Callable[[ScriptedEngine], Any]:
    real, left = ScriptedEngine.step, iter(range(steps))

    def step(engine: ScriptedEngine) -> Any:
        if next(left, None) is None:
            signal.raise_signal(signal.SIGINT)
        return real(engine)

    return step


def test_ctrl_c_prints_what_came_and_exits_130(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.answers = ["one two three four"] * 2
    monkeypatch.setattr(ScriptedEngine, "step", ctrl_c_after(2))
    assert shell("run", "demo", "count", "--no-think") == (130, "one two\n", "")
    monkeypatch.undo()


def test_ctrl_c_in_json_mode_reports_what_came(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.answers = ["one two three four"]
    monkeypatch.setattr(ScriptedEngine, "step", ctrl_c_after(2))
    code, out, _ = shell("run", "demo", "count", "--no-think", "--json")
    report = json.loads(out)
    assert (code, report["content"], report["finish_reason"]) == (130, "one two", "interrupted")


def test_help_and_version(shell: Shell) -> None:
    assert shell("--version") == (0, f"localqwen {localqwen.__version__}\n", "")
    code, out, _ = shell("--help")
    assert code == 0
    assert [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()] == [
        "chat", "run", "serve", "pull", "list", "show", "verify", "rm", "recommend", "bench", "convert",
        "imatrix", "quality", "tune", "doctor", "completion",
    ]  # fmt: skip
    assert "--budget N" in shell("run", "--help")[1]


def test_help_imports_nothing_heavy() -> None:
    """What keeps `localqwen --help` under 0.2 s; the time itself is measured in benchmarks/."""
    script = (
        "import sys; from localqwen.cli import main; main(['--help']); heavy = {'rich', 'prompt_toolkit', 'llama_cpp', "
        "'psutil', 'jinja2', 'numpy', 'tomllib', 'localqwen.cli.run', 'localqwen.engines'}; "
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bug_is_a_short_message_and_the_trace_is_there_for_who_asks(tmp_path: Path) -> None:
    script = (
        "import sys; from localqwen.chat import load; from localqwen.cli import main\n"
        "def fail(*_): raise ZeroDivisionError('oops')\n"
        "load.chat_model = fail; sys.exit(main(['run', 'demo', 'hi']))"
    )
    run = [sys.executable, "-c", script]
    home = {**os.environ, "LOCALQWEN_HOME": str(tmp_path)}
    short = subprocess.run(run, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, env=home)
    assert short.returncode == 1
    assert short.stderr.startswith("Error: unexpected ZeroDivisionError: oops\n\nhint: set LOCALQWEN_DEBUG=1")
    full = subprocess.run(
        run, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, env={**home, "LOCALQWEN_DEBUG": "1"}
    )
    assert "Traceback" in full.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    """`localqwen run … | head -1`"""
    script = (
        "import sys; from localqwen.chat import load; from localqwen.chat.local import LocalChatModel\n"
        "from localqwen.cli import main; from localqwen.engines.scripted import ScriptedEngine\n"
        "engine = ScriptedEngine(['line\\n' * 100_000], context_length=10**9)\n"
        "load.chat_model = lambda *_: LocalChatModel(engine, 'demo', thinking_mode='switch')\n"
        "sys.exit(main(['run', 'demo', 'hi', '--no-think']))"
    )
    environment = {**os.environ, "LOCALQWEN_HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_models_control_characters_are_shown_and_not_obeyed_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = "a\x1b]0;owned\x07b\r\x7f\x9bc\tä\n"
    terminal, aside, pipe = Terminal(), Terminal(), io.StringIO()
    printer = Printer(Channel(terminal), Channel(aside))
    for event in (Started(1, 0, True), Thinking("\x1b[31mred"), Text(text)):
        printer.show(event)
    printer.finish()
    assert terminal.getvalue() == "a␛]0;owned␇b␍␡\ufffdc\tä\n"
    assert aside.getvalue() == "\x1b[2m␛[31mred\x1b[0m\n\n"
    plain = Printer(Channel(pipe), Channel(io.StringIO()))
    plain.show(Text(text))
    plain.finish()
    assert pipe.getvalue() == text


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colour_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    aside = Terminal()
    printer = Printer(Channel(Terminal()), Channel(aside), thinking_hint="press Tab")
    printer.show(Thinking("hm"))
    printer.finish()
    assert aside.getvalue() == "press Tab\nhm\n\n"


def test_where_thinking_is_hidden_the_hint_gives_way_to_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    both = Terminal()
    printer = Printer(Channel(both), Channel(both), hide_thinking=True, thinking_hint="press Tab")
    for event in (Started(1, 0, True), Thinking("hm"), Text("Yes.")):
        printer.show(event)
    printer.finish()
    assert both.getvalue() == "\x1b[2mpress Tab\x1b[0m\r\x1b[KYes.\n"


def test_a_prompt_that_takes_long_shows_how_far_it_is_read_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    aside, times = Terminal(), iter([0.0, 0.5, 1.5, 2.0])
    printer = Printer(Channel(Terminal()), Channel(aside), clock=lambda: next(times))
    for event in (Started(9000, 0, False), Working(512, 9000), Working(1024, 9000), Working(9000, 9000), Text("Yes.")):
        printer.show(event)
    assert aside.getvalue() == "\x1b[2mcomputing the prompt: 1,024 of 9,000 tokens\x1b[0m\r\x1b[K"
    pipe = io.StringIO()
    silent = Printer(Channel(io.StringIO()), Channel(pipe), clock=iter([0.0, 5.0]).__next__)
    for event in (Started(9000, 0, False), Working(512, 9000)):
        silent.show(event)
    assert pipe.getvalue() == ""
