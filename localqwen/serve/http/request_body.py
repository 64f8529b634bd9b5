"""The JSON body of a request: limits of its size and speed, and its text. The APIs check its fields."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request
from starlette.types import Receive

from localqwen.errors import BadField, TooLarge, TooSlow
from localqwen.serve.fields import DEEPEST, too_deep

#: The largest body in bytes: 32 MiB of text fill the longest context (262,144 tokens) more than ten times.
LARGEST = 32 << 20
#: Seconds for the whole body, and between two parts of it.
WHOLE_BODY, BETWEEN_PARTS = 120.0, 15.0
#: A body of more bytes is parsed in a thread, so that no other request waits for it.
_QUICK = 256 << 10


class ClientLeft(Exception):
    """Raised if the client disconnects before its request is complete: there is nobody to answer."""


async def read_json(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request. Raise TooLarge, TooSlow, BadField if the body is not a JSON
    object, or ClientLeft."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise BadField(
            "", f"has the encoding {encoding[:50]!r}, which is not supported", "send it without Content-Encoding"
        )
    data = await _read(request.receive, request.headers.get("content-length"))
    return _parse(data) if len(data) <= _QUICK else await asyncio.to_thread(_parse, data)


async def _read(receive: Receive, announced: str | None) -> bytes:
    if announced is not None and announced.isdigit() and int(announced) > LARGEST:
        raise _too_large()
    parts, size = [], 0
    try:
        async with asyncio.timeout(WHOLE_BODY):
            while True:
                message = await asyncio.wait_for(receive(), BETWEEN_PARTS)
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > LARGEST:
                    raise _too_large()
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError as exc:
        raise TooSlow(
            "the body of the request did not arrive in time", f"send it within {WHOLE_BODY:.0f} seconds"
        ) from exc


def _too_large() -> TooLarge:
    return TooLarge(f"the body is larger than {LARGEST >> 20} MiB", "shorten the conversation")


def _parse(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data, parse_constant=_refuse_constant)
        if b"\\u" in data:
            json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        raise BadField("", "has half a surrogate pair (\\ud800 to \\udfff), which is not text") from exc
    except UnicodeDecodeError as exc:
        raise BadField("", f"is not UTF-8: byte {exc.start}") from exc
    except RecursionError as exc:
        raise BadField("", "is nested too deeply") from exc
    except json.JSONDecodeError as exc:
        raise BadField("", f"is not JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}") from exc
    except ValueError as exc:  # NaN or Infinity, or a number with thousands of digits
        raise BadField("", f"is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise BadField("", "must be a JSON object")
    if data.count(b"[") + data.count(b"{") > DEEPEST and too_deep(body):
        raise BadField("", "is nested too deeply")
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
