"""The child's program: it opens one model and answers until its parent ends, or ends it.

The first message says what to open; the answer is `opened` with what the parent needs to know, or `refused`.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from localqwen.chat.load_options import LoadOptions
from localqwen.chat.model_info import LoadedModel
from localqwen.errors import EngineError, LocalqwenError
from localqwen.machine import posix
from localqwen.model_process import file_stamps, frames, launch, values
from localqwen.model_process.answering import Answering
from localqwen.model_process.channel import Channel
from localqwen.model_process.file_stamps import Stamps
from localqwen.model_process.frames import Message

#: The engine that has all its memory when a model is open: what is allocated later is for prompts. A template or a
#: grammar gets so many bytes, and no more.
_ALLOCATES_AT_ONCE, _FURTHER_MEMORY = "llama.cpp", 2 << 30


@dataclass(frozen=True)
class Opened:
    """A model that a child has opened, and the stamps that its files had before."""

    loaded: LoadedModel
    files: Stamps = field(default_factory=dict)


#: Opens the model that a message names. May raise any LocalqwenError.
Open = Callable[[Message], Opened]


def serve(channel: Channel, open_model: Open, end: Callable[[], None]) -> None:
    """Open the model of the first message, then answer until the parent closes the connection: `end` is called then,
    in the thread that receives.

    The engine's errors go to the parent; this returns when the model is closed.
    """
    opening = channel.receive()
    if opening is None:
        return
    sys.setswitchinterval(launch.SWITCH_INTERVAL)
    answering: Future[Answering] = Future()
    receiving = threading.Thread(target=_receive, args=(channel, answering, end), name="localqwen-receive", daemon=True)
    receiving.start()  # before the model is opened: a parent that ends meanwhile is noticed
    try:
        _check_version(opening)
        opened = open_model(opening)
        _limit(opened.loaded, opening)
        answers = Answering(opened.loaded, channel.send, prefill_ahead=opening.get("prefill_ahead", True))
        answering.set_result(answers)
        channel.send(_facts(opened))
    except LocalqwenError as error:
        channel.send({"version": frames.VERSION, "refused": values.error_to_json(error)})
        return
    try:
        answers.run()
    except LocalqwenError as error:  # the engine failed: this process is of no more use
        channel.send({"failed": values.error_to_json(error)})


def _limit(loaded: LoadedModel, opening: Message) -> None:
    """Set the limits of what a prompt may take. The parent ends this process where a stage goes on for longer than
    `stage_seconds`: a template that can be interrupted is interrupted before."""
    loaded.info.template.seconds = opening.get("stage_seconds", math.inf) / 2
    if loaded.engine.name == _ALLOCATES_AT_ONCE:
        posix.limit_further_memory(_FURTHER_MEMORY)


def _check_version(opening: Message) -> None:
    if opening.get("version") != frames.VERSION:
        raise EngineError("localqwen was replaced by another version while it ran", "restart the server")


def _receive(channel: Channel, answering: Future[Answering], end: Callable[[], None]) -> None:
    while (message := channel.receive()) is not None:
        answering.result().receive(message)  # the parent sends nothing before the model is open
    end()
    if answering.done():
        answering.result().close()


def _facts(opened: Opened) -> Message:
    engine = opened.loaded.engine
    return {
        "version": frames.VERSION,
        "opened": {
            "engine": engine.name,
            "context_length": engine.context_length,
            "max_runs": engine.max_runs,
            "warnings": list(engine.warnings),
            "files": opened.files,
        },
    }


def open_named(opening: Message) -> Opened:
    """Open the model that a message names, with its options and the name that answers give it.

    Raise BrokenMessage for one that names none, and what `load.open_model` does.
    """
    from localqwen.chat import load
    from localqwen.engines import selection

    match opening:
        case {"model": str(model), "name": str(name), "options": dict(options)}:
            wanted = LoadOptions.from_json(options)
            resolved = selection.resolve(model, wanted.engine)
            files = file_stamps.of(resolved.path())  # before it is opened: what is written meanwhile is a change
            return Opened(load.open_model(resolved, wanted, name=name), files)
    raise frames.BrokenMessage("a message that opens no model")
