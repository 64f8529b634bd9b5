"""`localqwen chat`: which model, which conversation, and a pipe instead of a keyboard."""

import io
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from localqwen.chat import load
from localqwen.chat import session as sessions
from localqwen.chat.conversation import Conversation
from localqwen.chat.load_options import LoadOptions
from localqwen.chat.local import LocalChatModel
from localqwen.chat.messages import Message
from localqwen.chat.session import Session
from localqwen.cli import chat, main, named_sessions
from localqwen.cli.loading import Loading
from localqwen.engines.scripted import ScriptedEngine
from localqwen.models.resolve import ResolvedModel


class Shell:
    """Runs `localqwen chat` on the scripted engine; one list of answers serves all runs."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.conversations = home, home / "conversations"
        self.monkeypatch, self._capsys = monkeypatch, capsys
        self.answers: Sequence[str] = []
        self.loaded: list[str] = []
        monkeypatch.setenv("LOCALQWEN_HOME", str(home))
        monkeypatch.setattr(load, "chat_model", self._load)
        monkeypatch.setattr(chat, "largest", lambda: None)

    def _load(self, model: ResolvedModel, options: LoadOptions) -> LocalChatModel:
        self.loaded.append(model.given)
        self.engine = ScriptedEngine(self.answers)
        return LocalChatModel(self.engine, model.display, thinking_mode="switch")

    def __call__(self, *arguments: str, lines: str = "") -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code = main(["chat", *arguments])
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def last(self) -> Conversation:
        path = named_sessions.latest(self.conversations)
        assert path is not None
        return sessions.read(path)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


def test_a_pipe_gets_the_answers_alone_on_stdout(shell: Shell) -> None:
    shell.answers = ["<think>\nhm\n</think>\n\nOne.", "Two."]
    assert shell("demo", lines="1?\n2? /no_think\n/bye\nnever read\n") == (0, "One.\nTwo.\n", "hm\n")
    assert [message.content for message in shell.last().messages] == ["1?", "One.", "2? /no_think", "Two."]
    assert shell.engine.closed


def test_the_end_of_the_pipe_is_goodbye(shell: Shell) -> None:
    assert shell("demo", lines="") == (0, "", "")
    assert named_sessions.latest(shell.conversations) is None


@pytest.mark.parametrize(
    ("lines", "code"), [("/xyzzy\n", 2), ("/save a/b\n", 1), ("asked, but the script is empty\n", 1), ("/help\n", 0)]
)
def test_from_a_pipe_a_failed_line_shows_in_the_exit_code(shell: Shell, lines: str, code: int) -> None:
    assert shell("demo", lines=lines + "/system x\n")[0] == code


def test_ctrl_c_in_a_pipe_stops_the_answer_and_reads_no_further(shell: Shell) -> None:
    def step(engine: ScriptedEngine) -> Any:
        if engine.runs[-1].generated == 2:
            signal.raise_signal(signal.SIGINT)
        return real(engine)

    real = ScriptedEngine.step
    shell.monkeypatch.setattr(ScriptedEngine, "step", step)
    shell.answers = ["one two three", "never given"]
    code, out, _ = shell("demo", lines="count /no_think\nand on\n")
    assert (code, out) == (130, "one two\n")
    assert [message.content for message in shell.last().messages] == ["count /no_think", "one two"]


def conversation(folder: Path, model: str) -> Path:
    with Session.new(model, folder) as session:
        session.add(Message("user", "hi"))
    return session.path


MODEL_CASES = [
    ("named.gguf", "demo", "configured.gguf", "big.gguf", "named.gguf", ""),
    (None, "demo", "configured.gguf", "big.gguf", "demo", "the model of the last conversation"),
    (None, "gone.gguf", "configured.gguf", "big.gguf", "configured.gguf", "the configured model"),
    (None, None, "configured.gguf", "big.gguf", "configured.gguf", "the configured model"),
    (None, None, None, "big.gguf", "big.gguf", "the largest model on disk that fits"),
    (None, None, None, None, "demo", "no other model is on disk"),
]


@pytest.mark.parametrize(("named", "last", "configured", "largest", "model", "reason"), MODEL_CASES)
def test_which_model_and_why(
    shell: Shell,
    named: str | None,
    last: str | None,
    configured: str | None,
    largest: str | None,
    model: str,
    reason: str,
) -> None:
    if configured:
        shell.monkeypatch.setenv("LOCALQWEN_MODEL", configured)
    path = conversation(shell.conversations, last) if last else None
    choice = chat.choose(named, path, lambda: largest, Loading())
    assert choice.model.given == model
    assert reason in choice.reason
    assert bool(choice.reason) == bool(reason)


def test_the_built_in_model_says_what_it_is_and_how_to_get_a_real_one(shell: Shell) -> None:
    err = shell()[2]
    assert err.startswith("using demo: no other model is on disk. It is a toy that adds")
    assert err.endswith("a real one: localqwen chat path/to/model.gguf\n")
    assert shell.loaded == ["demo"]


def test_continue_goes_on_with_the_last_conversation_and_its_model(shell: Shell) -> None:
    model = shell.home / "own.gguf"
    model.touch()
    shell.answers = ["One.", "Two."]
    shell(str(model), "--system", "Be kind.", "--temperature", "0.3", lines="1? /no_think\n")
    shell.answers = ["Two."]
    code, out, err = shell("--continue", lines="2?\n")
    assert (code, out) == (0, "Two.\n")
    assert "using own: the model of the last conversation" in err
    assert "the conversation continues: 2 messages" in err
    assert shell.loaded == [str(model)] * 2
    assert [message.content for message in shell.last().messages] == ["1? /no_think", "One.", "2?", "Two."]
    assert shell.last().system == "Be kind."
    assert shell.engine.runs[0].sampling.temperature == 0.3


def test_a_flag_goes_before_what_the_conversation_was_set_to(shell: Shell) -> None:
    shell.answers = ["a"]
    shell("demo", "--no-think", "--temperature", "0.3", "--top-k", "7", lines="1\n")
    shell.answers = ["b"]
    shell("--continue", "--temperature", "0.9", lines="2\n")
    sampling = shell.engine.runs[0].sampling
    assert (sampling.temperature, sampling.top_k) == (0.9, 7)
    assert shell.last().settings == {"think": False, "temperature": 0.9, "top_k": 7}


def test_continue_with_another_model_remembers_it(shell: Shell) -> None:
    shell.answers = ["a"]
    shell("demo", lines="1 /no_think\n")
    other = shell.home / "other.gguf"
    other.touch()
    shell.answers = ["b"]
    assert shell(str(other), "--continue", lines="2\n")[:2] == (0, "b\n")
    assert shell.last().model == str(other)


def test_without_continue_a_new_conversation_begins(shell: Shell) -> None:
    shell.answers = ["a"]
    shell("demo", lines="1 /no_think\n")
    shell("demo", lines="2 /no_think\n")
    assert len(list(shell.conversations.glob("*.jsonl"))) == 2
    assert shell.last().messages[0].content == "2 /no_think"


def test_nothing_to_continue(shell: Shell) -> None:
    error = "Error: there is no conversation to continue\n\nhint: start one: localqwen chat\n"
    assert shell("--continue") == (1, "", error)


def test_a_conversation_that_another_chat_has_open_cannot_be_continued(shell: Shell) -> None:
    with Session.new("demo", shell.conversations) as elsewhere:
        elsewhere.add(Message("user", "hi"))
        code, _, err = shell("--continue")
    assert code == 1
    assert "Error: another chat has this conversation open" in err


def test_a_damaged_last_conversation_keeps_nobody_from_chatting(shell: Shell) -> None:
    shell.conversations.mkdir()
    (shell.conversations / "x.jsonl").write_text("nonsense\n")
    shell.answers = ["Hi."]
    code, out, err = shell(lines="hello /no_think\n")
    assert (code, out) == (0, "Hi.\n")
    assert err.startswith("warning: ")
    assert "is not a conversation of localqwen" in err


def test_text_that_is_not_utf8(shell: Shell) -> None:
    shell.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    assert main(["chat", "demo"]) == 2


def test_the_log_is_json_lines_that_begin_with_their_format(shell: Shell) -> None:
    shell.answers = ["Hi."]
    shell("demo", lines="hello /no_think\n")
    path = named_sessions.latest(shell.conversations)
    assert path is not None
    header, *records = [json.loads(line) for line in path.read_text().splitlines()]
    assert (header["format"], header["version"], header["model"]) == ("localqwen-conversation", 1, "demo")
    assert [record["message"]["role"] for record in records] == ["user", "assistant"]
