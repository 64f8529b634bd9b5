"""The REPL as its user sees it: whole conversations, played on the scripted engine."""

import io
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from localqwen.chat import ChatModel
from localqwen.chat import session as sessions
from localqwen.chat.local import LocalChatModel
from localqwen.chat.messages import (
    Event,
    Finished,
    Message,
    Request,
    Started,
    Text,
    Thinking,
    ThinkingMode,
    Timing,
    ToolCall,
    Usage,
    Working,
)
from localqwen.chat.session import Session
from localqwen.cli import named_sessions
from localqwen.cli.console import Channel, Printer
from localqwen.cli.options import Settings
from localqwen.cli.repl.keys import NoKeys
from localqwen.cli.repl.loop import Repl
from localqwen.cli.repl.prompt import TerminalReader
from localqwen.cli.repl.reader import NOTHING, LineReader
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import EngineError


class Typist:
    """A reader that types the given lines into the transcript; a line may also be an exception."""

    interactive = True

    def __init__(self, lines: Iterable[str | type[BaseException]], transcript: io.StringIO) -> None:
        self._lines = iter(lines)
        self._transcript = transcript
        self.read_ahead: list[int] = []

    def read(self, typed: str = "", meanwhile: Iterator[None] = NOTHING) -> str:
        self.read_ahead = [*self.read_ahead, len(list(meanwhile))]
        line = next(self._lines, EOFError)
        if not isinstance(line, str):
            raise line
        self._transcript.write(f">>> {typed}{line}\n")
        return typed + line


Played = Event | BaseException | Callable[[], None]


class FakeModel:
    """Plays events. Among them, an exception is raised and a function is called: for what no script can say."""

    name = "fake"
    engine_name = "none"
    context_length = 100
    load_ms = 12.0
    backend_description = ""

    def __init__(self, *answers: Sequence[Played], thinking_mode: ThinkingMode = "switch") -> None:
        self.answers = iter(answers)
        self.thinking_mode: ThinkingMode = thinking_mode
        self.requests: list[Request] = []
        self.thinking_ended = self.cancelled = False

    def stream(self, request: Request) -> Generator[Event, None, None]:
        self.requests.append(request)
        try:
            for event in next(self.answers):
                if isinstance(event, BaseException):
                    raise event
                if callable(event):
                    event()
                else:
                    yield event
        except GeneratorExit:
            self.cancelled = True
            raise

    def end_thinking(self) -> None:
        self.thinking_ended = True

    def prefill_ahead(self, request: Request, answer: Message) -> Iterator[None]:
        return iter(())

    def preset(self, request: Request) -> Mapping[str, float]:
        return {"temperature": 0.6, "top_k": 20, **request.sampling.set_values()}

    def close(self) -> None: ...


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


STARTED = Started(10, 0, True)
DONE = Finished("stop", Usage(10, 2, 7, 3), Timing(12.0, 50.0, 90.4, 1234.56, 8.0))


@dataclass
class Chat:
    """A REPL whose answer and aside go into one transcript, as on a terminal."""

    folder: Path
    answers: Sequence[str] = ()
    lines: Sequence[str | type[BaseException]] = ()
    settings: Settings = field(default_factory=Settings)
    model: ChatModel | None = None

    def __post_init__(self) -> None:
        self.out = io.StringIO()
        self.engine = ScriptedEngine(self.answers)
        model = self.model or LocalChatModel(self.engine, "demo", thinking_mode="switch")
        self.session = Session.new("demo", self.folder)
        printer = Printer(Channel(self.out), Channel(self.out))
        self.repl = Repl(model, self.session, Typist(self.lines, self.out), printer, self.settings)

    def play(self) -> str:
        self.code = self.repl.run()
        return self.out.getvalue()

    @property
    def messages(self) -> tuple[Message, ...]:
        return self.repl.session.conversation.messages


