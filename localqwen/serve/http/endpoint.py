"""One request for an answer: parse it, submit it to its model, send the response, cancel if the client disconnects."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from localqwen.chat.answer import AnswerAssembler
from localqwen.chat.messages import Finished
from localqwen.errors import LocalqwenError
from localqwen.serve import encoding
from localqwen.serve.api import ResponseMeta, Stream
from localqwen.serve.http import request_body
from localqwen.serve.http.guard import FINISHED, send_error
from localqwen.serve.http.mappers import Api
from localqwen.serve.http.request_body import ClientLeft
from localqwen.serve.model_names import Catalogue
from localqwen.serve.model_pool import ModelPool
from localqwen.serve.tasks import Job, JobEvent


@dataclass(frozen=True)
class Backend:
    """The parts that every route works with."""

    models: ModelPool
    catalogue: Catalogue
    reasoning_fields: tuple[str, ...]


class Answering:
    """The ASGI endpoint of one API."""

    def __init__(self, api: Api, backend: Backend) -> None:
        self._api = api
        self._backend = backend

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            parsed = await request_body.read(Request(scope, receive), self._api.read)
            model = await _resolved(self._backend.catalogue, parsed.model)
        except ClientLeft:
            return
        except LocalqwenError as error:
            await send_error(error, scope["path"], send)
            return
        await self._answer(Job(parsed, model), scope, receive, send)

    async def _answer(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        """Submit the job and send its response; cancel the job if the client disconnects first."""
        meta = ResponseMeta(job.id, job.model, time.time(), self._backend.reasoning_fields)
        self._backend.models.submit(job)
        sending = asyncio.ensure_future(_Sender(self._api, job, meta, scope, send).run())
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending  # raises its exception, which the server reports
        finally:
            self._backend.models.cancel(job)
            for task in (sending, leaving):
                task.cancel()


async def _resolved(catalogue: Catalogue, name: str) -> str:
    """Return the model that a client means. Those of the command line need no look at the disk, and no thread."""
    return name if name in catalogue.served else await run_in_threadpool(catalogue.resolve, name)


async def _left(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _Sender:
    """Turns the events of a job into its response."""

    def __init__(self, api: Api, job: Job, meta: ResponseMeta, scope: Scope, send: Send) -> None:
        self._api, self._job, self._meta, self._scope, self._send = api, job, meta, scope, send
        self._box = job.mailbox
        self._finished: list[Finished] = scope[FINISHED]

    async def run(self) -> None:
        """Send the response: an error, a stream, or a whole body."""
        first = await self._box.take()
        if isinstance(first[0].what, LocalqwenError):
            await send_error(first[0].what, self._scope["path"], self._send)
        elif self._job.parsed.stream:
            await self._stream(first)
        else:
            await self._whole(first)

    async def _stream(self, events: list[JobEvent]) -> None:
        stream = self._api.Stream(self._job.parsed, self._meta)
        await self._start(200, stream.media_type)
        more = True
        while more:
            data = b"".join(self._fed(stream, event) for event in events)
            more = not self._over(events)
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
            if more:
                events = await self._box.take()

    def _fed(self, stream: Stream, event: JobEvent) -> bytes:
        if isinstance(event.what, LocalqwenError):
            return stream.error(event.what)
        data = stream.feed(event.what, event.index)
        if isinstance(event.what, Finished):
            self._finished.append(event.what)
            if len(self._finished) == self._job.parsed.answers:
                data += stream.end()
        return data

    def _over(self, events: list[JobEvent]) -> bool:
        failed = any(isinstance(event.what, LocalqwenError) for event in events)
        return failed or len(self._finished) == self._job.parsed.answers

    async def _whole(self, events: list[JobEvent]) -> None:
        answers = [AnswerAssembler() for _ in range(self._job.parsed.answers)]
        while True:
            for event in events:
                if isinstance(event.what, LocalqwenError):
                    await send_error(event.what, self._scope["path"], self._send)
                    return
                answers[event.index].add(event.what)
                if isinstance(event.what, Finished):
                    self._finished.append(event.what)
            if len(self._finished) == len(answers):
                break
            events = await self._box.take()
        whole = [each.answer() for each in answers]
        body = encoding.dumps(self._api.response_body(self._job.parsed, self._meta, whole))
        await self._start(200, encoding.JSON, len(body))
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, media_type: str, length: int | None = None) -> None:
        headers = [(b"content-type", media_type.encode()), (b"x-request-id", self._job.id.encode())]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        else:
            headers.append((b"cache-control", b"no-cache"))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
