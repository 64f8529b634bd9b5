"""The ASGI application: the routes, and the parts of the server that they work with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from localqwen._version import __version__
from localqwen.chat.messages import Finished
from localqwen.errors import LocalqwenError, ModelNotFound
from localqwen.model_process.process import Start, start_child
from localqwen.serve.anthropic import messages as anthropic_messages
from localqwen.serve.http import metrics as prometheus
from localqwen.serve.http import ollama_routes, openapi, request_body
from localqwen.serve.http.endpoint import Answering, Backend
from localqwen.serve.http.guard import Access, Guard
from localqwen.serve.http.mappers import ANSWERING, error_body
from localqwen.serve.http.metrics import Metrics
from localqwen.serve.http.request_body import ClientLeft
from localqwen.serve.model_names import Catalogue, KnownModel
from localqwen.serve.model_pool import ModelPool
from localqwen.serve.ollama.chat import timestamp
from localqwen.serve.served_model import Limits

#: The fields in which thinking can be sent: llama-server and SGLang use the first, vLLM and Ollama the second.
REASONING_FIELDS = ("reasoning_content", "reasoning")
_COUNT_TOKENS = "/v1/messages/count_tokens"
_OWN_ROUTES = ("/", "/health", "/metrics", "/openapi.json", "/v1/models", _COUNT_TOKENS, *ollama_routes.PATHS)


@dataclass(frozen=True)
class Settings:
    """The behaviour of a server; see `localqwen serve --help`."""

    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    reasoning_fields: tuple[str, ...] = REASONING_FIELDS


class Service:
    """The parts of one server. `start` starts the process of a model. Everything but creating it happens in the event
    loop."""

    def __init__(self, catalogue: Catalogue, settings: Settings | None = None, *, start: Start = start_child) -> None:
        self.catalogue = catalogue
        self.settings = settings or Settings()
        self.metrics = Metrics()
        self.models = ModelPool(catalogue.spec, self.settings.limits, start=start)
        self.backend = Backend(self.models, catalogue, self.settings.reasoning_fields)

    async def load(self) -> None:
        """Load the models of the command line, one after the other. Raise the LocalqwenError that prevents it."""
        for name in self.catalogue.served:
            await self.models.load(name)

    def counted(self, path: str, status: int, finished: list[Finished]) -> None:
        """Count one response, and the answers in it, for `/metrics`."""
        self.metrics.requests[_route(path), status] += 1
        for each in finished:
            self.metrics.answered(each)


def application(service: Service) -> ASGIApp:
    """Return the ASGI application: the routes, with the guard around them."""
    answering = [Route(path, Answering(api, service.backend), methods=["POST"]) for path, api in ANSWERING.items()]
    own = _Routes(service)
    routes = [
        *answering,
        *ollama_routes.routes(service.backend),
        Route(_COUNT_TOKENS, own.count_tokens, methods=["POST"]),
        Route("/v1/chat/completions/{id}/end_thinking", own.end_thinking, methods=["POST"]),
        Route("/v1/models", own.models),
        Route("/v1/models/{model:path}", own.model),
        Route("/health", own.health),
        Route("/metrics", own.metrics),
        Route("/openapi.json", own.openapi),
        Route("/", own.root),
    ]
    origins = service.settings.access.origins
    cors = [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])]
    app = Starlette(
        routes=routes,
        middleware=cors if origins else [],
        exception_handlers={LocalqwenError: _localqwen_error, HTTPException: _http_error, ClientLeft: _nobody},
    )
    return Guard(app, service.settings.access, service.counted)


class _Routes:
    """The routes that answer nothing: what the server is, has and counts."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def root(self, request: Request) -> Response:
        """Return the server's name and version."""
        return JSONResponse({"name": "localqwen", "version": __version__, "openapi": "/openapi.json"})

    async def health(self, request: Request) -> Response:
        """Say that the server lives. It does so whatever its models do."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Return the counters for Prometheus."""
        models = self._service.models
        text = self._service.metrics.text(models.loaded(), models.deaths)
        return PlainTextResponse(text, media_type=prometheus.MEDIA_TYPE)

    async def openapi(self, request: Request) -> Response:
        """Return the OpenAPI document."""
        return JSONResponse(openapi.description())

    async def models(self, request: Request) -> Response:
        """Return the models that a client can name."""
        known = await run_in_threadpool(self._service.catalogue.known)
        data = [self._described(each) for each in known]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return JSONResponse({"object": "list", "data": data, "has_more": False, **ends})

    async def model(self, request: Request) -> Response:
        """Return one model. Raise ModelNotFound if there is none of that name."""
        found = await run_in_threadpool(self._service.catalogue.find, request.path_params["model"])
        return JSONResponse(self._described(found))

    def _described(self, known: KnownModel) -> dict[str, Any]:
        """Return a model as clients see it, with the reason if it is set aside."""
        aside = self._service.models.deaths.aside.get(known.name)
        return _model(known) | ({"set_aside": aside} if aside is not None else {})

    async def count_tokens(self, request: Request) -> Response:
        """Return the number of tokens of the prompt that the same body would make (Anthropic's API)."""
        parsed = await request_body.read(request, anthropic_messages.read_count)
        model = await run_in_threadpool(self._service.catalogue.resolve, parsed.model)
        tokens = await self._service.models.count(model, parsed.request)
        return JSONResponse(anthropic_messages.counted(tokens))

    async def end_thinking(self, request: Request) -> Response:
        """End the thinking of a running answer; its id is that of its chunks. Raise ModelNotFound if it is not
        running."""
        job_id = request.path_params["id"].rpartition("-")[2]
        found = await self._service.models.end_thinking(job_id)
        if not found:
            raise ModelNotFound(f"no answer {request.path_params['id'][:100]!r} is being computed")
        return JSONResponse({"id": request.path_params["id"], "thinking": "ending"})