def test_a_conversation(tmp_path: Path) -> None:
    """One whole session: questions, switches, commands, mistakes, goodbye."""
    chat = Chat(
        tmp_path,
        ["<think>\nb, e, r\n</think>\n\n3.", "None.", "<think>\nlook\n</think>\n\nNone, really.", "Two lines."],
        [
            "How many r's are in strawberries?",
            "/no_think",
            "And l's?",
            "Really? /think",
            "/undo",
            "/thnik",
            "/system Be kind.",
            "/system",
            '/system ""',
            "/budget 5",
            "/budget off",
            "/budget many",
            "/save fruit",
            "/resume fruit",
            '"""\nfirst\n\nsecond\n"""',
            "/clear",
            "/retry",
            "/bye",
            "never typed",
        ],
    )
    assert chat.play() == (
        ">>> How many r's are in strawberries?\n"
        "b, e, r\n"
        "3.\n"
        ">>> /no_think\n"
        "thinking is off\n"
        ">>> And l's?\n"
        "None.\n"
        ">>> Really? /think\n"
        "look\n"
        "None, really.\n"
        ">>> /undo\n"
        "undone: Really? /think\n"
        ">>> /thnik\n"
        "Error: there is no command /thnik\n"
        "\nhint: did you mean /think? A message that begins with / needs a space before it\n"
        ">>> /system Be kind.\n"
        "system prompt: Be kind.\n"
        ">>> /system\n"
        "system prompt: Be kind.\n"
        '>>> /system ""\n'
        "system prompt: (none)\n"
        ">>> /budget 5\n"
        "at most 5 tokens of thinking\n"
        ">>> /budget off\n"
        "no thinking budget\n"
        ">>> /budget many\n"
        "Error: /budget is 'many', it must be a whole number from 0\n"
        "\nhint: /help lists the commands\n"
        ">>> /save fruit\n"
        "saved as fruit; /resume fruit continues it\n"
        ">>> /resume fruit\n"
        "fruit is this conversation\n"
        '>>> """\nfirst\n\nsecond\n"""\n'
        "Two lines.\n"
        ">>> /clear\n"
        "the conversation is empty; the system prompt and the settings stay\n"
        ">>> /retry\n"
        "Error: there is no question to repeat\n"
        "\nhint: type a question\n"
        ">>> /bye\n"
    )
    assert chat.code == 0
    assert len([run for run in chat.engine.runs if run.max_tokens]) == 4


def test_history_goes_to_the_model_with_its_thinking_beside_it(tmp_path: Path) -> None:
    chat = Chat(tmp_path, ["<think>\nhm\n</think>\n\nOne.", "Two."], ["1?", "2? /no_think"])
    chat.play()
    assert chat.messages == (
        Message("user", "1?"),
        Message("assistant", "One.", "hm"),
        Message("user", "2? /no_think"),
        Message("assistant", "Two."),
    )
    assert sessions.read(chat.session.path).messages == chat.messages


@pytest.mark.parametrize(
    ("lines", "think", "asked"),
    [
        (["a"], None, None),
        (["a"], False, False),
        (["/think", "a"], False, True),
        (["/no_think", "a"], None, False),
        (["/no_think", "a /think"], None, None),  # the word in the question decides: it is the newer wish
        (["/no_think How are you?"], True, None),
        (["/no_think", "a", "/think", "b"], None, True),
    ],
)
def test_what_decides_whether_the_next_answer_thinks(
    tmp_path: Path, lines: list[str], think: bool | None, asked: bool | None
) -> None:
    """None leaves it to the soft switch in the messages, which the chat layer reads."""
    chat = Chat(tmp_path, ["x", "y"], lines, Settings(think=think))
    chat.play()
    assert chat.repl.session.conversation.messages[-1].role == "assistant"
    chat.repl.session.retry()
    assert chat.repl.request().think is asked


def test_ctrl_c_keeps_what_came(tmp_path: Path) -> None:
    model = FakeModel([STARTED, Thinking("hm"), Text("The ans"), ctrl_c, Text("w"), Text("er is never seen")], [DONE])
    chat = Chat(tmp_path, lines=["why?", "and?"], model=model)
    assert chat.play() == ">>> why?\nhm\nThe answ\n(stopped)\n>>> and?\n"
    assert model.cancelled
    assert chat.messages[:3] == (
        Message("user", "why?"),
        Message("assistant", "The answ", "hm"),
        Message("user", "and?"),
    )
    assert '"stopped": true' in chat.session.path.read_text()


def test_a_thought_without_an_answer_is_kept_too(tmp_path: Path) -> None:
    chat = Chat(tmp_path, lines=["why?"], model=FakeModel([STARTED, ctrl_c, Thinking("hm"), Thinking("x")]))
    assert chat.play() == ">>> why?\nhm\n(stopped)\n"
    assert chat.messages == (Message("user", "why?"), Message("assistant", "", "hm"))


