"""What an answer took: the times of its phases, from the moments that it is told."""

from __future__ import annotations

from collections.abc import Callable

from localqwen.chat.messages import Timing


class Stopwatch:
    """Measures the times of one answer. Decoding is measured between tokens of one run: restarts do not count as
    tokens."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begin = clock()
        self._run_begin = self._begin
        self._first: float | None = None
        self._first_answer: float | None = None
        self._prefill = 0.0
        self._last: float | None = None
        self._decoding = 0.0
        self._decoded = 0

    def start_run(self) -> None:
        """Note that a run starts."""
        self._run_begin, self._last = self._clock(), None

    def piece(self) -> None:
        """Note that a token has come."""
        now = self._clock()
        if self._first is None:
            self._first, self._prefill = now, now - self._run_begin
        if self._last is not None:
            self._decoding += now - self._last
            self._decoded += 1
        self._last = now

    def answer(self) -> None:
        """Note that a part of the answer, not of its thinking, is shown."""
        if self._first_answer is None:
            self._first_answer = self._clock()

    def timing(self, load_ms: float | None, computed_tokens: int) -> Timing:
        """Return the times of the answer, which ends now. `computed_tokens` are those of its prompt."""
        return Timing(
            load_ms=load_ms,
            first_token_ms=None if self._first is None else (self._first - self._begin) * 1000,
            first_answer_ms=None if self._first_answer is None else (self._first_answer - self._begin) * 1000,
            prompt_per_second=computed_tokens / self._prefill if self._prefill > 0 else None,
            predicted_per_second=self._decoded / self._decoding if self._decoding > 0 else None,
            prompt_ms=None if self._first is None else self._prefill * 1000,
            predicted_ms=None if self._first is None else self._decoding * 1000,
            total_ms=(self._clock() - self._begin) * 1000,
        )