def _model(known: KnownModel) -> dict[str, Any]:
    """Return a model with the fields of both OpenAI's and Anthropic's clients; no field has two meanings."""
    modified = known.files.modified if known.files else 0.0
    theirs = {
        "type": "model",
        "display_name": known.name,
        "created_at": timestamp(modified),
        "lifecycle": "active",
    }
    return {"id": known.name, "object": "model", "created": int(modified), "owned_by": "localqwen", **theirs}


def _route(path: str) -> str:
    """Return a path as a metric's label. A path that a client made up must not become one."""
    if path in ANSWERING or path in _OWN_ROUTES:
        return path
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    return "/v1/chat/completions/{id}/end_thinking" if path.endswith("/end_thinking") else "other"


async def _localqwen_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LocalqwenError)
    return JSONResponse(error_body(request.url.path, error), error.http_status)


async def _nobody(request: Request, error: Exception) -> Response:
    """Return a response that is never sent: the client has closed the connection."""
    return Response(status_code=400)


#: Routes of these APIs that this server does not have -> why.
_ELSEWHERE = {
    **dict.fromkeys(
        ("/v1/embeddings", "/api/embed", "/api/embeddings"), "these models write text, they compute no embeddings"
    ),
    **dict.fromkeys(
        ("/api/create", "/api/copy", "/api/push"), "to create a model, use the command line: localqwen convert"
    ),
    "/api/delete": "to remove a model, use the command line: localqwen rm",
}


class _NoRoute(LocalqwenError):
    """Starlette's error about a path or a method, as a LocalqwenError."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message, "the routes are listed in /openapi.json")
        self.http_status = status


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    messages = {
        404: _ELSEWHERE.get(path, f"there is no {path[:200]}"),
        405: f"{path[:200]} has no method {request.method}",
    }
    problem = _NoRoute(error.status_code, messages.get(error.status_code, error.detail))
    return JSONResponse(error_body(path, problem), error.status_code, error.headers)
