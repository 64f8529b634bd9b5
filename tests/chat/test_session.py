"""A conversation on disk: what is written is what is read, whatever happens in between."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localqwen.chat import session as sessions
from localqwen.chat.messages import Message, ToolCall
from localqwen.chat.session import Session
from localqwen.cli import named_sessions
from localqwen.errors import SessionError

QUESTION = Message("user", "How many r's?")
ANSWER = Message("assistant", "3.", "b, e, r (1), …")


def written(folder: Path, *messages: Message) -> Session:
    session = Session.new("demo", folder)
    for message in messages:
        session.add(message)
    return session


def test_everything_that_was_said_and_set_is_read_again(tmp_path: Path) -> None:
    call = Message("assistant", "", None, (ToolCall("weather", {"city": "São Paulo"}, "1"),))
    with Session.new("demo", tmp_path, system="Be kind.") as session:
        session.set_settings({"think": True})
        for message in (QUESTION, ANSWER, QUESTION, call, Message("tool", "sunny", tool_call_id="1")):
            session.add(message)
        session.set_system("Be brief.")
        session.set_settings({"temperature": 0.2, "think": None})
    read = sessions.read(session.path)
    assert read == session.conversation
    assert read.messages == (QUESTION, ANSWER, QUESTION, call, Message("tool", "sunny", tool_call_id="1"))
    assert (read.model, read.system, read.settings) == ("demo", "Be brief.", {"think": None, "temperature": 0.2})


def test_a_conversation_without_a_message_leaves_no_file(tmp_path: Path) -> None:
    with Session.new("demo", tmp_path) as session:
        session.set_system("Be kind.")
        session.clear()
    assert list(tmp_path.iterdir()) == []
    assert named_sessions.latest(tmp_path) is None


def test_logs_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    session = written(tmp_path / "home" / "conversations", QUESTION)
    assert stat.S_IMODE(session.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(session.path.parent.stat().st_mode) == 0o700


SECOND = (Message("user", "And l's?"), Message("assistant", "None."))


@pytest.mark.parametrize(
    ("change", "left", "given"),
    [
        (Session.undo, (QUESTION, ANSWER), "And l's?"),
        (Session.retry, (QUESTION, ANSWER, SECOND[0]), (SECOND[1],)),
        (Session.clear, (), None),
    ],
)
def test_what_was_taken_back_stays_taken_back(
    tmp_path: Path, change: Callable[[Session], object], left: tuple[Message, ...], given: object
) -> None:
    session = written(tmp_path, QUESTION, ANSWER, *SECOND)
    assert change(session) == given
    assert session.conversation.messages == left
    assert sessions.read(session.path).messages == left


def test_the_first_question_can_be_taken_back_too(tmp_path: Path) -> None:
    session = written(tmp_path, QUESTION, ANSWER)
    assert session.retry() == (ANSWER,)
    assert session.conversation.messages == (QUESTION,)
    assert session.undo() == QUESTION.content
    assert session.conversation.messages == sessions.read(session.path).messages == ()


def test_nothing_can_be_taken_back_from_an_empty_conversation(tmp_path: Path) -> None:
    session = Session.new("demo", tmp_path)
    assert (session.undo(), session.retry()) == (None, None)


def test_an_answer_that_was_streaming_when_its_chat_was_killed_is_kept(tmp_path: Path) -> None:
    now = [0.0]
    session = Session.new("demo", tmp_path, clock=lambda: now[0])
    session.add(QUESTION)
    for text in ("b, ", "e, ", "r"):
        session.partial(thinking=text)
        now[0] += 0.6
    session.partial(content="Th")
    now[0] += 5
    session.partial(content="ree")
    assert sessions.read(session.path).messages == (QUESTION, Message("assistant", "Three", "b, e, r"))


def test_a_finished_answer_takes_the_place_of_its_pieces(tmp_path: Path) -> None:
    ticks = iter(range(0, 1000, 10))
    session = Session.new("demo", tmp_path, clock=lambda: float(next(ticks)))
    session.add(QUESTION)
    session.partial(thinking="b, ")
    session.partial(content="3")
    session.add(ANSWER)
    assert sessions.read(session.path).messages == (QUESTION, ANSWER)


def test_a_cut_off_answer_is_still_there_after_the_next_question(tmp_path: Path) -> None:
    session = written(tmp_path, QUESTION)
    session.partial(content="Thr")
    session.close()  # writes the pieces that were waiting
    with Session.resume(session.path) as again:
        again.add(SECOND[0])
    assert sessions.read(session.path).messages == (QUESTION, Message("assistant", "Thr"), SECOND[0])


WRITER = """
import os, signal, sys
from pathlib import Path
from localqwen.chat.messages import Message
from localqwen.chat.session import Session
session = Session.new("demo", Path(sys.argv[1]))
for number in range(50):
    session.add(Message("user", f"question {number}"))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_chat_loses_nothing_and_frees_its_log(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    path = named_sessions.latest(tmp_path)
    assert path is not None
    with Session.resume(path) as session:
        assert [m.content for m in session.conversation.messages] == [f"question {n}" for n in range(50)]


def test_a_torn_last_line_is_left_out_and_the_log_goes_on(tmp_path: Path) -> None:
    session = written(tmp_path, QUESTION, ANSWER)
    session.close()
    with session.path.open("ab") as file:
        file.write(b'{"type": "message", "message": {"role": "us')
    assert sessions.read(session.path).messages == (QUESTION, ANSWER)
    with Session.resume(session.path) as again:
        again.add(SECOND[0])
    assert sessions.read(session.path).messages == (QUESTION, ANSWER, SECOND[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a conversation of localqwen"),
        (b"# notes\n", "is not a conversation of localqwen"),
        (b'{"format": "other"}\n', "is not a conversation of localqwen"),
        (b'{"format": "localqwen-conversation", "version": 9}\n', "has format version 9, this localqwen reads 1"),
        (b'{"format": "localqwen-conversation", "version": 1}\nx\n{}\n', "line 2 of"),
        (b'{"format": "localqwen-conversation", "version": 1}\n[]\n', "line 2 of"),
        (b'{"format": "localqwen-conversation", "version": 1}\n{"type": "message"}\n', "line 2 of"),
    ],
)
def test_a_file_that_is_no_log_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(SessionError, match=message) as caught:
        sessions.read(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_records_of_a_later_version_change_nothing(tmp_path: Path) -> None:
    session = written(tmp_path, QUESTION)
    session.close()
    with session.path.open("a") as file:
        file.write(json.dumps({"type": "rating", "stars": 5}) + "\n")
    assert sessions.read(session.path).messages == (QUESTION,)


def times_open(path: Path) -> int:
    """Count the descriptors of this process that are open on a file."""
    count, wanted = 0, path.stat()
    for descriptor in range(1024):
        with contextlib.suppress(OSError):  # not open
            count += os.path.samestat(os.fstat(descriptor), wanted)
    return count


def test_a_chat_that_may_not_have_a_log_does_not_leave_it_open(tmp_path: Path) -> None:
    first = written(tmp_path, QUESTION)
    for _ in range(3):
        with pytest.raises(SessionError, match="another chat"):
            Session.resume(first.path)
    assert times_open(first.path) == 1
    first.close()
    assert times_open(first.path) == 0


def test_one_chat_at_a_time_owns_a_log(tmp_path: Path) -> None:
    first = written(tmp_path, QUESTION)
    with pytest.raises(SessionError, match="another chat has this conversation open"):
        Session.resume(first.path)
    first.close()
    Session.resume(first.path).close()


def test_two_chats_at_once_have_two_logs(tmp_path: Path) -> None:
    first, second = Session.new("demo", tmp_path), Session.new("demo", tmp_path)
    for number in range(20):
        first.add(Message("user", f"a{number}"))
        second.add(Message("user", f"b{number}"))
    for session, letter in ((first, "a"), (second, "b")):
        assert [m.content for m in sessions.read(session.path).messages] == [f"{letter}{n}" for n in range(20)]


def test_a_full_disk_ends_the_log_and_not_the_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = written(tmp_path, QUESTION)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    session.add(ANSWER)
    monkeypatch.undo()
    assert session.failure is not None
    assert "No space left" in session.failure.message
    session.add(SECOND[0])
    assert session.conversation.messages == (QUESTION, ANSWER, SECOND[0])
    assert sessions.read(session.path).messages == (QUESTION,)


def test_a_name_finds_its_conversation_again(tmp_path: Path) -> None:
    session = written(tmp_path, QUESTION, ANSWER)
    named_sessions.save(session, "fruit")
    named_sessions.save(session, "fruit")  # once more is no conflict
    assert named_sessions.find("fruit", tmp_path) == session.path
    assert sessions.read(session.path).name == "fruit"
    assert [(entry.name, entry.model, entry.messages) for entry in named_sessions.listing(tmp_path)] == [
        ("fruit", "demo", 2)
    ]


def test_a_name_is_never_taken_from_another_conversation(tmp_path: Path) -> None:
    first, second = written(tmp_path, QUESTION), written(tmp_path, ANSWER)
    named_sessions.save(first, "fruit")
    with pytest.raises(SessionError, match="another conversation is called fruit"):
        named_sessions.save(second, "fruit")
    assert named_sessions.find("fruit", tmp_path) == first.path
    assert second.conversation.name == ""


def test_a_name_whose_log_is_gone_is_free(tmp_path: Path) -> None:
    first, second = written(tmp_path, QUESTION), written(tmp_path, ANSWER)
    named_sessions.save(first, "fruit")
    first.path.unlink()
    named_sessions.save(second, "fruit")
    assert named_sessions.find("fruit", tmp_path) == second.path


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "-x", "x" * 65, "naïve", "a\n"])
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SessionError, match="cannot be the name"):
        named_sessions.save(written(tmp_path, QUESTION), name)
    with pytest.raises(SessionError, match="cannot be the name"):
        named_sessions.find(name, tmp_path)


def test_an_unknown_name_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(SessionError) as nothing:
        named_sessions.find("fruit", tmp_path)
    assert nothing.value.hint == "/save NAME saves one"
    named_sessions.save(written(tmp_path, QUESTION), "fruits")
    with pytest.raises(SessionError) as near:
        named_sessions.find("fruit", tmp_path)
    assert near.value.hint == "did you mean fruits?"
    with pytest.raises(SessionError) as far:
        named_sessions.find("travel", tmp_path)
    assert far.value.hint == "saved: fruits"


def test_the_last_conversation_is_the_one_written_to_last(tmp_path: Path) -> None:
    first, second = written(tmp_path, QUESTION), written(tmp_path, QUESTION)
    os.utime(first.path, (1, 1))
    assert named_sessions.latest(tmp_path) == second.path
    first.add(ANSWER)
    os.utime(second.path, (2, 2))
    assert named_sessions.latest(tmp_path) == first.path
