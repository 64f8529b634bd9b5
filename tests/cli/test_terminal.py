"""The REPL on a real terminal: keys while an answer streams, and a terminal that is left as it was found."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localqwen.chat import session as sessions
from localqwen.cli import named_sessions
from localqwen.cli.repl.keys import _type

#: The command line with a slow scripted model: each answer thinks, then talks, in numbered words.
PROGRAM = """
import sys, time
from localqwen.chat import load
from localqwen.chat.local import LocalChatModel
from localqwen.cli import main
from localqwen.engines.scripted import ScriptedEngine

class Slow(ScriptedEngine):
    def step(self):
        time.sleep(0.01)
        if len(self.runs) == FAIL_AT and self.runs[-1].generated > 10:
            raise RuntimeError("a bug")
        return super().step()

FAIL_AT = int(sys.argv.pop(1))
words = lambda kind, count: " ".join(f"{kind}{number}" for number in range(count))
thought = f"<think>\\n{words('think', 300)}\\n</think>\\n\\n"
answers = [thought + "Never reached.", words("word", 300), "Done."]
model = lambda *_: LocalChatModel(Slow(answers), "demo", thinking_mode="switch")
load.chat_model = model
sys.exit(main(["chat", "demo", *sys.argv[1:]]))
"""

#: A shell of a few lines: starts its arguments as a job; when the job stops, says so, waits for a line, continues it.
SHELL = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
while True:
    _, status = os.waitpid(job, os.WUNTRACED)
    os.tcsetpgrp(0, os.getpgrp())
    if not os.WIFSTOPPED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    print("JOB STOPPED", flush=True)
    sys.stdin.readline()
    os.tcsetpgrp(0, job)
    os.killpg(job, signal.SIGCONT)
"""


