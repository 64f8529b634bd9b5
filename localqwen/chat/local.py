"""A ChatModel on an engine in this process."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

from localqwen.chat import sampling
from localqwen.chat.answer_stream import AnswerStream
from localqwen.chat.engine_thread import EngineThread
from localqwen.chat.messages import Message, Request, ThinkingMode
from localqwen.chat.model_info import LoadedModel, info_of
from localqwen.chat.prefill_ahead import PendingPrefix
from localqwen.chat.sampling import QWEN_DEFAULTS, Presets
from localqwen.chat.thinking import resolve_thinking
from localqwen.engines.engine import Engine

#: Answers that may wait for a free run.
QUEUE = 64


class LocalChatModel:
    """A ChatModel whose engine runs in a thread of its own. `stream` may be called from several threads: as many
    answers run at once as the engine has runs (`load(…, parallel=N)`), up to `queue` more wait.

    `engine` is opened already, or a function that opens it, which is called in the engine's thread: MLX computes only
    where it was opened. A model that is forgotten closes an engine that it has opened. A context manager: leaving it
    closes the model.
    """

    def __init__(
        self,
        engine: Engine | Callable[[], Engine],
        name: str,
        *,
        thinking_mode: ThinkingMode | None = None,
        load_ms: float | None = None,
        presets: Presets = QWEN_DEFAULTS,
        queue: int = QUEUE,
    ) -> None:
        """`thinking_mode` None asks the chat template, `load_ms` None measures the opening, in milliseconds. Raises
        EngineError for a model without a chat template, and what opening raises."""

        def load() -> LoadedModel:
            began = time.perf_counter()
            opened = engine() if callable(engine) else engine
            milliseconds = (time.perf_counter() - began) * 1000 if load_ms is None else load_ms
            info = info_of(opened, name, thinking_mode=thinking_mode, load_ms=milliseconds, presets=presets)
            return LoadedModel(opened, info)

        self._thread = EngineThread(name, load, queue_limit=queue, owned=callable(engine))
        weakref.finalize(self, self._thread.stop).atexit = False  # the thread's own handler waits for it there
        self.engine, self._info = self._thread.loaded.engine, self._thread.loaded.info
        self.name = name
        self.engine_name = self.engine.name
        self.thinking_mode: ThinkingMode = self._info.thinking_mode
        self.context_length = self._info.context_length
        self.load_ms = self._info.load_ms or 0.0
        self._last: weakref.ref[AnswerStream] | None = None

    def stream(self, request: Request) -> AnswerStream:
        """Return the events of an answer. Raise EngineError where the model is closed; the first event raises what
        stands against the request."""
        self._thread.check_open()
        stream = AnswerStream(self._thread, request, self)
        self._last = weakref.ref(stream)
        return stream

    def end_thinking(self) -> None:
        """End the thinking of the latest answer. Raise EngineError where the model is closed."""
        self._thread.check_open()
        stream = self._last() if self._last is not None else None
        if stream is not None:
            stream.end_thinking()

    @property
    def backend_description(self) -> str:
        """Return what computes at the moment, in a few words. Raise EngineError where the model is closed."""
        return self._thread.call(lambda scheduler: scheduler.engine.backend_description)

    def preset(self, request: Request) -> Mapping[str, float | int]:
        """Return the sampling of the first phase of an answer, by name. Raise EngineError where the model is closed,
        Unsupported where the model cannot think as the request says."""
        self._thread.check_open()
        thinking = resolve_thinking(request, self.thinking_mode, self.name)
        phase = request.thinking_sampling if thinking else request.text_sampling
        return sampling.chosen(request, self._info.presets, thinking=thinking, phase=phase)

    def prefill_ahead(self, request: Request, answer: Message) -> Iterator[None]:
        """Compute what a turn after this answer will begin with, a short step per `next`, until an answer is asked for.
        Raises EngineError where the model is closed."""
        self._thread.check_open()
        thinking = resolve_thinking(request, self.thinking_mode, self.name)
        return self._prefill_ahead(request, answer, thinking)

    def _prefill_ahead(self, request: Request, answer: Message, thinking: bool) -> Iterator[None]:
        pending = self._thread.call(lambda scheduler: scheduler.next_turn(request, answer, thinking=thinking))
        while pending is not None and not pending.complete and self._compute(pending):
            yield

    def _compute(self, pending: PendingPrefix) -> bool:
        return self._thread.call(lambda scheduler: scheduler.compute_prefix(pending))

    #: Their names in the first version.
    setup, read_ahead = backend_description, prefill_ahead

    def close(self) -> None:
        """Free the memory; end the answers that still stream with an EngineError. May be called again, from any
        thread."""
        self._thread.close()

    def __enter__(self) -> LocalChatModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
