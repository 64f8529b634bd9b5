"""One answer as a state machine, driven on the scripted engine: events, budget, early end, stop strings, phases."""

from collections.abc import Sequence

import pytest

from localqwen.chat.local import LocalChatModel
from localqwen.chat.messages import (
    Event,
    Finished,
    Message,
    Overrides,
    Request,
    Started,
    Text,
    Thinking,
    ToolCall,
    Usage,
    Working,
)
from localqwen.chat.model_info import info_of
from localqwen.chat.reply import EARLY_STOP, Reply
from localqwen.chat.stop import StopStrings
from localqwen.engines.engine import Run, TokenOutput
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import ContextTooLong, EngineError, UsageError

STOP_TEXT = "Considering the limited time by the user, I have to give the solution based on the thinking directly now."


def model(*answers: str | Sequence[str | bytes], **options: object) -> LocalChatModel:
    return LocalChatModel(ScriptedEngine(answers, **options), "scripted")  # type: ignore[arg-type]


def ask(text: str = "hi", **options: object) -> Request:
    return Request([Message("user", text)], **options)  # type: ignore[arg-type]


def join(events: Sequence[Event]) -> tuple[str, str, list[str]]:
    """(thinking, text, names of the calls)"""
    thinking = "".join(event.text for event in events if isinstance(event, Thinking))
    text = "".join(event.text for event in events if isinstance(event, Text))
    return thinking, text, [event.name for event in events if isinstance(event, ToolCall)]