def test_a_question_stopped_before_anything_came_can_be_repeated_or_replaced(tmp_path: Path) -> None:
    model = FakeModel([ctrl_c, STARTED], [STARTED, ctrl_c, Working(1, 9)], [STARTED, Text("4."), DONE])
    chat = Chat(tmp_path, lines=["2+2", "/retry", "3+1"], model=model)
    note = "(stopped before any text; /retry asks again)\n"
    assert chat.play() == f">>> 2+2\n{note}>>> /retry\n{note}>>> 3+1\n4.\n"
    assert [[m.content for m in request.messages] for request in model.requests] == [["2+2"], ["2+2"], ["3+1"]]


def test_the_second_ctrl_c_leaves_and_the_log_has_what_came(tmp_path: Path) -> None:
    model = FakeModel([STARTED, Text("The ans"), ctrl_c, ctrl_c, Text("wer")])
    chat = Chat(tmp_path, lines=["why?"], model=model)
    with pytest.raises(KeyboardInterrupt):
        chat.play()
    chat.session.close()
    assert sessions.read(chat.session.path).messages == (Message("user", "why?"), Message("assistant", "The ans"))


def test_ctrl_c_at_the_prompt_warns_once_and_then_leaves(tmp_path: Path) -> None:
    chat = Chat(
        tmp_path, ["x"], [KeyboardInterrupt, "a /no_think", KeyboardInterrupt, KeyboardInterrupt, "never typed"]
    )
    hint = "press Ctrl-C again or type /bye to leave\n"
    assert chat.play() == f"{hint}>>> a /no_think\nx\n{hint}"
    assert chat.code == 130


def test_a_failed_question_leaves_no_trace_and_the_chat_goes_on(tmp_path: Path) -> None:
    broken = EngineError("the engine stopped", "try again")
    model = FakeModel(
        [STARTED, Text("1."), DONE], [STARTED, Text("par"), broken], [broken], [STARTED, Text("3."), DONE]
    )
    chat = Chat(tmp_path, lines=["1", "2", "/retry", "3"], model=model)
    error = "Error: the engine stopped\n\nhint: try again\n"
    assert chat.play() == f">>> 1\n1.\n>>> 2\npar\n{error}>>> /retry\n{error}>>> 3\n3.\n"
    assert [message.content for message in chat.messages] == ["1", "1.", "3", "3."]
    assert sessions.read(chat.session.path).messages == chat.messages


def test_retry_asks_the_same_question_without_the_old_answer(tmp_path: Path) -> None:
    model = FakeModel([Text("a"), DONE], [Text("b"), DONE])
    chat = Chat(tmp_path, lines=["q", "/retry"], model=model)
    chat.play()
    assert [list(request.messages) for request in model.requests] == [[Message("user", "q")]] * 2
    assert chat.messages == (Message("user", "q"), Message("assistant", "b"))


def test_an_answer_is_lost_only_to_a_new_one(tmp_path: Path) -> None:
    model = FakeModel([Text("a"), DONE], [EngineError("broken")], [STARTED, ctrl_c, Working(1, 9)])
    chat = Chat(tmp_path, lines=["q", "/retry", "/retry"], model=model)
    chat.play()
    assert (
        chat.messages == sessions.read(chat.session.path).messages == (Message("user", "q"), Message("assistant", "a"))
    )


