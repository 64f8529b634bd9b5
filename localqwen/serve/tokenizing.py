"""Render and tokenize prompts in a thread of its own: a long prompt delays no other answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from localqwen.chat.messages import Request
from localqwen.chat.model_info import ModelInfo
from localqwen.chat.prompts import count_prompt
from localqwen.chat.reply import Reply
from localqwen.serve.channel import Job
from localqwen.serve.model_pool import PooledModel

T = TypeVar("T")


class Tokenizing:
    """The thread that tokenizes prompts. Results go back to the worker's thread through `send`."""

    def __init__(self, send: Callable[[Callable[[], None]], None]) -> None:
        self._send = send
        self._pool = ThreadPoolExecutor(1, "localqwen-prompts")

    def replies(self, job: Job, model: PooledModel, then: Callable[[Future[list[Reply]]], None]) -> None:
        """Create the replies of a job, one for each of its answers. The future carries the errors of rendering."""
        info = model.scheduler.info
        self._submit(model, lambda: _replies(job, info), then)

    def count(self, request: Request, model: PooledModel, then: Callable[[Future[int]], None]) -> None:
        """Count the tokens of the prompt of a request. The future carries the errors of rendering."""
        info = model.scheduler.info
        self._submit(model, lambda: count_prompt(request, info), then)

    def _submit(self, model: PooledModel, work: Callable[[], T], then: Callable[[Future[T]], None]) -> None:
        def done(future: Future[T]) -> None:
            model.tokenizing -= 1
            then(future)

        model.tokenizing += 1
        self._pool.submit(work).add_done_callback(lambda future: self._send(partial(done, future)))

    def finish(self, model: PooledModel) -> None:
        """Wait until nothing is tokenized for a model: its engine must not be closed while its tokenizer is used."""
        if model.tokenizing:
            self._pool.submit(lambda: None).result()

    def close(self) -> None:
        """End the thread. Work that has not begun is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _replies(job: Job, info: ModelInfo) -> list[Reply]:
    """Return one reply per answer. With a seed, each answer has its own, or all would be the same."""
    request, replies = job.parsed.request, []
    for index in range(job.parsed.answers):
        seed = request.sampling.seed
        own = request if seed is None else replace(request, sampling=replace(request.sampling, seed=seed + index))
        replies.append(Reply(own, info))
    return replies
