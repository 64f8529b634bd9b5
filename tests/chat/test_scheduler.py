"""Many answers on one scripted engine: who waits, who runs, who is cancelled, and what is computed while idle."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from localqwen.chat.answer import Answer
from localqwen.chat.messages import (
    Event,
    Finished,
    Message,
    PrefillProgress,
    Request,
    SamplingOverrides,
    Started,
    Text,
)
from localqwen.chat.model_info import LoadedModel, info_of
from localqwen.chat.prefill_ahead import LONGEST_SLICE, SMALLEST_SLICE, EndedAnswer, PrefillAhead, next_turn
from localqwen.chat.reply import Reply
from localqwen.chat.scheduler import Scheduler, Ticket, events_of
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import Busy, EngineError, LocalqwenError


@dataclass
class Desk:
    """A scheduler on a scripted engine, and what it has emitted."""

    answers: Sequence[str]
    options: dict[str, Any] = field(default_factory=dict)
    progress: bool = False
    prefill_ahead: bool = True
    kind: type[ScriptedEngine] = ScriptedEngine

    def __post_init__(self) -> None:
        self.engine = self.kind(self.answers, **self.options)
        self.info = info_of(self.engine, "m")
        self.emitted: list[tuple[Ticket, int, Event | LocalqwenError]] = []
        self.scheduler: Scheduler[Ticket] = Scheduler(
            LoadedModel(self.engine, self.info),
            lambda *what: self.emitted.append(what),
            progress=self.progress,
            prefill_ahead=self.prefill_ahead,
        )

    def ask(self, text: str = "hi", *, answers: int = 1, **fields: Any) -> Ticket:
        ticket = Ticket()
        requests = [Request([Message("user", text)], **fields)] * answers
        self.scheduler.add(ticket, [Reply(request, self.info) for request in requests])
        return ticket

    def run(self, steps: int = 1000) -> None:
        """Until nothing is left to do, or so many steps."""
        for _ in range(steps):
            if not self.scheduler.busy:
                return
            self.scheduler.admit()
            self.scheduler.step()

    def of(self, ticket: Ticket, index: int = 0) -> list[Event | LocalqwenError]:
        return [what for owner, number, what in self.emitted if owner is ticket and number == index]

    def text(self, ticket: Ticket, index: int = 0) -> str:
        return Answer.of(what for what in self.of(ticket, index) if not isinstance(what, LocalqwenError)).content


def test_an_answer_is_started_shown_and_finished() -> None:
    desk = Desk(["one two"])
    ticket = desk.ask(think=False)
    assert (desk.scheduler.waiting, desk.scheduler.running) == (1, 0)
    desk.scheduler.admit()
    assert (desk.scheduler.waiting, desk.scheduler.running) == (0, 1)
    desk.run()
    assert not desk.scheduler.busy
    first, *between, last = desk.of(ticket)
    assert isinstance(first, Started)
    assert isinstance(last, Finished)
    assert all(isinstance(event, Text) for event in between)
    assert desk.text(ticket) == "one two"


def test_the_engines_runs_are_filled_and_the_next_waits_its_turn() -> None:
    desk = Desk(["a b", "c d", "e f"], {"max_runs": 2})
    tickets = [desk.ask(think=False) for _ in range(3)]
    desk.scheduler.admit()
    assert (desk.scheduler.running, desk.scheduler.waiting) == (2, 1)
    assert desk.scheduler.tickets == set(tickets)
    desk.run()
    assert [desk.text(ticket) for ticket in tickets] == ["a b", "c d", "e f"]


def test_a_second_answer_to_a_prompt_waits_until_the_first_has_read_it() -> None:
    desk = Desk(["x", "y", "z"], {"prefill": 4})
    ticket = desk.ask("a b c d e f g h", answers=2, think=False)
    other = desk.ask("another prompt", think=False)
    desk.scheduler.admit()
    assert [owner for owner, *_ in desk.emitted] == [ticket, other]  # the other one does not wait for it
    first = desk.engine.runs[0]
    while len(desk.engine.runs) < 3:
        assert not desk.scheduler.waiting or first.prefilled < first.prompt_tokens
        desk.scheduler.step()
        desk.scheduler.admit()
    assert first.prefilled == first.prompt_tokens
    desk.run()
    assert {desk.text(ticket, 0), desk.text(ticket, 1), desk.text(other)} == {"x", "y", "z"}


def test_a_phase_with_its_own_sampling_restarts_the_answer_in_one_stream() -> None:
    desk = Desk(["<think>a</think>", "b"])
    ticket = desk.ask(text_sampling=SamplingOverrides(temperature=0.1))
    desk.run()
    assert desk.text(ticket) == "b"
    assert [run.finished for run in desk.engine.runs] == [True, True]
    assert sum(isinstance(event, Started) for event in desk.of(ticket)) == 1


def test_a_cancelled_ticket_frees_its_runs_and_is_silent() -> None:
    desk = Desk(["a b c d", "e f g h", "i"], {"max_runs": 2})
    gone, stays, waits = (desk.ask(think=False) for _ in range(3))
    desk.run(2)
    before = len(desk.of(gone))
    desk.scheduler.cancel(gone)
    desk.scheduler.cancel(waits)
    assert desk.engine.runs[0].finished
    assert desk.scheduler.tickets == {stays}
    desk.run()
    assert (len(desk.of(gone)), desk.of(waits), desk.text(stays)) == (before, [], "e f g h")


def test_the_thinking_of_running_answers_is_ended_by_their_ticket() -> None:
    desk = Desk(["<think>a b c d e f", "Now."], {"max_runs": 1})
    ticket, waits = desk.ask(), desk.ask()
    desk.run(4)
    assert desk.scheduler.end_thinking(ticket.id)
    assert not desk.scheduler.end_thinking(waits.id)
    desk.scheduler.cancel(waits)
    desk.run()
    assert desk.text(ticket) == "Now."


def test_a_run_that_cannot_start_ends_its_ticket_alone() -> None:
    desk = Desk(["only one"], {"max_runs": 1})
    fine, fails, beside = desk.ask(think=False), desk.ask(answers=2, think=False), desk.ask(think=False)
    desk.run()
    assert desk.text(fine) == "only one"
    for ticket in (fails, beside):
        (error,) = desk.of(ticket)
        assert isinstance(error, EngineError)
        assert "no more answers" in error.message


def test_every_ticket_ends_when_all_fail_and_only_waiting_ones_when_those_fail() -> None:
    desk = Desk(["a b c", "d e f"], {"max_runs": 1})
    runs, waits = desk.ask(think=False), desk.ask(think=False)
    desk.run(1)
    desk.scheduler.fail_waiting(Busy("stopping"))
    assert isinstance(desk.of(waits)[-1], Busy)
    assert desk.scheduler.tickets == {runs}
    desk.scheduler.fail(EngineError("broken"))
    assert isinstance(desk.of(runs)[-1], EngineError)
    assert not desk.scheduler.busy
    assert desk.engine.runs[0].finished


def test_progress_is_told_for_steps_that_show_nothing_where_it_is_wanted() -> None:
    for progress in (False, True):
        desk = Desk(["a"], {"prefill": 4}, progress=progress)
        ticket = desk.ask("a b c d e f", think=False)
        desk.run()
        told = [event for event in desk.of(ticket) if isinstance(event, PrefillProgress)]
        assert [event.prefilled for event in told][:3] == ([4, 8, 12] if progress else [])
        assert desk.text(ticket) == "a"


def asked_and_answered(desk: Desk, text: str) -> None:
    desk.ask(text, think=False)
    desk.run()


def prefix_of(desk: Desk, text: str, answer: str) -> tuple[int, ...]:
    request = Request([Message("user", text)], think=False)
    return next_turn(request, Message("assistant", answer), desk.info, thinking=False)


def test_an_idle_engine_computes_what_the_latest_conversation_continues_with_first() -> None:
    desk = Desk(["first answer", "second answer"])
    asked_and_answered(desk, "one")
    asked_and_answered(desk, "two")
    while desk.scheduler.can_prefill_ahead:
        desk.scheduler.prefill_ahead()
    computed = [run.prompt for run in desk.engine.runs if not run.max_tokens]
    second, first = prefix_of(desk, "two", "second answer"), prefix_of(desk, "one", "first answer")
    assert computed.index(second) < computed.index(first)
    assert not any(run.prompt_tokens > run.prefilled for run in desk.engine.runs)


def test_nothing_is_computed_ahead_while_an_answer_runs_or_where_it_is_off() -> None:
    desk = Desk(["an answer", "another one that is longer"])
    asked_and_answered(desk, "one")
    desk.ask("other", think=False)
    desk.run(2)
    runs = len(desk.engine.runs)
    desk.scheduler.prefill_ahead()
    assert len(desk.engine.runs) == runs
    off = Desk(["an answer"], prefill_ahead=False)
    asked_and_answered(off, "one")
    assert not off.scheduler.can_prefill_ahead


def test_a_cancelled_answer_has_no_next_turn() -> None:
    desk = Desk(["a b c d"])
    ticket = desk.ask(think=False)
    desk.run(2)
    desk.scheduler.cancel(ticket)
    assert not desk.scheduler.can_prefill_ahead


@pytest.mark.parametrize("begun", [False, True])
def test_a_conversation_that_goes_on_is_not_computed_ahead_any_more(begun: bool) -> None:
    answer = "first answer " * 9
    desk = Desk([answer, "second"], {"max_runs": 2})
    asked_and_answered(desk, "one")
    if begun:
        desk.scheduler.prefill_ahead()
    assert desk.scheduler.can_prefill_ahead
    history = [Message("user", "one"), Message("assistant", answer), Message("user", "more")]
    desk.scheduler.add(Ticket(), [Reply(Request(history, think=False), desk.info)])
    desk.scheduler.admit()
    assert not desk.scheduler.can_prefill_ahead
    desk.run()
    assert desk.scheduler.can_prefill_ahead  # its own next turn


def next_of(desk: Desk, ended: EndedAnswer) -> tuple[int, ...]:
    return next_turn(ended.request, ended.message, desk.info, thinking=ended.thinking)


def test_the_next_turn_may_be_rendered_elsewhere_and_handed_back() -> None:
    desk = Desk(["first answer", "second answer"], {"max_runs": 2})
    asked_and_answered(desk, "one")
    asked_and_answered(desk, "two")
    first, second = desk.scheduler.take_ended()
    assert not desk.scheduler.can_prefill_ahead
    assert desk.scheduler.take_ended() == []
    assert next_of(desk, second) == prefix_of(desk, "two", "second answer")
    runs = len(desk.engine.runs)
    desk.scheduler.compute_pending()
    assert len(desk.engine.runs) == runs
    for ended in (first, second):
        desk.scheduler.add_pending(ended, next_of(desk, ended))
    while desk.scheduler.pending:
        desk.scheduler.compute_pending()
    computed = [run.prompt for run in desk.engine.runs if not run.max_tokens]
    assert computed.index(next_of(desk, second)) < computed.index(next_of(desk, first))


def test_what_is_handed_back_of_a_conversation_that_has_gone_on_is_not_computed() -> None:
    desk = Desk(["first answer", "second"], {"max_runs": 2})
    asked_and_answered(desk, "one")
    (ended,) = desk.scheduler.take_ended()
    history = [Message("user", "one"), ended.message, Message("user", "more")]
    desk.scheduler.add(Ticket(), [Reply(Request(history, think=False), desk.info)])
    desk.scheduler.admit()
    desk.scheduler.add_pending(ended, next_of(desk, ended))
    assert desk.scheduler.pending == 0


def test_nothing_is_computed_for_an_answer_without_a_next_turn_or_handed_back_twice() -> None:
    desk = Desk(["first answer"])
    asked_and_answered(desk, "one")
    (ended,) = desk.scheduler.take_ended()
    desk.scheduler.add_pending(ended, ())
    desk.scheduler.add_pending(ended, next_of(desk, ended))
    assert desk.scheduler.pending == 0


def test_a_next_turn_is_left_alone_where_others_have_taken_its_slot() -> None:
    desk = Desk(["first answer", "x"])
    desk.ask("one " * 20, think=False)
    desk.run()
    (ended,) = desk.scheduler.take_ended()
    asked_and_answered(desk, "something else")
    desk.engine._cached.clear()
    desk.scheduler.add_pending(ended, next_of(desk, ended))
    assert desk.scheduler.pending == 0


def test_a_known_next_turn_waits_while_an_answer_runs() -> None:
    desk = Desk(["first answer", "another one"], {"max_runs": 2})
    asked_and_answered(desk, "one")
    (ended,) = desk.scheduler.take_ended()
    desk.scheduler.add_pending(ended, next_of(desk, ended))
    desk.ask("other", think=False)
    runs = len(desk.engine.runs)
    desk.scheduler.compute_pending()
    assert (len(desk.engine.runs), desk.scheduler.pending) == (runs, 1)


def test_a_conversation_that_another_one_passes_by_is_still_computed_ahead() -> None:
    """Its prefix may be half computed already, or only known: either way the other prompt leaves it."""
    for begun in (False, True):
        desk = Desk(["first answer " * 9, "x"], {"max_runs": 2})
        asked_and_answered(desk, "one")
        if begun:
            desk.scheduler.prefill_ahead()
        desk.ask("something else altogether, of many words, so that little is shared", think=False)
        desk.scheduler.admit()
        assert desk.scheduler.can_prefill_ahead


@pytest.mark.parametrize(("shared", "goes_on"), [(12, True), (11, False)])
def test_a_prompt_goes_on_with_one_whose_last_eight_tokens_it_may_lack(shared: int, goes_on: bool) -> None:
    desk = Desk(["x", "y"])
    words = "abcdefghijklmnopqrst"  # without spaces between them, one token
    earlier = Request([], prompt=".".join(words[:10]) + ".")
    other = Request([], prompt=(".".join(words[:10]) + ".")[:shared] + ("?" * 30))
    for request in (earlier, other):
        reply = Reply(request, desk.info)
        desk.scheduler.add(Ticket(), [reply])
        desk.scheduler.admit()
        assert len(reply.prompt) in (20, shared + 30)
        if request is earlier:
            desk.run()
    assert desk.scheduler.can_prefill_ahead is not goes_on


def test_a_next_turn_is_known_where_it_leaves_room_in_the_context() -> None:
    length = len(prefix_of(Desk([]), "hi", "Hello there."))
    for context, fits in ((length, False), (length + 1, True)):
        desk = Desk([], {"context_length": context})
        request, answer = Request([Message("user", "hi")], think=False), Message("assistant", "Hello there.")
        pending = desk.scheduler.next_turn(request, answer, thinking=False)
        assert (pending is not None) is fits
    assert desk.scheduler.next_turn(Request([], prompt="x"), Message("assistant", "y"), thinking=False) is None


def test_of_several_answers_to_a_prompt_the_first_may_go_on() -> None:
    desk = Desk(["one answer", "another one"])
    desk.ask(answers=2, think=False)
    desk.run()
    while desk.scheduler.can_prefill_ahead:
        desk.scheduler.prefill_ahead()
    computed = {run.prompt for run in desk.engine.runs if not run.max_tokens}
    assert prefix_of(desk, "hi", "one answer") in computed
    assert prefix_of(desk, "hi", "another one") not in computed


def test_an_answer_that_is_cancelled_by_its_last_event_has_no_next_turn() -> None:
    def cancel(ticket: Ticket, index: int, what: Event | LocalqwenError) -> None:
        if isinstance(what, Finished):
            scheduler.cancel(ticket)

    desk = Desk(["an answer"])
    scheduler: Scheduler[Ticket] = Scheduler(LoadedModel(desk.engine, desk.info), cancel)
    desk.scheduler = scheduler
    asked_and_answered(desk, "one")
    assert not scheduler.can_prefill_ahead


def test_a_conversation_whose_cache_others_took_is_left_alone() -> None:
    class Forgetful(ScriptedEngine):
        def cached_prefix(self, prompt: Sequence[int]) -> int:
            return 2 if forgotten else super().cached_prefix(prompt)

    forgotten = False
    desk = Desk(["an answer"], kind=Forgetful)
    asked_and_answered(desk, "a question of some words that takes more than a few tokens")
    forgotten = True
    desk.scheduler.prefill_ahead()
    assert len(desk.engine.runs) == 1
    assert not desk.scheduler.can_prefill_ahead


@pytest.mark.parametrize(
    ("seconds", "slices"),
    [
        ([LONGEST_SLICE / 2 - 0.01] * 3, [8, 16, 32]),  # quick ones grow
        ([LONGEST_SLICE / 2] * 3, [8, 8, 8]),  # those in between stay
        ([0.0, 0.0, LONGEST_SLICE, 0.1], [8, 16, 32, 32]),
        ([0.0, 0.0, LONGEST_SLICE + 0.01, 0.1], [8, 16, 32, 16]),  # slow ones shrink
        ([LONGEST_SLICE + 0.01] * 2, [8, 8]),  # but never below the smallest
    ],
)
def test_slices_are_as_long_as_a_newcomer_can_wait(seconds: list[float], slices: list[int]) -> None:
    assert SMALLEST_SLICE == 8
    times = iter([moment for each in seconds for moment in (0.0, each)])
    engine = ScriptedEngine([])
    ahead = PrefillAhead(engine, clock=lambda: next(times))
    pending = ahead.pending(tuple(range(1000)))
    for _ in seconds:
        ahead.compute_slice(pending)
    ends = [run.prompt_tokens for run in engine.runs]
    assert [end - begin for begin, end in zip([0, *ends], ends, strict=False)] == slices


def test_a_prefix_is_complete_when_its_last_id_is_computed() -> None:
    engine = ScriptedEngine([])
    ahead = PrefillAhead(engine, clock=lambda: 0.0)
    pending = ahead.pending(tuple(range(9)))
    ahead.compute_slice(pending)
    assert not pending.complete
    ahead.compute_slice(pending)
    assert pending.complete
    assert ahead.pending(tuple(range(9))).complete
    assert not ahead.pending(tuple(range(10))).complete


def loaded(engine: ScriptedEngine) -> LoadedModel:
    return LoadedModel(engine, info_of(engine, "m"))


def test_one_answer_can_be_computed_in_the_calling_thread() -> None:
    model = loaded(ScriptedEngine(["<think>hm</think>one two"]))
    answer = Answer.of(events_of(model, Request([Message("user", "hi")])))
    assert (answer.thinking, answer.content) == ("hm", "one two")
    assert answer.end.finish_reason == "stop"


def test_closing_its_events_cancels_an_answer_and_its_failure_is_raised() -> None:
    engine = ScriptedEngine(["one two three"])
    events = events_of(loaded(engine), Request([Message("user", "hi")]))
    next(events)
    events.close()
    assert engine.runs[0].finished
    with pytest.raises(EngineError, match="no more answers"):
        next(events_of(loaded(engine), Request([Message("user", "hi")])))
