"""Change messages between the server and a model's process at random, and let the other side read them.

    python tools/fuzz_messages.py 50000 [SEED]

Each message is a good one of either side with one thing changed in its JSON, or one byte in its frame. The reader must
understand it or raise BrokenMessage; anything else is printed with its number and ends the run with 1.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from localqwen.chat.messages import (
    Finished,
    JsonFormat,
    Message,
    Request,
    SamplingOverrides,
    Started,
    Text,
    Thinking,
    Timing,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)
from localqwen.errors import Busy, ContextTooLong
from localqwen.model_process import frames, values
from localqwen.model_process.frames import BrokenMessage
from localqwen.model_process.process import OpenedModel

_REQUEST = Request(
    [Message("user", "hi"), Message("assistant", "", "hm", (ToolCall("f", {"x": 1}, "id"),)), Message("tool", "r")],
    [Tool("f", "does", {"type": "object"})],
    stop=("a",),
    sampling=SamplingOverrides(temperature=0.5),
    format=JsonFormat({}),
    must_call=("f",),
)
_EVENTS = (
    Started(3, 1, True, ("w",)),
    Thinking("t"),
    Text("x", (TokenLogprob(b"x", -0.5, (TokenLogprob(b"y", -1.0),)),)),
    ToolCall("f", {"a": [1]}, "id"),
    Finished("stop", Usage(1, 2, 3, 4), Timing(1.0), "model", "END"),
)
_OPENED = {
    "engine": "e",
    "context_length": 9,
    "max_runs": 1,
    "warnings": ["w"],
    "files": {"/m": [1] * 4},
}
_ODD = (None, True, -1, 2**70, 1e308, float("nan"), "", "\ud800", "text", "stop", [], {}, [[[]]], {"class": "Busy"})


def good() -> list[tuple[Callable[[Any], object], Any]]:
    """Return the readers, each with something that it understands."""
    events = [(values.event_from_json, values.event_to_json(event)) for event in _EVENTS]
    errors = [(values.error_from_json, values.error_to_json(error)) for error in (Busy("full"), ContextTooLong(1, 2))]
    request = (values.request_from_json, values.request_to_json(_REQUEST))
    return [*events, *errors, request, (OpenedModel.from_json, _OPENED)]


def changed(data: Any, choose: random.Random) -> Any:
    """Return the data with one thing in it changed, removed or added."""
    if isinstance(data, list) and data and choose.random() < 0.85:
        place = choose.randrange(len(data))
        kept = [] if choose.random() < 0.15 else [changed(data[place], choose)]
        return [*data[:place], *kept, *data[place + 1 :]]
    if isinstance(data, dict) and data and choose.random() < 0.85:
        key = choose.choice(sorted(data))
        rest = {name: value for name, value in data.items() if name != key}
        return rest if choose.random() < 0.2 else {**rest, key: changed(data[key], choose)}
    return choose.choice(_ODD)


def one(choose: random.Random) -> str:
    """Change and read one message. Return what came of it: understood or refused."""
    read, data = choose.choice(good())
    frame = bytearray(frames.frame({"it": changed(json.loads(json.dumps(data)), choose)}))
    if choose.random() < 0.3:
        frame[choose.randrange(len(frame))] = choose.randrange(256)
    try:
        frames.payload_length(bytes(frame[:4]))
        read(frames.parse(bytes(frame[4:])).get("it"))
    except BrokenMessage:
        return "refused"
    return "understood"


def main(count: int, seed: int) -> int:
    """Read `count` messages and print what came of them. Return 1 if one raised anything else."""
    came: Counter[str] = Counter()
    for number in range(count):
        try:
            came[one(random.Random(f"{seed} {number}"))] += 1
        except Exception as exc:  # whatever it is, it is what this program looks for
            came[f"{type(exc).__name__} in message {number}: {exc}"[:200]] += 1
    for what, times in came.most_common():
        print(f"{times:>8,} {what}")
    return int(bool(came.keys() - {"refused", "understood"}))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
