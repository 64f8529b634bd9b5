"""A model's process played by a thread, for tests whose engine is a script: the same messages over the same kind of
stream, and the child's own code behind it. It cannot be killed; its connection can be cut."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable

from localqwen.chat.model_info import LoadedModel
from localqwen.model_process import child
from localqwen.model_process.channel import Channel
from localqwen.model_process.process import Child, Start


class ThreadChild:
    pid = 0

    def __init__(self, incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter, theirs: socket.socket) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self._theirs = theirs
        self._killed = False
        self._ended = threading.Event()
        self.failure: BaseException | None = None

    def kill(self) -> None:
        self._killed = True
        with contextlib.suppress(OSError):  # it has ended
            self._theirs.shutdown(socket.SHUT_RDWR)

    async def wait(self) -> int:
        while not self._ended.is_set():
            await asyncio.sleep(0.002)
        return -9 if self._killed else 1 if self.failure else 0

    def last_words(self) -> tuple[str, ...]:
        return (f"{type(self.failure).__name__}: {self.failure}",) if self.failure else ()

    def run(self, open_model: Callable[[str], LoadedModel]) -> None:
        channel = Channel(self._theirs.makefile("rb"), self._theirs.makefile("wb"))
        try:
            child.serve(channel, lambda opening: child.Opened(open_model(opening["name"])), end=lambda: None)
        except BrokenPipeError:  # cut by `kill`, or closed by the parent
            pass
        except Exception as exc:  # what would be the traceback of a process
            self.failure = exc
        finally:
            with contextlib.suppress(OSError):
                self._theirs.shutdown(socket.SHUT_RDWR)
            self._theirs.close()
            self._ended.set()


def starting(open_model: Callable[[str], LoadedModel]) -> Start:
    """Start children that open a model by this function."""

    async def start(name: str) -> Child:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        played = ThreadChild(reader, writer, theirs)
        threading.Thread(target=played.run, args=(open_model,), name="played-child", daemon=True).start()
        return played

    return start
