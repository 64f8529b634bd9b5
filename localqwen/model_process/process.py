"""The server's side of a model's process: it starts one, sends and receives messages without waiting, and learns how it
ended. Everything here happens in one event loop, which never waits for a child.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from localqwen.chat.load_options import LoadOptions
from localqwen.errors import EngineError, ProcessEnded
from localqwen.machine import posix
from localqwen.model_process import frames, launch, values
from localqwen.model_process.death import Death
from localqwen.model_process.file_stamps import Stamps
from localqwen.model_process.frames import BrokenMessage, Message

_MODULE = "localqwen.model_process"
#: How much of standard error is kept: lines, and characters of each.
_LAST_LINES, _LONGEST_LINE = 20, 500
#: Seconds for a process that was told to end.
_FAREWELL = 2.0


class ProcessDied(ProcessEnded):
    """The end of a process that nobody wanted, while it did something; `death` says how."""

    def __init__(self, name: str, death: Death, doing: str) -> None:
        super().__init__(f"the process of {name} {death.text} {doing}".rstrip(), "localqwen verify checks its files")
        self.death = death


@dataclass(frozen=True)
class ModelSpec:
    """What a child opens: `model` is a name that `resolve` understands, `name` what answers call it. `files` are the
    stamps of what lay on disk."""

    model: str
    name: str
    options: LoadOptions
    files: Stamps = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the specification as plain data."""
        return {"model": self.model, "name": self.name, "options": self.options.to_json()}


@dataclass(frozen=True)
class OpenedModel:
    """What a child says of the model that it has opened. `context_length` is tokens of one run, `files` are the stamps
    of its files before they were read."""

    engine: str
    context_length: int
    max_runs: int
    warnings: tuple[str, ...]
    files: Stamps

    @classmethod
    def from_json(cls, data: Any) -> OpenedModel:
        """Return what a child's message says. Raise BrokenMessage for other data."""
        match data:
            case {
                "engine": str(engine),
                "context_length": int(context),
                "max_runs": int(runs),
                "warnings": [*warnings],
                "files": dict(files),
            }:
                return cls(engine, context, runs, tuple(map(str, warnings)), _stamps(files))
        raise BrokenMessage("a model that says nothing of itself")


def _stamps(data: Mapping[str, Any]) -> Stamps:
    if not all(isinstance(stamp, list) and len(stamp) == 4 for stamp in data.values()):
        raise BrokenMessage("stamps of files that are none")
    return {path: tuple(stamp) for path, stamp in data.items()}


class Child(Protocol):
    """A started child: two streams, its end, and a way to end it."""

    pid: int
    incoming: asyncio.StreamReader
    outgoing: asyncio.StreamWriter

    def kill(self) -> None:
        """End it at once. Do nothing if it has ended."""
        ...

    async def wait(self) -> int:
        """Wait until it has ended; return its exit code, negative for a signal."""
        ...

    def last_words(self) -> tuple[str, ...]:
        """Return the last lines that it wrote to standard error."""
        ...


#: Starts the child of a model, which waits for its first message.
Start = Callable[[str], Awaitable[Child]]


async def start_child(name: str) -> Child:
    """Start the process of the model called `name`. Raise EngineError where the system starts none."""
    command = launch.command(_MODULE, name)
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=pipe, **launch.popen_arguments()
        )
    except OSError as exc:
        raise EngineError(f"no process can be started for {name}: {exc.strerror}") from exc
    return _SystemChild(process)


