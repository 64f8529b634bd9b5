"""One request for an answer: parse it, submit it to the worker, send the response, cancel if the client disconnects."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from localqwen.chat.messages import Event, Finished
from localqwen.errors import LocalqwenError
from localqwen.serve import encoding
from localqwen.serve.api import Head, Stream, answer_of
from localqwen.serve.http.guard import FINISHED, send_error
from localqwen.serve.http.mappers import Api
from localqwen.serve.http.request_body import ClientLeft, read_json
from localqwen.serve.job import Delivery, Job
from localqwen.serve.mail import Mail, Mailbox
from localqwen.serve.model_names import Catalogue
from localqwen.serve.worker import Worker


@dataclass(frozen=True)
class Backend:
    """The parts that every route works with."""

    worker: Worker
    mail: Mail
    catalogue: Catalogue
    reasoning_fields: tuple[str, ...]


class Answering:
    """The ASGI endpoint of one API. `backend` is a function, because the backend exists only when the server has
    started."""

    def __init__(self, api: Api, backend: Callable[[], Backend]) -> None:
        self._api = api
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_json(Request(scope, receive))
            asked = self._api.read(body)
            model = await _resolved(self._backend().catalogue, asked.model)
        except ClientLeft:
            return
        except LocalqwenError as error:
            await send_error(error, scope["path"], send)
            return
        await self._answer(Job(asked, model), scope, receive, send)

    async def _answer(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        """Submit the job and send its response; cancel the job if the client disconnects first."""
        backend = self._backend()
        head = Head(job.id, job.model, time.time(), backend.reasoning_fields)
        box = backend.mail.open(job)
        backend.worker.submit(job)
        sending = asyncio.ensure_future(_Sender(self._api, job, head, box, scope, send).run())
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending  # raises its exception, which the server reports
        finally:
            if not sending.done():
                backend.worker.cancel(job)
            for task in (sending, leaving):
                task.cancel()
            backend.mail.close(job)


async def _resolved(catalogue: Catalogue, asked: str) -> str:
    """Return the resolved name of a model. The models of the command line need neither the disk nor a thread."""
    return asked if asked in catalogue.served else await run_in_threadpool(catalogue.resolve, asked)


async def _left(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _Sender:
    """Turns the deliveries of a job into its response."""

    def __init__(self, api: Api, job: Job, head: Head, box: Mailbox, scope: Scope, send: Send) -> None:
        self._api, self._job, self._head, self._box, self._scope, self._send = api, job, head, box, scope, send
        self._finished: list[Finished] = scope[FINISHED]

    async def run(self) -> None:
        """Send the response: an error, a stream, or a whole body."""
        first = await self._box.take()
        if isinstance(first[0].what, LocalqwenError):
            await send_error(first[0].what, self._scope["path"], self._send)
        elif self._job.asked.stream:
            await self._stream(first)
        else:
            await self._whole(first)

    async def _stream(self, deliveries: list[Delivery]) -> None:
        stream = self._api.Stream(self._job.asked, self._head)
        await self._start(200, stream.media_type)
        more = True
        while more:
            data = b"".join(self._fed(stream, delivery) for delivery in deliveries)
            more = not self._over(deliveries)
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
            if more:
                deliveries = await self._box.take()

    def _fed(self, stream: Stream, delivery: Delivery) -> bytes:
        if isinstance(delivery.what, LocalqwenError):
            return stream.error(delivery.what)
        data = stream.feed(delivery.what, delivery.index)
        if isinstance(delivery.what, Finished):
            self._finished.append(delivery.what)
            if len(self._finished) == self._job.asked.answers:
                data += stream.end()
        return data

    def _over(self, deliveries: list[Delivery]) -> bool:
        failed = any(isinstance(delivery.what, LocalqwenError) for delivery in deliveries)
        return failed or len(self._finished) == self._job.asked.answers

    async def _whole(self, deliveries: list[Delivery]) -> None:
        events: dict[int, list[Event]] = {}
        while len(self._finished) < self._job.asked.answers:
            for delivery in deliveries:
                if isinstance(delivery.what, LocalqwenError):
                    await send_error(delivery.what, self._scope["path"], self._send)
                    return
                events.setdefault(delivery.index, []).append(delivery.what)
                if isinstance(delivery.what, Finished):
                    self._finished.append(delivery.what)
            if len(self._finished) < self._job.asked.answers:
                deliveries = await self._box.take()
        answers = [answer_of(events[index]) for index in sorted(events)]
        body = encoding.dumps(self._api.whole(self._job.asked, self._head, answers))
        await self._start(200, encoding.JSON, len(body))
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, media_type: str, length: int | None = None) -> None:
        headers = [(b"content-type", media_type.encode()), (b"x-request-id", self._job.id.encode())]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        else:
            headers.append((b"cache-control", b"no-cache"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