class Chat:
    """`localqwen chat` on a pseudo-terminal of its own."""

    def __init__(self, home: Path, *arguments: str, fail_at: int = 0, shell: bool = False) -> None:
        self.conversations = home / "conversations"
        self.keyboard, self._terminal = pty.openpty()
        self.modes = termios.tcgetattr(self._terminal)
        command = ["-c", PROGRAM, str(fail_at), *arguments]
        # TERM: plain output and no questions to the terminal, so that the screen is easy to read.
        environment = {
            **os.environ,
            "LOCALQWEN_HOME": str(home),
            "TERM": "dumb",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        self.process = subprocess.Popen(
            [sys.executable, *(["-c", SHELL] if shell else []), *command],
            preexec_fn=lambda: os.login_tty(os.dup(self._terminal)),  # noqa: PLW1509  (no threads here)
            env=environment,
        )
        self.screen = ""

    def type(self, keys: str) -> None:
        os.write(self.keyboard, keys.encode())

    def wait_for(self, pattern: str, seconds: float = 120) -> str:
        """What came up to the end of the pattern; it is taken off the screen."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.screen)):
            assert time.monotonic() < end, f"{pattern!r} did not come: {self.screen[-800:]!r}"
            if select.select([self.keyboard], [], [], 0.05)[0]:
                self._look()
        shown, self.screen = self.screen[: found.end()], self.screen[found.end() :]
        return shown

    def _look(self) -> None:
        self.screen += os.read(self.keyboard, 65536).decode(errors="replace")
        self.screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.screen)

    def echoes(self) -> bool:
        """Whether the terminal shows what is typed, as it does in its normal mode."""
        return bool(termios.tcgetattr(self._terminal)[3] & termios.ECHO)

    def exit_code(self) -> int:
        code = self.process.wait(10)
        while select.select([self.keyboard], [], [], 0)[0]:
            self._look()
        return code

    def modes_now(self) -> list[object]:
        return list(termios.tcgetattr(self._terminal))

    def contents(self) -> list[str]:
        path = named_sessions.latest(self.conversations)
        return [message.content for message in sessions.read(path).messages] if path else []

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.keyboard)
        os.close(self._terminal)


@pytest.fixture
def chats() -> Iterator[list[Chat]]:
    started: list[Chat] = []
    yield started
    for chat in started:
        chat.close()


def start(chats: list[Chat], home: Path, *arguments: str, fail_at: int = 0, shell: bool = False) -> Chat:
    chats.append(Chat(home, *arguments, fail_at=fail_at, shell=shell))
    return chats[-1]


def test_keys_while_an_answer_streams(chats: list[Chat], tmp_path: Path) -> None:
    """Tab ends the thinking, Ctrl-C stops the answer and keeps what came, other keys begin the next line."""
    chat = start(chats, tmp_path)
    chat.wait_for(">>>")
    chat.type("Why?\r")
    chat.wait_for("thinking… press Tab to answer now\r\n")
    chat.wait_for("think20 ")
    assert not chat.echoes()
    chat.type("\t")
    thought = chat.wait_for("Considering the limited time by the user")
    assert "think299" not in thought
    chat.wait_for("word10 ")
    chat.type("And x\x7fthen?\x1b[A")
    chat.wait_for("word20 ")
    chat.type("\x03")
    chat.wait_for(r"\r\n\(stopped\)\r\n")
    chat.wait_for("And then\\?")
    chat.type("\r")
    chat.wait_for("Done.\r\n")
    chat.wait_for(">>>")
    chat.type("\x04")
    assert chat.exit_code() == 0
    assert chat.modes_now() == chat.modes
    question, stopped, *rest = chat.contents()
    assert (question, rest) == ("Why?", ["And then?", "Done."])
    assert stopped.startswith("word0 word1 word2 ")
    assert "word299" not in stopped


def test_ctrl_c_at_the_prompt(chats: list[Chat], tmp_path: Path) -> None:
    """On a line it takes the line back; on an empty one it explains, and the second time it leaves."""
    chat = start(chats, tmp_path)
    chat.wait_for(">>>")
    chat.type("/cle")
    chat.wait_for("/cle")
    chat.type("\x03")
    chat.wait_for("/cle[^\n]*\n[^>]*>>>")  # the next prompt: the line that was taken back is drawn again with its own
    chat.type("\x03")
    chat.wait_for("press Ctrl-C again or type /bye to leave\r\n")
    chat.wait_for(">>>")
    chat.type("\x03")
    assert chat.exit_code() == 130
    assert chat.modes_now() == chat.modes
    assert "Traceback" not in chat.screen


def test_sigterm_in_the_middle_restores_the_terminal_and_keeps_what_came(chats: list[Chat], tmp_path: Path) -> None:
    chat = start(chats, tmp_path, "--no-think")
    chat.wait_for(">>>")
    chat.type("Why?\r")
    chat.wait_for("think30 ")
    chat.process.send_signal(signal.SIGTERM)
    assert chat.exit_code() == 143
    assert chat.modes_now() == chat.modes
    assert chat.contents()[0] == "Why?"
    assert "think30" in chat.contents()[1]


def test_sigterm_at_the_prompt_restores_the_terminal(chats: list[Chat], tmp_path: Path) -> None:
    chat = start(chats, tmp_path)
    chat.wait_for(">>>")
    time.sleep(0.2)  # the prompt is drawn before its signal handling is complete
    chat.process.send_signal(signal.SIGTERM)
    assert chat.exit_code() == 143
    assert chat.modes_now() == chat.modes


def test_a_bug_in_the_middle_restores_the_terminal(chats: list[Chat], tmp_path: Path) -> None:
    chat = start(chats, tmp_path, fail_at=1)
    chat.wait_for(">>>")
    chat.type("Why?\r")
    chat.wait_for("Error: unexpected RuntimeError: a bug")
    assert chat.exit_code() == 1
    assert chat.modes_now() == chat.modes


def test_ctrl_z_gives_the_shell_a_normal_terminal_and_fg_goes_on(chats: list[Chat], tmp_path: Path) -> None:
    chat = start(chats, tmp_path, shell=True)
    chat.wait_for(">>>")
    chat.type("Why?\r")
    chat.wait_for("think10 ")
    chat.type("\x1a")
    chat.wait_for("JOB STOPPED")
    assert chat.modes_now() == chat.modes
    chat.type("fg\n")
    chat.wait_for("think30 ")
    assert not chat.echoes()
    chat.type("\t")
    chat.wait_for("word5 ")
    chat.type("\x03")
    chat.wait_for(r"\(stopped\)")
    chat.wait_for(">>>")
    chat.type("/bye\r")
    assert chat.exit_code() == 0
    assert chat.modes_now() == chat.modes


@pytest.mark.parametrize(
    ("before", "pressed", "typed"),
    [
        ("", "hello", "hello"),
        ("hel", "lo", "hello"),
        ("ab", "\x7f\x7f\x7fc", "c"),
        ("", "a\x1b[Db", "a"),
        ("", "\ta\n", "a"),
    ],
)
def test_what_was_typed_ahead(before: str, pressed: str, typed: str) -> None:
    assert _type(before, pressed) == typed