def finished(events: Sequence[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(event, Finished) for event in events) == 1
    return events[-1]


def test_an_answer_is_started_thinking_text_finished() -> None:
    events = list(model("<think>\nlet me see\n</think>\n\nYes it is.").stream(ask()))
    assert isinstance(events[0], Started)
    assert events[0].thinking
    assert join(events) == ("let me see", "Yes it is.", [])
    end = finished(events)
    assert (end.finish_reason, end.thinking_end, end.budget_forced) == ("stop", "model", False)
    # <think> \n let _ me _ see \n </think> \n \n Yes _ it _ is . and the stop token; between the tags stand seven.
    assert end.usage == Usage(events[0].prompt_tokens, 0, 18, 7)
    assert end.timing.first_token_ms is not None
    assert end.timing.first_answer_ms is not None
    assert end.timing.first_answer_ms >= end.timing.first_token_ms


def test_the_soft_switch_in_a_message_is_mirrored_to_the_hard_switch_and_its_sampling() -> None:
    chat = model("Yes.", "<think>x</think>No.")
    events = list(chat.stream(ask("hi /no_think")))
    assert join(events) == ("", "Yes.", [])
    run = chat.engine.runs[0]  # type: ignore[attr-defined]
    assert (run.sampling.temperature, run.sampling.top_p, run.sampling.top_k, run.sampling.min_p) == (0.7, 0.8, 20, 0.0)
    off = chat.engine.tokenize("<think>\n\n</think>\n\n", special=True)
    assert list(run.prompt[-len(off) :]) == off
    switch = chat.engine.tokenize("/no_think", special=False)
    assert any(list(run.prompt[at : at + len(switch)]) == switch for at in range(run.prompt_tokens))
    list(chat.stream(ask("hi")))
    run = chat.engine.runs[1]  # type: ignore[attr-defined]
    assert (run.sampling.temperature, run.sampling.top_p) == (0.6, 0.95)


def test_with_thinking_off_tags_in_the_answer_are_text() -> None:
    events = list(model("The </think> tag <think>.").stream(ask(think=False)))
    assert join(events) == ("", "The </think> tag <think>.", [])
    assert finished(events).thinking_end is None


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_a_budget_appends_the_makers_sentence_and_the_answer_begins(budget: int) -> None:
    chat = model("<think>a b c d e f g h i j", "Short answer.")
    events = list(chat.stream(ask(budget=budget)))
    end = finished(events)
    thought = "a b c d e f g h i j"[:budget]
    assert join(events) == (
        f"{thought.rstrip()}{' ' if thought.endswith(' ') else ''}\n\n{STOP_TEXT}",
        "Short answer.",
        [],
    )
    assert (end.thinking_end, end.budget_forced, end.usage.thinking_tokens) == ("budget", True, budget)
    first, second = chat.engine.runs  # type: ignore[attr-defined]
    forced = chat.engine.tokenize(EARLY_STOP, special=True)
    said = chat.engine.tokenize(f"<think>{thought}", special=True)
    assert list(second.prompt) == [*first.prompt, *said, *forced]
    assert second.cached_tokens >= first.prompt_tokens
    assert end.usage.completion_tokens == len(said) + len(chat.engine.tokenize("Short answer.", special=True)) + 1


def test_a_budget_that_is_not_reached_changes_nothing() -> None:
    chat = model("<think>a b</think>c")
    end = finished(list(chat.stream(ask(budget=4))))
    assert (end.thinking_end, end.budget_forced) == ("model", False)
    assert len(chat.engine.runs) == 1  # type: ignore[attr-defined]


def test_a_budget_waits_for_a_whole_character() -> None:
    """The fourth byte of 🙂 comes with the fourth token: only then is the sentence appended."""
    face = "🙂".encode()
    chat = model(["<think>", face[:1], face[1:2], face[2:3], face[3:], "more"], "Done.")
    events = list(chat.stream(ask(budget=2)))
    assert join(events)[0] == f"🙂\n\n{STOP_TEXT}"
    assert finished(events).usage.thinking_tokens == 4


def test_a_person_can_end_the_thinking_at_once() -> None:
    chat = model("<think>a b c d e f g", "Now.")
    seen: list[Event] = []
    for event in chat.stream(ask()):
        seen.append(event)
        if event == Thinking("c"):
            chat.end_thinking()
    assert join(seen) == (f"a b c \n\n{STOP_TEXT}", "Now.", [])
    assert (finished(seen).thinking_end, finished(seen).budget_forced) == ("user", False)


def test_ending_the_thinking_before_it_began_ends_it_when_it_begins() -> None:
    chat = model("<think>a b c", "Now.")
    stream = chat.stream(ask())
    events = [next(stream)]
    chat.end_thinking()
    assert join([*events, *stream])[1] == "Now."


def test_ending_the_thinking_while_the_answer_streams_does_nothing() -> None:
    chat = model("<think>a</think>one two")
    events: list[Event] = []
    for event in chat.stream(ask()):
        events.append(event)
        if isinstance(event, Text):
            chat.end_thinking()
    assert join(events) == ("a", "one two", [])
    assert finished(events).thinking_end == "model"


def test_unfinished_thinking_stays_thinking() -> None:
    events = list(model("<think>a b c d").stream(ask(max_tokens=3)))
    assert join(events) == ("a ", "", [])
    assert (finished(events).finish_reason, finished(events).thinking_end) == ("length", None)


@pytest.mark.parametrize(("room", "reason"), [(-1, "length"), (0, "length"), (1, "length"), (2, "stop")])
def test_a_forced_end_that_fills_the_context_is_a_finish_by_length(room: int, reason: str) -> None:
    """`room` is what the context holds behind the forced text: with one token the answer begins, and is cut."""
    tokens = ScriptedEngine([])
    prompt = Reply(ask(budget=2), info_of(tokens, "m")).prompt
    forced = tokens.tokenize(f"<think>a {EARLY_STOP}", special=True)
    chat = model("<think>a b c d", "Yes", context_length=len(prompt) + len(forced) + room)
    events = list(chat.stream(ask(budget=2)))
    assert (join(events)[1], finished(events).finish_reason) == ("Yes" if room > 0 else "", reason)
    assert len(chat.engine.runs) == (2 if room > 0 else 1)  # type: ignore[attr-defined]


def test_a_forced_end_behind_the_last_token_is_a_finish_by_length() -> None:
    """An engine may give several tokens at once, and the last of them may spend the budget and the limit."""
    engine = ScriptedEngine([])
    reply = Reply(ask(budget=1, max_tokens=2), info_of(engine, "m"))
    reply.begin(Run(reply.run.prompt, reply.run.sampling, 2))
    first = reply.run
    reply.feed(TokenOutput(tuple(engine.tokenize("<think>", special=True)), "<think>"))
    events = reply.feed(TokenOutput((7,), "a"))
    assert reply.run is first
    assert finished(events).finish_reason == "length"


def test_what_is_cached_of_the_prompt_is_never_more_than_the_prompt() -> None:
    """The first run may begin with forced tokens behind the prompt, which the engine may have cached too."""
    engine = ScriptedEngine([])
    reply = Reply(ask(), info_of(engine, "m"))
    for cached, told in ((len(reply.prompt) + 3, len(reply.prompt)), (len(reply.prompt) - 2, len(reply.prompt) - 2)):
        run = Run(reply.run.prompt, reply.run.sampling, 9, cached_tokens=cached)
        (started,) = reply.begin(run)
        assert isinstance(started, Started)
        assert (started.prompt_tokens, started.cached_tokens) == (len(reply.prompt), told)


def test_no_room_for_the_answer_after_a_forced_end_is_a_finish_by_length() -> None:
    events = list(model("<think>a b c d").stream(ask(budget=2, max_tokens=3)))
    end = finished(events)
    assert (end.finish_reason, end.usage.completion_tokens) == ("length", 3)


@pytest.mark.parametrize(
    ("stops", "shown", "hit"),
    [
        (("two",), "one ", "two"),
        (("o t", "x"), "one tw", "o t"),
        (("three", "two"), "one ", "two"),
        (("ree",), "one two th", "ree"),
        (("nowhere",), "one two three", None),
        (("one",), "", "one"),
    ],
)
def test_a_stop_string_ends_the_answer_is_not_shown_and_is_told(
    stops: tuple[str, ...], shown: str, hit: str | None
) -> None:
    events = list(model("<think>two ree one</think>one two three").stream(ask(stop=stops)))
    assert join(events)[:2] == ("two ree one", shown)
    assert (finished(events).finish_reason, finished(events).stop) == ("stop", hit)


@pytest.mark.parametrize("stops", [("two", "one"), ("one", "two"), ("nothing", "two", "one")])
def test_the_earliest_of_several_stop_strings_ends_the_answer(stops: tuple[str, ...]) -> None:
    """Whatever order they are given in: a token, or a draft, may bring several at once."""
    parser = StopStrings(stops)
    assert (parser.feed("zero one two"), parser.hit) == ("zero ", "one")
    assert parser.finish() == ""


def test_text_that_could_begin_a_stop_string_is_held_back_until_it_is_clear() -> None:
    parser = StopStrings(("one two", "ne"))
    assert [parser.feed(text) for text in ("zero o", "ther o", "n")] == ["zero ", "other ", ""]
    assert (parser.finish(), parser.hit) == ("on", None)


def test_a_stop_string_cancels_the_run() -> None:
    chat = model("one two three four")
    events = list(chat.stream(ask(stop=("two",), think=False)))
    (run,) = chat.engine.runs  # type: ignore[attr-defined]
    assert run.finished
    assert run.generated == finished(events).usage.completion_tokens == 3


def test_calls_that_are_not_read_stay_text_to_the_letter() -> None:
    """For clients that describe tools in a prompt of their own, as Qwen-Agent does, and read the answer themselves."""
    call = '<tool_call>\n{"name": "f",  "arguments": {}}\n</tool_call>'
    events = list(model(f"<think>use it {call}</think>\n\nOk.\n{call}").stream(ask(read_calls=False)))
    assert join(events)[:2] == (f"use it {call}", f"Ok.\n{call}")
    assert finished(events).finish_reason == "stop"
    unclosed = list(model(f"<think>hm {call}").stream(ask(read_calls=False)))
    assert join(unclosed)[:2] == (f"hm {call}", "")


def test_a_tool_call_is_an_event_and_the_reason_to_finish() -> None:
    events = list(
        model('<think>use it</think>\n\nOk.\n<tool_call>\n{"name": "f", "arguments": {"x": [1]}}\n</tool_call>').stream(
            ask()
        )
    )
    assert ToolCall("f", {"x": [1]}) in events
    assert join(events) == ("use it", "Ok.", ["f"])
    assert finished(events).finish_reason == "tool_calls"


def test_a_call_cut_off_by_length_is_text() -> None:
    events = list(model('<tool_call>{"name": "f", "argu').stream(ask(think=False, max_tokens=6)))
    assert join(events)[2] == []
    assert join(events)[1].startswith('<tool_call>{"name"')
    assert finished(events).finish_reason == "length"


def test_the_two_phases_may_have_different_sampling() -> None:
    request = ask(sampling=Overrides(top_k=7, seed=3), text_sampling=Overrides(temperature=0.1))
    chat = model("<think>a</think>", "b")
    assert join(list(chat.stream(request)))[:2] == ("a", "b")
    first, second = [run.sampling for run in chat.engine.runs]  # type: ignore[attr-defined]
    assert (first.temperature, first.top_k, first.top_p) == (0.6, 7, 0.95)
    assert (second.temperature, second.top_k, second.top_p) == (0.1, 7, 0.95)
    assert first.seed == 3
    assert second.seed not in (None, 3)  # the same numbers must not be drawn twice


def test_one_sampling_for_both_phases_never_restarts() -> None:
    chat = model("<think>a</think>b")
    list(chat.stream(ask(sampling=Overrides(temperature=0.3))))
    assert len(chat.engine.runs) == 1  # type: ignore[attr-defined]


def test_greedy_thinking_gets_a_warning() -> None:
    for options, warned in [({}, True), ({"think": False}, False)]:
        started = next(iter(model("x").stream(ask(sampling=Overrides(temperature=0), **options))))
        assert isinstance(started, Started)
        assert bool(started.warnings) is warned


def test_closing_the_stream_cancels_the_run_and_the_prefix_is_reused() -> None:
    chat = model("<think>one two three four", "again")
    stream = chat.stream(ask())
    for _ in range(4):
        next(stream)
    stream.close()
    run = chat.engine.runs[0]  # type: ignore[attr-defined]
    assert run.finished
    started = next(iter(chat.stream(ask())))
    assert isinstance(started, Started)
    assert started.cached_tokens == started.prompt_tokens - 1


def test_a_reader_gets_control_after_every_step_also_while_the_prompt_is_read_and_a_call_is_held() -> None:
    chat = model('<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', prefill=5)
    events = list(chat.stream(ask(think=False)))
    working = [event for event in events if isinstance(event, Working)]
    read = [event.prefilled for event in working if event.prefilled < event.prompt_tokens]
    assert read == sorted(set(read))
    assert len(read) == working[0].prompt_tokens // 5 - (working[0].prompt_tokens % 5 == 0)
    run = chat.engine.runs[0]  # type: ignore[attr-defined]
    assert len(working) - len(read) >= run.generated - 3


def test_several_answers_stream_side_by_side() -> None:
    chat = model("a b c d e", "v w x y z")
    one, two = chat.stream(ask("1", think=False)), chat.stream(ask("2", think=False))
    events: tuple[list[Event], list[Event]] = ([], [])
    for left, right in zip(one, two, strict=True):
        events[0].append(left)
        events[1].append(right)
    assert [join(side)[1] for side in events] == ["a b c d e", "v w x y z"]


def test_what_cannot_be_answered_is_refused_before_any_work() -> None:
    chat = model("x", context_length=16)
    with pytest.raises(ContextTooLong) as error:
        next(chat.stream(ask("word " * 20)))
    assert error.value.context_length == 16
    assert error.value.prompt_tokens > 40
    with pytest.raises(UsageError):
        next(chat.stream(ask(max_tokens=0)))
    with pytest.raises(UsageError, match="top_p"):
        next(chat.stream(ask(sampling=Overrides(top_p=1.5))))
    assert chat.engine.runs == []  # type: ignore[attr-defined]


def test_a_model_without_a_template_cannot_chat() -> None:
    with pytest.raises(EngineError, match="chat template"):
        model("x", chat_template="")


def test_the_template_tells_the_thinking_mode() -> None:
    base = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert model("x").thinking_mode == "switch"
    assert model("x", chat_template=base).thinking_mode == "never"
    assert model("x", chat_template=base + "<think>\n").thinking_mode == "always"


def test_an_always_thinking_model_starts_inside_its_block() -> None:
    chat = model("plan</think>\n\nDone.", chat_template="{{ messages[0].content }}<think>\n")
    assert join(list(chat.stream(ask())))[:2] == ("plan", "Done.")