class _SystemChild:
    """A real process. What it writes to standard error is read all the time, and the end of it kept."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stdin is not None
        self._process = process
        self.pid, self.incoming, self.outgoing = process.pid, process.stdout, process.stdin
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._listening = asyncio.ensure_future(self._listen())

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        rest = ""
        while data := await self._process.stderr.read(1 << 14):
            *lines, rest = (rest + data.decode(errors="replace")).split("\n")
            self._lines.extend(launch.printable(line.strip(), _LONGEST_LINE) for line in lines if line.strip())
            rest = rest[-_LONGEST_LINE:]
        if rest.strip():
            self._lines.append(launch.printable(rest.strip(), _LONGEST_LINE))

    def kill(self) -> None:
        # Not Process.kill: it looks first whether the process has ended, and takes the exit code from who waits for it.
        if self._process.returncode is None:
            posix.kill(self.pid)

    async def wait(self) -> int:
        code = await self._process.wait()
        await asyncio.wait([self._listening], timeout=1)  # a grandchild may keep the pipe open
        self._listening.cancel()
        return code

    def last_words(self) -> tuple[str, ...]:
        return tuple(self._lines)


class ModelProcess:
    """One loaded model in its process. Create it with `open`, and let it `run`."""

    def __init__(self, name: str, child: Child) -> None:
        self.name = name
        self.pid = child.pid
        self.opened: OpenedModel | None = None
        self._child = child
        self._reason = ""

    @classmethod
    async def open(cls, spec: ModelSpec, start: Start, *, seconds: float, settings: Mapping[str, Any]) -> ModelProcess:
        """Start a child and let it open a model within `seconds`. `settings` are more of what its first message says.

        Raise the error that prevents it, ProcessDied where the child died of it. Cancelling this ends the child."""
        process = cls(spec.name, await start(spec.name))
        try:
            async with asyncio.timeout(seconds):
                process.send({"version": frames.VERSION, **settings, **spec.to_json()})
                process.opened = process._opening(await process._receive())
        except TimeoutError:
            process.kill(f"was ended because it had not loaded the model within {seconds:.0f} s")
            raise ProcessDied(spec.name, await process.ended(), "") from None
        except EOFError:
            raise ProcessDied(spec.name, await process.ended(), "while it loaded the model") from None
        except BaseException:
            process.kill("was ended while it loaded the model")
            await asyncio.shield(process.ended())
            raise
        return process

    def _opening(self, message: Message) -> OpenedModel:
        match message:
            case {"version": frames.VERSION, "opened": opened}:
                return OpenedModel.from_json(opened)
            case {"version": frames.VERSION, "refused": refused}:
                raise values.error_from_json(refused)
        raise EngineError("localqwen was replaced by another version while it ran", "restart the server")

    async def run(self, on_message: Callable[[Message], None]) -> Death:
        """Pass every message on until the process has ended; return how it did. Broken messages end it."""
        try:
            while True:
                on_message(self._checked(await self._receive()))
        except EOFError:
            pass
        except BrokenMessage as error:
            self.kill(f"was ended because it sent {error.message}")
        return await self.ended()

    def _checked(self, message: Message) -> Message:
        """Return a message; one that says that the engine failed is the reason of the end, and no message."""
        if "failed" in message:
            self._reason = f"was ended because its engine failed: {values.error_from_json(message['failed']).message}"
            raise EOFError
        return message

    async def _receive(self) -> Message:
        """Return the next message. Raise EOFError at the end, BrokenMessage."""
        incoming = self._child.incoming
        try:
            header = await incoming.readexactly(frames.HEADER.size)
            return frames.parse(await incoming.readexactly(frames.payload_length(header)))
        except ConnectionError as exc:
            raise EOFError from exc

    def send(self, message: Message) -> None:
        """Send a message. It is dropped where the process has ended, which `run` reports."""
        if not self._child.outgoing.is_closing():
            self._child.outgoing.write(frames.frame(message))

    def kill(self, reason: str) -> None:
        """End the process at once. The first reason is the one that counts."""
        self._reason = self._reason or reason
        self._child.kill()

    async def close(self) -> None:
        """Let the process end, and end it if it does not."""
        self._child.outgoing.close()
        try:
            await asyncio.wait_for(self.ended(), _FAREWELL)
        except TimeoutError:
            self.kill("did not end")
            await self.ended()

    async def ended(self) -> Death:
        """Wait until the process has ended; return how."""
        code = await self._child.wait()
        self._child.outgoing.close()
        return Death(code, self._reason, self._child.last_words())
