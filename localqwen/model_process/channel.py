"""The blocking end of a connection: one message at a time from a pipe, and messages of any thread into another."""

from __future__ import annotations

import os
import sys
import threading
from typing import IO

from localqwen.model_process import frames
from localqwen.model_process.frames import Message


class Channel:
    """Messages over two binary streams. One thread receives, any may send."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._incoming, self._outgoing = incoming, outgoing
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message. Raise BrokenPipeError where nobody reads any more."""
        data = frames.frame(message)
        with self._sending:
            self._outgoing.write(data)
            self._outgoing.flush()

    def receive(self) -> Message | None:
        """Return the next message; None where the other side has ended. Raise BrokenMessage."""
        header = self._incoming.read(frames.HEADER.size)
        if len(header) < frames.HEADER.size:
            return None
        length = frames.payload_length(header)
        payload = self._incoming.read(length)
        return frames.parse(payload) if len(payload) == length else None


def of_this_process() -> Channel:
    """Return the channel to the parent, over what were this process's standard input and output.

    From now on, what a library prints goes to standard error: it must not be read as a message.
    """
    incoming, outgoing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return Channel(os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb"))
