"""Prompts are rendered and tokenised in a thread of their own: a long one stalls nobody."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from localqwen.chat.messages import Request
from localqwen.chat.prompts import ModelFacts, count_prompt
from localqwen.chat.reply import Reply
from localqwen.serve.job import Job
from localqwen.serve.model_pool import Resident

T = TypeVar("T")


class Encoder:
    """What is done comes back as a message for the worker's thread, which `tell` takes."""

    def __init__(self, tell: Callable[[Callable[[], None]], None]) -> None:
        self._tell = tell
        self._pool = ThreadPoolExecutor(1, "localqwen-prompts")

    def replies(self, job: Job, model: Resident, then: Callable[[Future[list[Reply]]], None]) -> None:
        """One for each answer that the job asks for. The future carries the errors of rendering."""
        facts = model.runs.facts
        self._encode(model, lambda: _replies(job, facts), then)

    def count(self, request: Request, model: Resident, then: Callable[[Future[int]], None]) -> None:
        """How many tokens the prompt of the request has."""
        facts = model.runs.facts
        self._encode(model, lambda: count_prompt(request, facts), then)

    def _encode(self, model: Resident, work: Callable[[], T], then: Callable[[Future[T]], None]) -> None:
        def done(future: Future[T]) -> None:
            model.encoding -= 1
            then(future)

        model.encoding += 1
        self._pool.submit(work).add_done_callback(lambda future: self._tell(partial(done, future)))

    def finish(self, model: Resident) -> None:
        """The engine must outlive whoever tokenises with it."""
        if model.encoding:
            self._pool.submit(lambda: None).result()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _replies(job: Job, facts: ModelFacts) -> list[Reply]:
    """One per answer. With a seed, each answer has its own, or all would be the same."""
    request, replies = job.asked.request, []
    for index in range(job.asked.answers):
        seed = request.sampling.seed
        own = request if seed is None else replace(request, sampling=replace(request.sampling, seed=seed + index))
        replies.append(Reply(own, facts))
    return replies
