"""Ollama's routes: loading, listing and pulling models. Answers are sent as in every other API."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from localqwen.errors import Busy, LocalqwenError
from localqwen.serve import encoding
from localqwen.serve.api import ResponseMeta
from localqwen.serve.fields import Fields
from localqwen.serve.http.endpoint import Answering, Backend
from localqwen.serve.http.guard import send_error
from localqwen.serve.http.request_body import read_json
from localqwen.serve.model_names import KnownModel
from localqwen.serve.ollama import chat as ollama_chat
from localqwen.serve.ollama import generate as ollama_generate
from localqwen.serve.ollama import models as ollama_models
from localqwen.serve.ollama.request import model_name
from localqwen.serve.tasks import Job

PATHS = ("/api/chat", "/api/generate", "/api/tags", "/api/ps", "/api/show", "/api/pull", "/api/version")
#: Downloads at the same time. More would only share the same network connection.
MOST_PULLS = 4


def routes(backend: Backend) -> list[Route]:
    """Return the routes of Ollama's API."""
    models = _Models(backend)
    return [
        Route("/api/chat", LoadingFirst(ollama_chat, backend), methods=["POST"]),
        Route("/api/generate", LoadingFirst(ollama_generate, backend), methods=["POST"]),
        Route("/api/tags", models.tags),
        Route("/api/ps", models.ps),
        Route("/api/show", models.show, methods=["POST"]),
        Route("/api/pull", models.pull, methods=["POST"]),
        Route("/api/version", models.version),
    ]


class LoadingFirst(Answering):
    """The ASGI endpoint of an answer that needs a loaded model first: it checks the model's context, reports the time
    of loading, and accepts requests that only load the model."""

    async def _answer(self, job: Job, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            job = await self._loaded(job)
        except LocalqwenError as error:
            await send_error(error, scope["path"], send)
            return
        if ollama_chat.is_load(job.parsed):
            body = ollama_chat.loaded(job.parsed, ResponseMeta(job.id, job.model, time.time()))
            await JSONResponse(body)(scope, receive, send)
        else:
            await super()._answer(job, scope, receive, send)

    async def _loaded(self, job: Job) -> Job:
        """Load the model of a job and return the job with the time of loading, in milliseconds. Raise Unsupported if
        the context is too short."""
        parsed, models = job.parsed, self._backend.models
        only = ollama_chat.is_load(parsed)
        if only and parsed.keep_alive == 0:
            models.unload(job.model)
            return job
        began = time.perf_counter()
        opened = await models.load(job.model, keep_alive=parsed.keep_alive if only else None)
        ollama_chat.check_context(parsed, opened.context_length)
        load_ms = (time.perf_counter() - began) * 1000
        return Job(replace(parsed, extra={**parsed.extra, "load_ms": load_ms}), job.model, job.id)


class _Models:
    """The routes that list, show and download models."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._pulls = 0

    async def version(self, request: Request) -> Response:
        """Return the version of Ollama's API."""
        return JSONResponse(ollama_models.version())

    async def tags(self, request: Request) -> Response:
        """Return the models on disk."""
        catalogue, aside = self._backend.catalogue, self._backend.models.deaths.aside
        return JSONResponse(await run_in_threadpool(lambda: ollama_models.tags(catalogue.known(), aside)))

    async def ps(self, request: Request) -> Response:
        """Return the loaded models."""
        known = await run_in_threadpool(self._backend.catalogue.known)
        return JSONResponse(ollama_models.ps(self._backend.models.loaded(), known, time.time()))

    async def show(self, request: Request) -> Response:
        """Return one model's metadata."""
        fields = Fields(await read_json(request))
        name = fields.text("model") or fields.text("name") or fields.needed_text("model")
        return JSONResponse(await run_in_threadpool(lambda: ollama_models.show(self._find(name))))

    def _find(self, name: str) -> KnownModel:
        return self._backend.catalogue.find(model_name(name))

    async def pull(self, request: Request) -> Response:
        """Download a model and stream the progress. Raise Busy while MOST_PULLS downloads run."""
        wanted = ollama_models.read_pull(await read_json(request))
        if self._pulls >= MOST_PULLS:
            raise Busy(
                f"{MOST_PULLS} models are being pulled already", "try again when one is complete", retry_after=60
            )
        pulling = _Pulling(wanted)
        self._pulls += 1
        pulling.ended = self._ended
        lines = pulling.lines()
        first = await anext(lines)  # raises if the name is unknown: the response can still have that status
        if wanted.stream:
            return StreamingResponse(_ndjson(first, lines), media_type=encoding.NDJSON)
        last = first
        async for line in lines:
            last = line
        return JSONResponse(last)

    def _ended(self) -> None:
        self._pulls -= 1


async def _ndjson(first: Mapping[str, Any], rest: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    """Yield the lines. After the first line the HTTP status is sent, so an error becomes a line."""
    yield encoding.ndjson(first)
    try:
        async for line in rest:
            yield encoding.ndjson(line)
    except LocalqwenError as error:
        yield encoding.ndjson(ollama_chat.error(error))


class _Stopped(Exception):
    """Raised in the thread of a pull when the client has gone: the pull ends, and the next one resumes it."""


class _Pulling:
    """A pull in its own thread, whose lines arrive in the event loop."""

    def __init__(self, wanted: ollama_models.Pull) -> None:
        self._wanted = wanted
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Mapping[str, Any] | LocalqwenError | None] = asyncio.Queue()
        self._left = threading.Event()
        self.ended: Callable[[], None] = lambda: None

    async def lines(self) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the lines of progress, and raise the LocalqwenError that ends the pull. Closing the iterator stops the
        pull at its next step."""
        threading.Thread(target=self._run, name="localqwen-pull", daemon=True).start()
        try:
            while (item := await self._queue.get()) is not None:
                if isinstance(item, LocalqwenError):
                    raise item
                yield item
        finally:
            self._left.set()

    def _run(self) -> None:
        try:
            ollama_models.run_pull(self._wanted, self._report)
        except LocalqwenError as error:
            self._put(error)
        except _Stopped:
            pass
        finally:
            self._put(None)
            self._later(self.ended)

    def _report(self, line: Mapping[str, Any]) -> None:
        if self._left.is_set():
            raise _Stopped
        self._put(line)

    def _put(self, item: Mapping[str, Any] | LocalqwenError | None) -> None:
        self._later(self._queue.put_nowait, item)

    def _later(self, call: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody reads
            self._loop.call_soon_threadsafe(call, *arguments)
