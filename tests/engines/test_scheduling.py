"""The rules of localqwen/engines/scheduling, which both engines follow: pure, so every number here is worked out by
hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from localqwen.engines.engine import Logprobs, Run, Sampling, TokenOutput
from localqwen.engines.scheduling import checks, common_prefix
from localqwen.engines.scheduling.passes import (
    Passes,
    Share,
    add_token,
    next_slice,
    note_computed,
    rows_that_draw,
    shares,
)
from localqwen.engines.scheduling.slots import Placement, Slot, Slots, state_of
from localqwen.errors import ContextTooLong, EngineError, UsageError

GREEDY = Sampling(temperature=0)
#: A short context: a prefix of one id is worth a copy.
SHORT = 100
LIVE = Run((0,), GREEDY, 1)


def slots_of(*slots: tuple[Sequence[int], int], live: Sequence[int] = (), context_length: int = SHORT) -> Slots[Slot]:
    """Slots of (cached ids, when used last); those whose index is in `live` have a run."""
    made = [Slot(index, list(ids), LIVE if index in live else None, used) for index, (ids, used) in enumerate(slots)]
    return Slots(made, context_length)


def placed(slots: Slots[Slot], prompt: Sequence[int], max_tokens: int = 5) -> tuple[int, int, int]:
    """(index of the slot, index of the donor, ids kept)."""
    found: Placement[Slot] = slots.place(Run(tuple(prompt), GREEDY, max_tokens))
    return found.slot.index, found.donor.index, found.keep


def ids(count: int, first: int = 0) -> list[int]:
    return list(range(first, first + count))


# Prefixes


@pytest.mark.parametrize(
    ("left", "right", "count"),
    [([], [1], 0), ([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 2], 2), ([2, 1], [1, 1], 0)],
)
def test_a_common_prefix_ends_at_the_first_difference(left: list[int], right: list[int], count: int) -> None:
    assert common_prefix(left, right) == count


def test_the_cached_prefix_is_the_longest_of_all_slots_and_asking_changes_nothing() -> None:
    slots = slots_of(([1, 2], 3), ([1, 2, 3, 9], 1), ([7], 2), live=[1])
    assert slots.cached_prefix([1, 2, 3, 4]) == 3
    assert slots.cached_prefix([1, 2]) == 2
    assert slots.cached_prefix([8]) == 0
    assert [(slot.tokens, slot.used) for slot in slots.all] == [([1, 2], 3), ([1, 2, 3, 9], 1), ([7], 2)]


def test_the_positions_of_all_slots_are_counted_together() -> None:
    assert slots_of(([1, 2], 0), ([], 0), ([1, 2, 3], 0), live=[2]).positions() == 5


# Where a run is placed


def test_a_conversation_goes_on_in_its_own_slot() -> None:
    slots = slots_of((ids(6, 50), 1), (ids(6), 2))
    assert placed(slots, ids(10)) == (1, 1, 6)


def test_the_last_id_of_a_prompt_is_computed_even_if_it_is_cached() -> None:
    assert placed(slots_of((ids(10), 1)), ids(10)) == (0, 0, 9)
    assert placed(slots_of((ids(10), 1)), ids(1)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("cached", "shared", "where"),
    [(10, 5, (0, 0, 5)), (11, 5, (1, 0, 5)), (10, 4, (1, 0, 4)), (10, 9, (0, 0, 9)), (4, 4, (0, 0, 4))],
)
def test_a_run_that_shares_less_than_half_of_a_slot_leaves_it_to_its_owner(
    cached: int, shared: int, where: tuple[int, int, int]
) -> None:
    slots = slots_of((ids(cached), 1), ([], 2))
    assert placed(slots, [*ids(shared), 99, 98]) == where


@pytest.mark.parametrize(("context_length", "where"), [(400, (1, 0, 4)), (401, (1, 1, 0))])
def test_a_prefix_is_copied_where_computing_it_takes_longer_than_copying_a_whole_context(
    context_length: int, where: tuple[int, int, int]
) -> None:
    """One id is worth a hundred copied positions."""
    slots = slots_of((ids(10), 1), ([], 2), context_length=context_length)
    assert placed(slots, [*ids(4), 99]) == where


def test_what_a_live_run_has_cached_is_copied_and_never_taken_away() -> None:
    slots = slots_of((ids(6), 1), (ids(6, 50), 2), live=[0])
    assert placed(slots, ids(10)) == (1, 0, 6)


def test_the_longest_prefix_wins_over_a_free_slot_with_a_shorter_one() -> None:
    slots = slots_of((ids(4), 1), (ids(6), 2), (ids(3, 50), 3), live=[1])
    assert placed(slots, ids(10)) == (0, 1, 6)  # slot 0: beside the live one, and used before slot 2


def test_of_slots_with_the_same_prefix_a_free_one_is_the_donor_and_then_the_first() -> None:
    assert placed(slots_of((ids(6), 1), (ids(6), 2), live=[0]), ids(10)) == (1, 1, 6)
    assert placed(slots_of((ids(6), 2), (ids(6), 1)), ids(10)) == (0, 0, 6)


def test_a_donor_that_alone_is_free_gives_up_what_it_does_not_share() -> None:
    slots = slots_of((ids(10), 1), (ids(3, 50), 2), live=[1])
    assert placed(slots, [*ids(2), 99]) == (0, 0, 2)


def test_a_prefill_only_run_stays_with_its_conversation_and_pushes_no_other_one_out() -> None:
    slots = slots_of((ids(10), 2), (ids(3, 50), 1))
    assert placed(slots, [*ids(2), 99], max_tokens=0) == (0, 0, 2)
    assert placed(slots, [*ids(2), 99], max_tokens=1) == (1, 0, 2)


def test_a_prefill_only_run_copies_from_a_live_conversation() -> None:
    slots = slots_of((ids(10), 2), (ids(3, 50), 1), live=[0])
    assert placed(slots, ids(9), max_tokens=0) == (1, 0, 8)


def test_a_prompt_that_nobody_knows_takes_the_slot_not_used_for_the_longest() -> None:
    known = [ids(5, 50), ids(5, 60), ids(5, 70)]
    for used, index in (((2, 3, 1), 2), ((1, 2, 3), 0), ((2, 1, 3), 1), ((0, 0, 0), 0)):
        assert placed(slots_of(*zip(known, used, strict=True)), ids(4)) == (index, index, 0)


def test_a_donor_is_not_overwritten_by_the_run_that_copies_from_it() -> None:
    slots = slots_of((ids(10), 1), (ids(3, 50), 3), (ids(3, 60), 2))
    assert placed(slots, [*ids(2), 99]) == (2, 0, 2)


@pytest.mark.parametrize(
    ("live", "used", "index"),
    [
        ([1], (5, 0, 3, 1, 0), 2),  # neighbours 0 and 2; 3 and 4 are older
        ([1], (3, 0, 5, 1, 0), 0),
        ([4], (1, 2, 3, 9, 0), 3),
        ([0], (0, 9, 1, 2, 3), 1),
        ([0, 4], (0, 8, 1, 9, 0), 1),
        ([], (5, 4, 3, 1, 2), 3),
    ],
)
def test_a_new_run_takes_a_slot_beside_a_live_one(live: list[int], used: Sequence[int], index: int) -> None:
    """llama.cpp computes sequences with neighbouring numbers together."""
    assert placed(slots_of(*(([], when) for when in used), live=live), ids(4)) == (index, index, 0)


def test_placing_changes_nothing() -> None:
    slots = slots_of((ids(10), 1), ([], 2))
    placed(slots, [*ids(3), 99])
    assert [(slot.tokens, slot.run, slot.used) for slot in slots.all] == [(ids(10), None, 1), ([], None, 2)]


# New runs


def test_a_prompt_must_leave_room_for_one_token() -> None:
    slots = slots_of(([], 0), context_length=10)
    assert slots.new_run(ids(9), GREEDY, 50, None, None).max_tokens == 1
    with pytest.raises(ContextTooLong) as error:
        slots.new_run(ids(10), GREEDY, 1, None, None)
    assert (error.value.prompt_tokens, error.value.context_length) == (10, 10)


def test_an_answer_is_as_long_as_was_said_where_the_context_allows_it() -> None:
    slots = slots_of(([], 0), context_length=10)
    assert [slots.new_run(ids(4), GREEDY, most, None, None).max_tokens for most in (0, 5, 6, 7)] == [0, 5, 6, 6]


@pytest.mark.parametrize(("prompt", "max_tokens"), [([], 1), ([1], -1)])
def test_a_run_without_a_prompt_or_of_fewer_than_no_tokens_is_refused(prompt: list[int], max_tokens: int) -> None:
    with pytest.raises(UsageError, match=f"not {len(prompt)} and {max_tokens}"):
        checks.check_prompt(prompt, max_tokens, 10)


def test_a_run_is_refused_where_every_slot_has_one_and_taken_where_one_is_free() -> None:
    with pytest.raises(EngineError, match="all 2 runs of the engine are busy"):
        slots_of(([], 1), ([], 2), live=[0, 1]).new_run([1], GREEDY, 1, None, None)
    assert slots_of(([], 1), ([], 2), live=[1]).new_run([1], GREEDY, 1, None, 3).logprobs == 3


def test_a_run_begins_behind_what_its_slot_has_cached_and_makes_it_the_newest() -> None:
    slots = slots_of(([1, 2], 0), ([], 0))
    run, other = Run((1, 2, 3, 4), GREEDY, 5), Run((8,), GREEDY, 5)
    slots.occupy(slots.all[0], run, "sampler")
    assert (run.cached_tokens, run.prefilled) == (2, 2)
    assert (state_of(run).todo, state_of(run).sampler, state_of(run).slot) == ([3, 4], "sampler", slots.all[0])
    slots.occupy(slots.all[1], other, None)
    assert [slot.used for slot in slots.all] == [1, 2]
    assert slots.live() == [run, other]
    slots.all[1].run = slots.all[0].run = None
    assert [slot.index for slot in slots.free()] == [0, 1]
    slots.occupy(slots.all[0], run, None)
    slots.all[0].run = None
    assert [slot.index for slot in slots.free()] == [1, 0]


def test_an_evaluation_must_fit_the_context_and_be_alone() -> None:
    checks.check_evaluation(ids(10), 10, live=False)
    with pytest.raises(ContextTooLong):
        checks.check_evaluation(ids(11), 10, live=False)
    with pytest.raises(EngineError, match="while a run is live"):
        checks.check_evaluation(ids(2), 10, live=True)


def test_a_closed_engine_is_named_as_what_is_wrong() -> None:
    checks.check_open(closed=False)
    with pytest.raises(EngineError, match="the engine is closed") as error:
        checks.check_open(closed=True)
    assert error.value.hint == "open the model again"


# What a pass computes


def started(*lengths: int, max_tokens: int = 5) -> Slots[Slot]:
    """Live runs with prompts of so many ids, the first begun first."""
    slots = slots_of(*[([], 0)] * len(lengths), context_length=10_000)
    for slot, length in zip(slots.all, lengths, strict=True):
        slots.occupy(slot, Run(tuple(ids(length)), GREEDY, max_tokens), None)
    return slots


def computed(slots: Slots[Slot], passes: Passes) -> list[tuple[int, int]]:
    """One pass, as (slot, ids); a run that has nothing left ends."""
    pass_ = passes.schedule(slots.live())
    note_computed(pass_)
    for slot in slots.all:
        if slot.run is not None and not state_of(slot.run).todo:
            slot.run = None
    return [(state_of(share.run).slot.index, share.count) for share in pass_]


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([5], [[(0, 5)]]),
        ([70], [[(0, 32)], [(0, 32)], [(0, 6)]]),
        ([70, 8], [[(0, 32)], [(1, 8)], [(0, 32)], [(0, 6)]]),
        ([8, 70], [[(0, 8)], [(1, 32)], [(1, 32)], [(1, 6)]]),
        ([8, 9, 10], [[(0, 8), (1, 9), (2, 10)]]),
        ([70, 8, 30, 9], [[(0, 32)], [(1, 8), (3, 9)], [(0, 32)], [(0, 6)], [(2, 30)]]),
        ([40, 40], [[(0, 32)], [(0, 8)], [(1, 32)], [(1, 8)]]),
    ],
)
@pytest.mark.parametrize("mixed", [True, False])
def test_short_prompts_do_not_wait_for_long_ones(
    lengths: list[int], expected: list[list[tuple[int, int]]], mixed: bool
) -> None:
    slots, passes = started(*lengths), Passes(512, mixed=mixed)
    assert [computed(slots, passes) for _ in expected] == expected
    assert passes.schedule(slots.live()) == []


def test_the_oldest_prompt_is_that_of_the_run_that_began_first_whatever_its_slot() -> None:
    slots = slots_of(([], 0), ([], 0), context_length=10_000)
    for index in (1, 0):
        slots.occupy(slots.all[index], Run(tuple(ids(50)), GREEDY, 5), None)
    assert computed(slots, Passes(512, mixed=False)) == [(1, 32)]


def test_no_number_of_short_prompts_holds_a_long_one_up() -> None:
    """Of two passes the long one gets one, of 32 ids: 1,000 ids are read after 2 * 32 passes at the latest."""
    left = 1000
    for number in range(64):
        left -= sum(count for index, count in shares([left, 5, 6, 7], 32, oldest_first=number % 2 == 0) if index == 0)
    assert left == 0


@pytest.mark.parametrize(
    ("left", "room", "oldest_first", "found"),
    [
        ([40, 5, 30], 32, True, [(0, 32)]),
        ([30, 5, 2], 32, True, [(0, 30), (2, 2)]),
        ([40, 5, 30], 32, False, [(1, 5)]),
        ([40, 5, 27], 32, False, [(1, 5), (2, 27)]),
        ([40, 5, 28], 32, False, [(1, 5)]),
        ([7, 7], 7, False, [(0, 7)]),
    ],
)
def test_one_prompt_of_a_pass_gets_a_slice_and_others_all_they_need_or_nothing(
    left: list[int], room: int, oldest_first: bool, found: list[tuple[int, int]]
) -> None:
    assert shares(left, room, oldest_first=oldest_first) == found


def answering(slots: Slots[Slot], index: int) -> Run:
    """The run of a slot whose prompt is computed, with its first token drawn."""
    run = slots.all[index].run
    assert run is not None
    note_computed([Share(run, len(state_of(run).todo))])
    add_token(run, 7, b"x", None, full=False)
    return run


def test_answers_and_prompts_alternate_on_an_engine_that_does_not_mix_them() -> None:
    slots, passes = started(3, 100), Passes(512, mixed=False)
    talking = answering(slots, 0)
    seen: list[list[tuple[bool, int]]] = []
    for _ in range(4):
        pass_ = passes.schedule(slots.live())
        seen.append([(share.run is talking, share.count) for share in pass_])
        note_computed(pass_)
        if pass_[0].run is talking:
            add_token(talking, 7, b"x", None, full=False)
    assert seen == [[(False, 32)], [(True, 1)], [(False, 32)], [(True, 1)]]


def test_prompts_are_read_in_every_pass_where_nobody_answers() -> None:
    slots, passes = started(100), Passes(512, mixed=False)
    assert [computed(slots, passes) for _ in range(4)] == [[(0, 32)], [(0, 32)], [(0, 32)], [(0, 4)]]


def test_answers_and_prompts_share_a_pass_on_an_engine_that_mixes_them() -> None:
    slots, passes = started(100, 3, 3), Passes(512, mixed=True)
    for _ in range(2):
        answering(slots, 1)
        answering(slots, 2)
        pass_ = passes.schedule(slots.live())
        assert [(state_of(share.run).slot.index, share.count) for share in pass_] == [(1, 1), (2, 1), (0, 32)]
        note_computed(pass_)


def test_a_run_with_nothing_to_compute_has_no_part_in_a_pass() -> None:
    """As one whose last token could not be drawn."""
    (run,) = started(3).live()
    state_of(run).todo.clear()
    assert Passes(512, mixed=True).schedule([run]) == []


def test_a_pass_without_prompts_takes_no_turn_from_the_oldest() -> None:
    """Otherwise what answers before would decide who is read first."""
    slots, passes = started(3, 70, 8), Passes(512, mixed=True)
    slots.all[0].run, waiting = None, (slots.all[1].run, slots.all[2].run)
    assert passes.schedule([]) == []
    assert [share.run for share in passes.schedule(slots.live())] == [waiting[0]]


def test_no_pass_is_larger_than_the_engine_allows() -> None:
    assert computed(started(100), Passes(16, mixed=False)) == [(0, 16)]
    assert computed(started(100), Passes(33, mixed=False)) == [(0, 32)]


# How large a slice is


@pytest.mark.parametrize(
    ("present", "count", "seconds", "largest", "found"),
    [
        (64, 64, 0.5, 512, 128),  # a full pass in half of the longest time: twice as many take the longest time
        (64, 64, 0.51, 512, 64),
        (64, 65, 0.1, 512, 128),  # an answer's id beside a full slice
        (64, 63, 0.1, 512, 64),  # a pass that was not full does not show how long a full one takes
        (64, 64, 0.1, 100, 100),
        (512, 512, 0.1, 512, 512),
        (64, 64, 2.0, 512, 64),
        (64, 64, 2.01, 512, 32),
        (200, 3, 2.01, 512, 100),
        (101, 101, 9.0, 512, 50),
        (40, 40, 9.0, 512, 32),
        (32, 32, 9.0, 512, 32),
        (16, 16, 0.1, 16, 16),
    ],
)
def test_a_slice_doubles_after_a_quick_full_pass_and_halves_after_a_slow_one(
    present: int, count: int, seconds: float, largest: int, found: int
) -> None:
    assert next_slice(present, count, seconds, largest) == found


def test_a_quick_pass_over_a_prompt_makes_the_next_one_larger() -> None:
    slots, passes = started(200), Passes(512, mixed=False)
    assert passes.slice == 32
    pass_ = passes.schedule(slots.live())
    note_computed(pass_)
    passes.measured(pass_, 0.1)
    assert computed(slots, passes) == [(0, 64)]


def test_passes_that_only_continue_answers_say_nothing_of_prompts() -> None:
    slots, passes = started(*[3] * 40), Passes(512, mixed=True)
    for index in range(40):
        answering(slots, index)
    pass_ = passes.schedule(slots.live())
    assert len(pass_) == 40
    for seconds in (0.1, 9.0):
        passes.measured(pass_, seconds)
        assert passes.slice == 32


def test_all_ids_of_a_pass_count_when_it_is_measured() -> None:
    """Thirty of a prompt and two of answers are as many as the slice."""
    slots, passes = started(3, 3, 30), Passes(512, mixed=True)
    answering(slots, 0)
    answering(slots, 1)
    passes.measured(passes.schedule(slots.live()), 0.1)
    assert passes.slice == 64


# What a pass leaves behind


def test_a_token_is_drawn_from_the_row_of_a_prompts_last_id() -> None:
    slots = started(5, 3, 4, max_tokens=5)
    first, second, third = slots.live()
    assert rows_that_draw([Share(first, 4), Share(second, 3), Share(third, 4)]) == [(second, 6), (third, 10)]
    assert rows_that_draw([Share(first, 5)]) == [(first, 4)]


def test_a_run_of_one_token_draws_it_and_lives_until_then() -> None:
    (run,) = started(5, max_tokens=1).live()
    assert rows_that_draw([Share(run, 5)]) == [(run, 4)]
    assert note_computed([Share(run, 5)]) == []


def test_a_prefill_only_run_draws_nothing_and_is_complete_with_its_prompt() -> None:
    (run,) = started(5, max_tokens=0).live()
    assert rows_that_draw([Share(run, 5)]) == []
    assert note_computed([Share(run, 4)]) == []
    assert note_computed([Share(run, 1)]) == [run]


def test_computed_ids_are_cached_in_their_slot_and_counted_as_prefilled() -> None:
    slots = slots_of(([0, 1], 0))
    run = Run(tuple(ids(5)), GREEDY, 3)
    slots.occupy(slots.all[0], run, None)
    assert note_computed([Share(run, 2)]) == []
    assert (slots.all[0].tokens, state_of(run).todo, run.prefilled) == ([0, 1, 2, 3], [4], 4)
    note_computed([Share(run, 1)])
    add_token(run, 7, b"x", None, full=False)
    note_computed([Share(run, 1)])
    assert (slots.all[0].tokens, run.prefilled) == ([0, 1, 2, 3, 4, 7], 5)


def test_a_drawn_token_is_text_and_is_computed_next() -> None:
    (run,) = started(3, max_tokens=2).live()
    known = Logprobs(-0.5)
    state_of(run).todo.clear()
    assert add_token(run, 7, b"hi", known, full=False) == TokenOutput((7,), "hi", True, None, known)
    assert (state_of(run).todo, run.generated) == ([7], 1)
    assert add_token(run, 8, b"!", None, full=False) == TokenOutput((8,), "!", True, "length")


def test_an_answer_ends_where_there_is_no_room_for_another_token() -> None:
    (run,) = started(3, max_tokens=9).live()
    assert add_token(run, 7, b"x", None, full=True).finish_reason == "length"


def test_a_stop_token_has_no_text_is_not_computed_and_wins_over_the_length() -> None:
    (run,) = started(3, max_tokens=1).live()
    state_of(run).todo.clear()
    assert add_token(run, 7, None, None, full=True) == TokenOutput((7,), "", True, "stop")
    assert (state_of(run).todo, run.generated) == ([], 1)


def test_half_a_character_waits_for_the_token_that_completes_it() -> None:
    (run,) = started(3, max_tokens=9).live()
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert add_token(run, 7, b"a" + first, None, full=False) == TokenOutput((7,), "a", False)
    assert add_token(run, 8, second + b"b", None, full=False) == TokenOutput((8,), "éb", True)
    assert add_token(run, 9, first, None, full=False).text == ""
    assert add_token(run, 6, None, None, full=False) == TokenOutput((6,), "", False, "stop")