def test_set_changes_the_next_answers_and_lists_what_holds(tmp_path: Path) -> None:
    model = FakeModel([DONE])
    lines = ["/set temperature 0.3", "/set top-k 5", "/set top_k default", "/set max_tokens 9", "/set", "q"]
    chat = Chat(tmp_path, lines=lines, model=model)
    assert ">>> /set\n* temperature        0.3\n  top_p              -\n  top_k              20\n" in chat.play()
    assert model.requests[0].sampling.set_values() == {"temperature": 0.3}
    assert model.requests[0].max_tokens == 9
    assert sessions.read(chat.session.path).settings == {"temperature": 0.3, "top_k": None, "max_tokens": 9}


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("/xyzzy", "there is no command /xyzzy", "/help lists the commands."),
        ("/set temprature 1", "there is no setting temprature", "did you mean temperature?"),
        ("/set colour red", "there is no setting colour", "possible: temperature, top_p"),
        ("/set temperature", "/set temperature needs a value", "/set temperature default"),
        ("/set temperature hot", "temperature is 'hot', it must be a number from 0 to 100", "/set temperature default"),
        ("/set top_p nan", "top_p is 'nan', it must be a number from 0 to 1", "/set top_p default"),
        ("/set max_tokens 0", "max_tokens is '0', it must be a whole number from 1", "/help"),
        ("/set hide_thinking maybe", "hide_thinking is 'maybe', it must be on or off", "on"),
        ("/stats maybe", "/stats is 'maybe', it must be on or off", "/stats on"),
        ("/budget -1", "/budget is '-1'", "/help"),
        ("/save", "/save needs a name", "/save holidays"),
        ("/save ../x", "'../x' cannot be the name", "use up to 64 letters"),
        ("/resume nowhere", "no conversation is called nowhere", "/save NAME"),
        ("/clear all", "/clear takes no argument", "type /clear"),
        ("/undo", "there is nothing to undo", "/clear"),
    ],
)
def test_a_mistyped_command_is_explained_and_nothing_is_sent(
    tmp_path: Path, line: str, message: str, hint: str
) -> None:
    model = FakeModel()
    shown = Chat(tmp_path, lines=[line], model=model).play()
    assert f"Error: {message}" in shown
    assert hint in shown.partition("\nhint: ")[2]
    assert model.requests == []


@pytest.mark.parametrize(
    ("mode", "line", "message"),
    [("never", "/think", "fake cannot think"), ("always", "/no_think", "fake always thinks")],
)
def test_a_model_that_cannot_switch_says_so(tmp_path: Path, mode: ThinkingMode, line: str, message: str) -> None:
    chat = Chat(tmp_path, lines=[line], model=FakeModel(thinking_mode=mode))
    assert f"Error: {message}" in chat.play()
    assert chat.repl.settings.think is None


def test_statistics_of_the_last_answer_or_of_each(tmp_path: Path) -> None:
    model = FakeModel([Text("a"), DONE], [Text("b"), DONE])
    chat = Chat(tmp_path, lines=["/stats", "q", "/stats", "/stats on", "q"], model=model)
    line = (
        "load 12 ms · first token 50 ms · first answer 90 ms · prompt 10 tokens (2 cached) at 1,234.6 tokens/s"
        " · answer 7 tokens (3 thinking) at 8.0 tokens/s\n"
    )
    assert chat.play() == (
        f">>> /stats\nno answer yet\n>>> q\na\n>>> /stats\n{line}"
        f">>> /stats on\nstatistics after each answer: on\n>>> q\nb\n{line}"
    )


def test_an_answer_that_was_cut_says_how_to_get_more(tmp_path: Path) -> None:
    cut = Finished("length", Usage(), Timing())
    chat = Chat(tmp_path, lines=["q"], model=FakeModel([Text("The"), cut]))
    assert chat.play() == (
        ">>> q\nThe\nwarning: the answer was cut at its token limit; "
        "raise it with /set max_tokens N, or the context with --ctx\n"
    )


def test_hidden_thinking_and_tool_calls(tmp_path: Path) -> None:
    call = ToolCall("weather", {"city": "Łódź"})
    model = FakeModel([STARTED, Thinking("secret"), Text("Let me look."), call, DONE])
    chat = Chat(tmp_path, lines=["/set hide_thinking on", "q"], model=model)
    assert chat.play().endswith('>>> q\nLet me look.\n{"name": "weather", "arguments": {"city": "Łódź"}}\n')
    assert chat.messages[-1] == Message("assistant", "Let me look.", "secret", (call,))


def test_resume_goes_on_with_its_history_system_prompt_and_settings(tmp_path: Path) -> None:
    before = Chat(tmp_path, ["Hi."], ["/system Be kind.", "/set temperature 0.1", "Hello /no_think", "/save kind"])
    before.play()
    before.session.close()
    model = FakeModel([DONE])
    chat = Chat(tmp_path, lines=["/resume", "/resume kind", "And you?"], model=model)
    shown = chat.play()
    assert ">>> /resume\nkind " in shown
    assert " 2 messages  demo\n>>> /resume kind\nkind continues: 2 messages\n" in shown
    asked = [message.content for message in model.requests[0].messages]
    assert asked == ["Be kind.", "Hello /no_think", "Hi.", "And you?"]
    assert model.requests[0].sampling.temperature == 0.1
    assert named_sessions.find("kind", tmp_path) == chat.repl.session.path


