"""A ChatModel on an engine in this process: one loop around `Reply`."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from localqwen.chat import sampling
from localqwen.chat.grammar import Grammars
from localqwen.chat.messages import Event, Message, Request, Started, ThinkingMode, Working
from localqwen.chat.prefill_ahead import ReadingAhead, next_turn
from localqwen.chat.prompts import ModelFacts
from localqwen.chat.reply import Reply
from localqwen.chat.sampling import MAKERS, Presets
from localqwen.chat.template import ChatTemplate
from localqwen.chat.thinking import resolve_thinking
from localqwen.engines.engine import Engine, Run, TokenOutput
from localqwen.errors import EngineError, TemplateError

_PROBE = ({"role": "user", "content": "x"},)


def thinking_mode_of(template: ChatTemplate) -> ThinkingMode:
    """What a template says of its model: obeys `enable_thinking` (switch), always opens a think block, or neither."""
    try:
        asked, off = template.render(_PROBE), template.render(_PROBE, enable_thinking=False)
    except TemplateError:
        return "never"
    if asked != off:
        return "switch"
    return "always" if asked.rstrip().endswith("<think>") else "never"


def facts_of(
    engine: Engine,
    name: str,
    *,
    thinking_mode: ThinkingMode | None = None,
    load_ms: float = 0,
    presets: Presets = MAKERS,
) -> ModelFacts:
    """What an answer needs to know of an engine's model. `thinking_mode` None asks the template.

    Raises EngineError where there is no template.
    """
    if not engine.chat_template:
        raise EngineError(
            f"{name} has no chat template", "use a model that was converted with its tokenizer_config.json"
        )
    template = ChatTemplate(engine.chat_template, engine.special_tokens)
    mode = thinking_mode or thinking_mode_of(template)
    words = functools.cache(engine.vocabulary)
    return ModelFacts(
        name,
        template,
        engine.tokenize,
        mode,
        engine.context_length,
        load_ms,
        presets,
        grammars=Grammars(lambda text: engine.tokenize(text, special=False), words, lambda: engine.stop_tokens),
        token_bytes=words,
    )


class LocalChatModel:
    """Owns its engine; several `stream`s may run at once where the engine has the room, all in the engine's thread."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        *,
        thinking_mode: ThinkingMode | None = None,
        load_ms: float = 0,
        presets: Presets = MAKERS,
    ) -> None:
        self._facts = facts_of(engine, name, thinking_mode=thinking_mode, load_ms=load_ms, presets=presets)
        self.name = name
        self.engine_name = engine.name
        self.thinking_mode: ThinkingMode = self._facts.thinking_mode
        self.context_length = engine.context_length
        self.load_ms = load_ms
        self.engine = engine
        self._inbox: dict[Run, deque[TokenOutput]] = {}
        self._reply: Reply | None = None
        self._untold = engine.warnings
        self._reading = ReadingAhead(engine)

    def stream(self, request: Request) -> Generator[Event, None, None]:
        reply = self._reply = Reply(request, self._facts)
        spec, run = reply.run, self._start(reply)
        try:
            yield from self._warned(reply.begin(run))
            while not reply.finished:
                yield from self._advance(reply, run) or [Working(run.prefilled, run.prompt_tokens)]
                if reply.run is not spec and not reply.finished:
                    self._stop(run)
                    spec, run = reply.run, self._start(reply)
        finally:
            self._stop(run)

    def _warned(self, events: list[Event]) -> list[Event]:
        """The first answer also says what the opening of the model gave reason to warn of."""
        untold, self._untold = self._untold, ()
        return [
            replace(event, warnings=untold + event.warnings) if isinstance(event, Started) else event
            for event in events
        ]

    @property
    def setup(self) -> str:
        return self.engine.backend_description

    def read_ahead(self, request: Request, answer: Message) -> Iterator[None]:
        thinking = resolve_thinking(request, self.thinking_mode, self.name)
        ids = next_turn(request, answer, self._facts, thinking=thinking)
        if not 0 < len(ids) < self.context_length:
            return
        ahead = self._reading.begin(ids)
        while not ahead.done:
            self._reading.read(ahead)
            yield

    def end_thinking(self) -> None:
        if self._reply is not None:
            self._reply.end_thinking()

    def preset(self, request: Request) -> Mapping[str, float | int]:
        thinking = resolve_thinking(request, self.thinking_mode, self.name)
        phase = request.thinking_sampling if thinking else request.text_sampling
        return sampling.chosen(request, self._facts.presets, thinking=thinking, phase=phase)

    def close(self) -> None:
        self.engine.close()

    def _start(self, reply: Reply) -> Run:
        run = reply.run.start(self.engine)
        self._inbox[run] = deque()
        return run

    def _stop(self, run: Run) -> None:
        self.engine.cancel(run)
        self._inbox.pop(run, None)

    def _advance(self, reply: Reply, run: Run) -> list[Event]:
        """One step of the engine, unless an earlier one for another stream has left a piece here."""
        if not self._inbox[run]:
            for stepped, piece in self.engine.step():
                if stepped in self._inbox:
                    self._inbox[stepped].append(piece)
        return reply.feed(self._inbox[run].popleft()) if self._inbox[run] else []


def load(
    name: str,
    *,
    engine: str | None = None,
    context_length: int | None = None,
    threads: int | None = None,
    force: bool = False,
    kv_quant: int | None = None,
    adapter: str | Path | None = None,
) -> LocalChatModel:
    """Open a model by name or path and make it answer. See `localqwen.engines.open` for the parameters and errors."""
    from localqwen import engines
    from localqwen.models import names

    begin = time.perf_counter()
    opened = engines.open(
        name,
        engine=engine,
        context_length=context_length,
        threads=threads,
        force=force,
        kv_quant=kv_quant,
        adapter=adapter,
    )
    model = names.model_of(name)
    return LocalChatModel(
        opened,
        names.display(name),
        thinking_mode=model.thinking if model else None,
        load_ms=(time.perf_counter() - begin) * 1000,
        presets=Presets.of(model.sampling if model else {}),
    )
