"""The times of one answer, on a clock whose times are known."""

from localqwen.chat.messages import Timing
from localqwen.chat.stopwatch import Stopwatch


class Clock:
    """A clock that stands still until it is moved, in seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_answers_phases_are_told_apart() -> None:
    """Waiting for a free run counts in the time until the first token, but not in the speed of the prompt."""
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 2  # waits for a free run
    watch.start_run()
    clock.now += 4  # computes 8 tokens of its prompt
    watch.piece()
    for _ in range(5):  # thinks
        clock.now += 0.25
        watch.piece()
    watch.answer()
    clock.now += 0.25
    watch.piece()
    watch.answer()
    clock.now += 1  # a reader is slow
    assert watch.timing(30.0, computed_tokens=8) == Timing(
        load_ms=30.0,
        first_token_ms=6000,
        first_answer_ms=7250,
        prompt_per_second=2.0,
        predicted_per_second=4.0,
        prompt_ms=4000,
        predicted_ms=1500,
        total_ms=8500,
    )


def test_the_time_of_a_restart_is_none_of_decoding() -> None:
    """Text that is forced into an answer makes neither its prompt nor its decoding slower."""
    clock = Clock()
    watch = Stopwatch(clock)
    watch.start_run()
    clock.now += 1
    watch.piece()
    clock.now += 0.5
    watch.piece()
    clock.now += 8
    watch.start_run()
    clock.now += 16  # computes what was forced
    watch.piece()
    clock.now += 0.5
    watch.piece()
    timing = watch.timing(None, computed_tokens=3)
    assert (timing.predicted_per_second, timing.predicted_ms) == (2.0, 1000)
    assert (timing.prompt_per_second, timing.prompt_ms, timing.first_token_ms) == (3.0, 1000, 1000)


def test_what_never_came_has_no_time() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 3
    assert watch.timing(None, computed_tokens=8) == Timing(total_ms=3000)


def test_one_token_has_no_speed_and_took_no_time_to_decode() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    watch.start_run()
    clock.now += 0.5
    watch.piece()
    timing = watch.timing(None, computed_tokens=1)
    assert (timing.predicted_per_second, timing.predicted_ms) == (None, 0)
    assert (timing.prompt_per_second, timing.first_answer_ms) == (2.0, None)


def test_a_clock_too_coarse_for_a_prompt_gives_it_no_speed() -> None:
    watch = Stopwatch(Clock())
    watch.start_run()
    watch.piece()
    timing = watch.timing(None, computed_tokens=5)
    assert (timing.prompt_per_second, timing.prompt_ms) == (None, 0)
