"""JSON on its way to a client: as a body, as an event of a server-sent stream, as a line of NDJSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
JSON = "application/json"
#: The end of every stream of OpenAI's completions.
DONE = b"data: [DONE]\n\n"


def dumps(data: Any) -> bytes:
    """Return `data` as JSON in UTF-8, without spaces. Half a surrogate pair, which a client may have sent escaped,
    stays escaped."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(data, separators=(",", ":")).encode()


def sse(data: Mapping[str, Any], event: str = "") -> bytes:
    """Return one event of a server-sent stream with `data` as JSON, and the event's name if it has one."""
    return (f"event: {event}\n".encode() if event else b"") + b"data: " + dumps(data) + b"\n\n"


def ndjson(data: Mapping[str, Any]) -> bytes:
    """Return one line of newline-delimited JSON."""
    return dumps(data) + b"\n"
