"""Check access before every request, and log and count each response.

A web page can reach a server on this machine: through a name that points to it (DNS rebinding), or with a plain form,
which needs no permission. So the Host header must name this server, and an Origin must be this server or allowed.
"""

from __future__ import annotations

import hmac
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localqwen.chat.messages import Finished
from localqwen.errors import Busy, LocalqwenError, TooSlow, WrongHost, WrongKey
from localqwen.serve import encoding
from localqwen.serve.http import authority
from localqwen.serve.http.authority import Authority
from localqwen.serve.http.mappers import error_body
from localqwen.serve.http.request_body import LARGEST, LARGEST_KEY

log = logging.getLogger("localqwen.serve")
#: The key in the ASGI scope under which an endpoint leaves the Finished events of its answers for the log.
FINISHED = "localqwen.finished"
#: Paths that need no key: they only say that the server lives.
_OPEN = ("/health",)


@dataclass(frozen=True)
class Access:
    """Who may send requests, and how large. `hosts` are the names of the server beside those of this machine; `origins`
    are pages that may call it from a browser ("*" allows any); `largest_body` is in bytes."""

    key: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    largest_body: int = LARGEST

    def check(self, headers: Headers, method: str, path: str) -> None:
        """Raise WrongHost or WrongKey if the request is not allowed. A browser's preflight request (OPTIONS) carries no
        key and needs none."""
        host = self._host(headers)
        for origin in headers.getlist("origin"):
            if not self._may_call(origin, host):
                raise WrongHost(f"pages of {origin[:100]!r} may not call this server", "allow them with --cors ORIGIN")
        if self.key and path not in _OPEN and method != "OPTIONS" and not self._has_key(headers):
            raise WrongKey("the API key is missing or wrong", "send it as Authorization: Bearer KEY")

    def _host(self, headers: Headers) -> Authority:
        """Return what the Host header says. Raise WrongHost unless there is exactly one, and it names this server."""
        given = headers.getlist("host")
        host = authority.parse(given[0]) if len(given) == 1 else None
        if host is None or not self._ours(host):
            shown = ", ".join(each[:100] for each in given[:2])
            raise WrongHost(f"this server does not answer to the name {shown!r}", "allow that name with --allow-host")
        return host

    def _ours(self, host: Authority) -> bool:
        return host.name in ("localhost", *self.hosts) or host.name.endswith(".localhost") or host.is_address

    def _may_call(self, origin: str, host: Authority) -> bool:
        return "*" in self.origins or origin in self.origins or authority.of_origin(origin) == host

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode("latin-1"), self.key.encode())  # headers are bytes, read as latin-1


def own_names(host: str) -> tuple[str, ...]:
    """Return the names of this machine, and the value of `--host`."""
    machine = socket.gethostname().lower()
    return (host.lower(), machine, f"{machine}.local")


class Guard:
    """The outermost layer of the application: checks access, counts and logs each request."""

    def __init__(self, app: ASGIApp, access: Access, counted: Callable[[str, int, list[Finished]], None]) -> None:
        self._app = app
        self._access = access
        self._counted = counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 0, time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        scope[LARGEST_KEY] = self._access.largest_body
        finished: list[Finished] = scope.setdefault(FINISHED, [])
        try:
            await self._answer(scope, receive, noting)
        finally:
            self._counted(scope["path"], status, finished)
            log.info("%s", _line(scope, status, finished, time.perf_counter() - began))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._access.check(Headers(scope=scope), scope["method"], scope["path"])
        except LocalqwenError as error:
            await send_error(error, scope["path"], send)
            return
        await self._app(scope, receive, send)


async def send_error(error: LocalqwenError, path: str, send: Send) -> None:
    """Send an error in the format of the API that owns the path."""
    body = encoding.dumps(error_body(path, error))
    headers = [(b"content-type", encoding.JSON.encode()), (b"content-length", str(len(body)).encode())]
    if isinstance(error, WrongKey):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, TooSlow):  # otherwise the rest of its body would be read as the next request
        headers.append((b"connection", b"close"))
    if isinstance(error, Busy):
        headers.append((b"retry-after", str(error.retry_after).encode()))
    await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _line(scope: Scope, status: int, finished: list[Finished], seconds: float) -> str:
    """Return the line of the log, as in
    `POST /v1/chat/completions 200 · 812 cached + 31 new tokens at 290/s · 120 generated at 31.0/s`. A status of 0 means
    that the client disconnected before the response began."""
    path = "".join(character if character.isprintable() else "?" for character in scope["path"][:200])
    line = f"{scope['method']} {path} {status}"
    if not finished:
        return f"{line} · {seconds * 1000:,.0f} ms"
    first = finished[0]
    new = first.usage.prompt_tokens - first.usage.cached_tokens
    generated = sum(each.usage.completion_tokens for each in finished)
    return (
        f"{line} · {first.usage.cached_tokens:,} cached + {new:,} new tokens{_speed(first.timing.prompt_per_second)}"
        f" · {generated:,} generated{_speed(first.timing.predicted_per_second)}"
    )


def _speed(value: float | None) -> str:
    return "" if value is None else f" at {value:,.1f}/s"
