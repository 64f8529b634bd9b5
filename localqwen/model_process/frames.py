"""Messages as bytes: four bytes of length (big endian), then a JSON object in UTF-8. Plain data only:
nothing that runs.

Both sides are one installation, but not always one version of it: an upgrade may replace the files under a running
server. So the first message of each side says its VERSION.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from localqwen.errors import EngineError

#: Of what the messages mean. Change it with every change of a message.
VERSION = 1
#: The largest message in bytes: a request of the largest body, escaped twice.
LARGEST = 256 << 20
HEADER = struct.Struct(">I")

Message = Mapping[str, Any]


class BrokenMessage(EngineError):
    """What came from the other side is not a message."""


def frame(message: Message) -> bytes:
    """Return a message as bytes. Half a surrogate pair, which UTF-8 does not have, survives."""
    payload = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return HEADER.pack(len(payload)) + payload


def payload_length(header: bytes) -> int:
    """Return how many bytes follow a header. Raise BrokenMessage for more than LARGEST."""
    (length,) = HEADER.unpack(header)
    if length > LARGEST:
        raise BrokenMessage(f"a message of {length:,} bytes")
    return int(length)


def parse(payload: bytes) -> Message:
    """Return the message of a payload. Raise BrokenMessage if it is not a JSON object."""
    try:
        message = json.loads(payload.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as exc:
        raise BrokenMessage(f"a message that is not JSON: {exc}") from exc
    if not isinstance(message, dict):
        raise BrokenMessage("a message that is not a JSON object")
    return message