def test_a_conversation_that_another_chat_has_open_is_refused(tmp_path: Path) -> None:
    open_elsewhere = Chat(tmp_path, ["Hi."], ["Hello /no_think", "/save kind"])
    open_elsewhere.play()
    chat = Chat(tmp_path, lines=["/resume kind"])
    assert "Error: another chat has this conversation open" in chat.play()
    assert chat.repl.session is chat.session


def test_help_names_every_command(tmp_path: Path) -> None:
    shown = Chat(tmp_path, lines=["/help"]).play()
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("/")] == [
        "/think", "/no_think", "/budget", "/system", "/set", "/stats", "/save",
        "/resume", "/retry", "/undo", "/clear", "/help", "/bye",
    ]  # fmt: skip


class TabKey(NoKeys):
    """A keyboard on which Tab is pressed after three looks, and some letters are typed ahead."""

    hint = "press Tab"

    def __init__(self) -> None:
        self.pressed = iter([False, False, False, True])

    def hurry(self) -> bool:
        self.typed = "And th"
        return next(self.pressed, False)


def test_a_key_ends_the_thinking_and_what_was_typed_ahead_begins_the_next_line(tmp_path: Path) -> None:
    script = ["<think>\n" + "on and on " * 50, "So: 4.", "5."]
    chat = Chat(tmp_path, script, ["2+2?", "en? /no_think"])
    chat.repl.keys = TabKey()
    chat.repl.printer.thinking_hint = "press Tab"
    shown = chat.play()
    assert shown.startswith(">>> 2+2?\npress Tab\non")
    assert "Considering the limited time by the user" in shown
    assert shown.endswith("\nSo: 4.\n>>> And then? /no_think\n5.\n")


def test_while_the_user_types_the_answer_is_read_as_the_next_turn_will_show_it(tmp_path: Path) -> None:
    thought = "<think>\n" + "and so on " * 20 + "\n</think>\n\nSo: 4."
    chat = Chat(tmp_path, [thought, "5."], ["2+2?", "sure?"])
    chat.play()
    _, *ahead, second = chat.engine.runs[: 1 + [run.max_tokens > 0 for run in chat.engine.runs].index(True, 1)]
    assert {run.max_tokens for run in ahead} == {0}
    rest = chat.engine.tokenize("sure?<|im_end|>\n<|im_start|>assistant\n", special=True)
    assert second.prompt_tokens - second.cached_tokens <= len(rest) + 1
    assert isinstance(chat.repl.reader, Typist)
    assert chat.repl.reader.read_ahead[0] == 0 < chat.repl.reader.read_ahead[1]
    quiet = Chat(tmp_path, [thought, "5."], ["2+2?", "sure?"])
    quiet.repl.prefill_ahead = False
    quiet.play()
    assert len(quiet.engine.runs) == 2


def test_a_log_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    chat = Chat(tmp_path / "file" / "conversations", ["a", "b"], ["1 /no_think", "2"])
    shown = chat.play()
    assert shown.count("warning: this conversation is not logged: cannot write") == 1
    assert shown.endswith(">>> 2\nb\n")


def test_a_pipe_is_read_line_by_line_and_blocks_as_a_whole(tmp_path: Path) -> None:
    reader = LineReader(io.StringIO('one\n"""two\nlines"""\n\n"""\nnever closed\n'))
    assert [reader.read(), reader.read(), reader.read(), reader.read()] == [
        "one", '"""two\nlines"""', "", '"""\nnever closed',
    ]  # fmt: skip
    with pytest.raises(EOFError):
        reader.read()


def test_the_terminal_goes_on_with_other_work_until_a_key_comes() -> None:
    """prompt_toolkit's own event loop on a pipe; a line typed in the middle ends the work at its next step."""
    steps: list[int] = []

    def work(keyboard: PipeInput) -> Iterator[None]:
        for step in range(100):
            steps.append(step)
            if step == 5:
                keyboard.send_text("hello\r")
            time.sleep(0.02)  # as a step of an engine: another thread watches the keyboard
            yield

    with create_pipe_input() as keyboard:
        reader = TerminalReader([], None, input=keyboard, output=DummyOutput())
        rest = work(keyboard)
        assert reader.read(meanwhile=rest) == "hello"
        assert 5 in steps
        assert len(steps) < 100
        keyboard.send_text("bye\r")
        assert reader.read(meanwhile=rest) == "bye"
