"""Rendering and tokenizing in threads of their own: a long prompt delays no other answer, and no short prompt.

Before each stage the parent is told its name. It has a clock for each, and ends this process where one does not end.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from localqwen.chat.messages import Request
from localqwen.chat.model_info import ModelInfo
from localqwen.chat.prefill_ahead import EndedAnswer, next_turn
from localqwen.chat.prompts import count_prompt
from localqwen.chat.reply import Reply
from localqwen.errors import EngineError, LocalqwenError
from localqwen.model_process import values
from localqwen.model_process.frames import Message

T = TypeVar("T")
#: Called in a preparing thread with the result, or the error that stands against the request.
Then = Callable[[T | LocalqwenError], None]
#: Called before each stage of a request, with its name; "" when all are over.
OnStage = Callable[[str], None]

_UNLOADED = EngineError("the model is being unloaded", "ask again")
#: A request with more characters of text, or more tools, is prepared beside the others, not before them.
_LONG_TEXT, _MANY_TOOLS = 20_000, 100


class Preparing:
    """The two preparing threads of a model: one for short requests, one for long ones."""

    def __init__(self, info: ModelInfo) -> None:
        self._info = info
        self._short = ThreadPoolExecutor(1, "localqwen-prepare")
        self._long = ThreadPoolExecutor(1, "localqwen-prepare-long")

    def replies(self, request: Message, answers: int, on_stage: OnStage, then: Then[list[Reply]]) -> None:
        """Create the replies of a request, one for each of its answers."""
        self._submit(request, lambda whole: _replies(whole, answers, self._info, on_stage), on_stage, then)

    def count(self, request: Message, on_stage: OnStage, then: Then[int]) -> None:
        """Count the tokens of the prompt of a request."""
        self._submit(request, lambda whole: count_prompt(whole, self._info, on_stage=on_stage), on_stage, then)

    def next_turn(self, ended: EndedAnswer, on_stage: OnStage, then: Then[tuple[int, ...]]) -> None:
        """Render and tokenize what every turn after an answer begins with."""

        def work() -> tuple[int, ...]:
            return next_turn(ended.request, ended.message, self._info, thinking=ended.thinking, on_stage=on_stage)

        self._run(self._long, work, on_stage, then)

    def _submit(self, request: Message, work: Callable[[Request], T], on_stage: OnStage, then: Then[T]) -> None:
        def read_and_work() -> T:
            on_stage("request")
            return work(values.request_from_json(request))

        self._run(self._long if _is_long(request) else self._short, read_and_work, on_stage, then)

    def _run(self, pool: ThreadPoolExecutor, work: Callable[[], T], on_stage: OnStage, then: Then[T]) -> None:
        def run() -> T:
            try:
                return work()
            finally:
                on_stage("")

        try:
            future = pool.submit(run)
        except RuntimeError:  # closed a moment ago: the engine failed
            then(_UNLOADED)
        else:
            future.add_done_callback(partial(_pass_on, then))

    def close(self) -> None:
        """End the threads. Work that has not begun is dropped."""
        for pool in (self._short, self._long):
            pool.shutdown(wait=False, cancel_futures=True)


def _is_long(request: Message) -> bool:
    text = sum(len(message["content"]) for message in request["messages"]) + len(request["prompt"] or "")
    special = request["format"] is not None or request["must_call"]
    return bool(special) or text > _LONG_TEXT or len(request["tools"]) > _MANY_TOOLS


def _pass_on(then: Then[T], future: Future[T]) -> None:
    """Give the result of work that is over, or the error that stands for it, to `then`."""
    problem = CancelledError() if future.cancelled() else future.exception()
    if problem is None:
        then(future.result())
    else:
        then(_error(problem))


def _error(problem: BaseException) -> LocalqwenError:
    match problem:
        case LocalqwenError():
            return problem
        case MemoryError():
            return EngineError("preparing the prompt takes more memory than there is", "shorten the request")
        case CancelledError():
            return _UNLOADED
    return EngineError(f"unexpected {type(problem).__name__}: {problem}")


def _replies(request: Request, answers: int, info: ModelInfo, on_stage: OnStage) -> list[Reply]:
    """Return one reply per answer. With a seed, each answer has its own, or all would be the same."""
    replies = []
    for index in range(answers):
        seed = request.sampling.seed
        own = request if seed is None else replace(request, sampling=replace(request.sampling, seed=seed + index))
        replies.append(Reply(own, info, on_stage=on_stage))
    return replies
