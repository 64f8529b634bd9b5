"""The JSON body of a request: limits of its size and speed, and its text. The APIs check its fields."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from localqwen import json_text
from localqwen.errors import BadField, TooLarge, TooSlow

#: The largest body in bytes unless the server says otherwise: 8 MiB of text fill the longest context (262,144 tokens)
#: more than four times.
LARGEST = 8 << 20
#: The key in the ASGI scope under which the guard leaves the largest body in bytes.
LARGEST_KEY = "localqwen.largest_body"
#: Seconds for the whole body, and between two parts of it.
WHOLE_BODY, BETWEEN_PARTS = 120.0, 15.0
#: A body of more bytes is parsed outside the event loop, so that other requests go on meanwhile.
_QUICK = 64 << 10
#: Large bodies are parsed one after another: each takes the interpreter from the event loop for some milliseconds again
#: and again, and several at once would add up.
_parser = ThreadPoolExecutor(1, "localqwen-body")
_Parsed = TypeVar("_Parsed")


class ClientLeft(Exception):
    """Raised if the client disconnects before its request is complete: there is nobody to answer."""


async def read_json(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request. Raise TooLarge, TooSlow, BadField if the body is not a JSON
    object, or ClientLeft."""
    return await read(request, lambda body: body)


async def read(request: Request, reader: Callable[[dict[str, Any]], _Parsed]) -> _Parsed:
    """Return what `reader` makes of the JSON object in the body of a request; it runs in a thread if the body is large.
    Raise what `read_json` and `reader` raise."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise BadField(
            "", f"has the encoding {encoding[:50]!r}, which is not supported", "send it without Content-Encoding"
        )
    most = request.scope.get(LARGEST_KEY, LARGEST)
    data = await _received(request.receive, request.headers.get("content-length"), most)
    if len(data) <= _QUICK:
        return reader(parse(data))
    return await asyncio.get_running_loop().run_in_executor(_parser, lambda: reader(parse(data)))


async def _received(receive: Receive, announced: str | None, most: int) -> bytes:
    """Return the body, at most `most` bytes."""
    if announced is not None and announced.isdigit() and int(announced[:20]) > most:
        raise _too_large(most)
    parts, size = [], 0
    try:
        async with asyncio.timeout(WHOLE_BODY):
            while True:
                message = await asyncio.wait_for(receive(), BETWEEN_PARTS)
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > most:
                    raise _too_large(most)
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError as exc:
        raise TooSlow(
            "the body of the request did not arrive in time", f"send it within {WHOLE_BODY:.0f} seconds"
        ) from exc


def _too_large(most: int) -> TooLarge:
    return TooLarge(
        f"the body is larger than {most:,} bytes", "shorten the conversation, or raise the limit with --max-body"
    )


def parse(data: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raise BadField."""
    try:
        body, _ = json_text.parse(data)
    except json_text.Refused as exc:
        raise BadField("", str(exc)) from exc
    if not isinstance(body, dict):
        raise BadField("", "must be a JSON object")
    return body
