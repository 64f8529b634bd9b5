"""One answer as a state machine without I/O: a prompt for the engine, then pieces in, events out.

The driver (a loop in `local.py`, the server's worker) starts the run that `run` describes, calls `begin`, feeds every
piece, and looks at two things after each: `run` again (another object means: cancel, start that one, go on) and
`finished` (cancel and stop). An answer is restarted when text is forced into it (thinking budget, early end) or when
its text phase has another sampling or a grammar; the engine still holds the prefix, so a restart costs one token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from localqwen.chat import sampling as samplings
from localqwen.chat.encoding import encode_parts, text_of
from localqwen.chat.grammar import TokenConstraint
from localqwen.chat.messages import (
    Event,
    Finished,
    Request,
    SamplingOverrides,
    Started,
    Text,
    Thinking,
    ThinkingEnd,
    TokenLogprob,
    ToolCall,
    Usage,
)
from localqwen.chat.model_info import ModelInfo
from localqwen.chat.prompts import OnStage, render_request, unnoticed
from localqwen.chat.stop import StopStrings
from localqwen.chat.stopwatch import Stopwatch
from localqwen.chat.thinking import OPEN, PlainParser, ThinkingParser, prompt_start, resolve_thinking
from localqwen.engines.engine import Constraint, Engine, Run, Sampling, TokenOutput
from localqwen.errors import ContextTooLong, EngineError, Unsupported, UsageError

#: How thinking is ended early; the makers' text (Qwen3 documentation, "Thinking Budget").
EARLY_STOP = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
    "</think>\n\n"
)


@dataclass(frozen=True)
class RunSpec:
    """What to start on the engine. The last `generated` ids of the prompt are this answer's earlier part."""

    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    generated: int = 0
    constraint: Constraint | None = None
    logprobs: int | None = None

    def start(self, engine: Engine) -> Run:
        """Start the run. Raise what `Engine.start` does."""
        return engine.start(
            self.prompt,
            self.sampling,
            max_tokens=self.max_tokens,
            generated=self.generated,
            constraint=self.constraint,
            logprobs=self.logprobs,
        )


#: How Qwen3 begins to think.
_OPENING = f"{OPEN}\n"


class Reply:
    """One answer. Making it renders and tokenizes the prompt, and raises Unsupported, UsageError, TemplateError or
    ContextTooLong; nothing has been computed then. `on_stage` is called before each part of that begins."""

    def __init__(
        self,
        request: Request,
        model: ModelInfo,
        *,
        clock: Callable[[], float] = time.perf_counter,
        on_stage: OnStage = unnoticed,
    ) -> None:
        if request.max_tokens is not None and request.max_tokens < 1:
            raise UsageError(f"max_tokens is {request.max_tokens}", "request at least one token")
        self.request = request
        self.model = model
        self.thinking = request.prompt is None and resolve_thinking(request, model.thinking_mode, model.name)
        self.finished = False
        self._on_stage = on_stage
        self._constraint = self._grammar()
        self._run_constraint: TokenConstraint | None = None  # that limits the tokens of the present run
        self._parser: ThinkingParser | PlainParser = PlainParser()
        self._answer: list[int] = []  # ids behind the prompt, generated and forced
        self.prompt = self._encode()
        if len(self.prompt) + len(self._answer) >= model.context_length:
            raise ContextTooLong(len(self.prompt), model.context_length)
        self._sampling = {name: self._phase_sampling(phase) for name, phase in self._phases().items()}
        self._limit = request.max_tokens or model.context_length
        self.run = self._first_run()
        self._stop = StopStrings(request.stop)
        self._generated = 0
        self._thinking_tokens = 0
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text has not been shown
        self._called = False
        self._wrote = False
        self._enough = False  # the one call that was wanted has come
        self._cut: ThinkingEnd | None = None  # requested, not yet done
        self._thinking_end: ThinkingEnd | None = None
        self._stopwatch = Stopwatch(clock)
        self._cached_tokens = 0

    def _grammar(self) -> Callable[[], TokenConstraint] | None:
        if self.request.format is None and not self.request.must_call:
            return None
        if self.model.grammars is None:
            raise Unsupported(f"{self.model.name} cannot be limited to a grammar")
        self._on_stage("grammar")
        return self.model.grammars.constraint(self.request, thinking=self.thinking)

    def _new_constraint(self) -> TokenConstraint | None:
        self._run_constraint = self._constraint() if self._constraint and self._parser.answering else None
        return self._run_constraint

    def _encode(self) -> tuple[int, ...]:
        parts = render_request(self.request, self.request.messages, self.model, self.thinking, on_stage=self._on_stage)
        self._on_stage("text")
        ids = encode_parts(parts, self.model.tokenize, context_length=self.model.context_length)
        if self.request.prompt is None:
            self._open_parser(text_of(parts))
        return tuple(ids)

    def _open_parser(self, prompt: str) -> None:
        start = prompt_start(prompt, self.thinking)
        self._parser = ThinkingParser(start, calls=self.request.read_calls)
        if self._constraint and start == "auto":  # a grammar can begin only where it is known that the thinking has
            self._parser.feed(_OPENING)
            self._answer += self.model.tokenize(_OPENING, special=True)

    def _first_run(self) -> RunSpec:
        """With what stands already behind the prompt."""
        answering = self._parser.answering
        return RunSpec(
            self.prompt + tuple(self._answer),
            self._sampling["text" if answering else "thinking"] if self.thinking else self._sampling["text"],
            self._limit,
            generated=len(self._answer),
            constraint=self._new_constraint(),
            logprobs=self.request.logprobs,
        )

    def _phases(self) -> dict[Literal["thinking", "text"], SamplingOverrides]:
        return {"thinking": self.request.thinking_sampling, "text": self.request.text_sampling}

    def _phase_sampling(self, phase: SamplingOverrides) -> Sampling:
        return samplings.sampling_for(self.request, self.model.presets, thinking=self.thinking, phase=phase)

    def begin(self, run: Run) -> list[Event]:
        """Return the first event. To be called once, when the engine has accepted the first run."""
        self._cached_tokens = min(run.cached_tokens, len(self.prompt))  # a run may begin with forced tokens
        self._stopwatch.start_run()
        warnings = samplings.warnings_for(run.sampling, thinking=self.thinking)
        return [Started(len(self.prompt), self._cached_tokens, self.thinking, warnings)]

    def end_thinking(self) -> None:
        """End the thinking at the next whole character (or as soon as it begins)."""
        if not self._parser.answering:
            self._cut = "user"

    def feed(self, piece: TokenOutput) -> list[Event]:
        """Return the events that a token brings. Raise EngineError where the answer's grammar failed."""
        if self.finished:
            return []
        if self._run_constraint is not None and self._run_constraint.problem is not None:
            problem = self._run_constraint.problem
            raise EngineError(f"{self.model.name}: {problem.message}", problem.hint) from problem
        self._stopwatch.piece()
        events = self._take(piece)
        if piece.finish_reason is not None and not self.finished:
            return events + self._finish(piece.finish_reason)
        if not self.finished and piece.whole:
            events += self._turn()
        return events

    def _take(self, piece: TokenOutput) -> list[Event]:
        was_thinking = self._parser.thinking
        self._answer += piece.tokens
        self._generated += len(piece.tokens)
        parsed = self._parser.feed(piece.text)
        if piece.logprobs is not None and not was_thinking and piece.finish_reason != "stop":
            self._note_logprobs(piece)
        events = self._show(parsed)
        if was_thinking and self._parser.thinking:
            self._thinking_tokens += len(piece.tokens)
        if self._parser.closed and self._thinking_end is None:
            self._thinking_end = "model"
        return events

    def _note_logprobs(self, piece: TokenOutput) -> None:
        """Of the answer's tokens; the line breaks that only lead it are not shown and have none."""
        found = piece.logprobs
        if (
            found is None
            or not self._parser.answering
            or not (self._wrote or piece.text.strip("\n") or not piece.whole)
        ):
            return
        self._wrote = True
        words = self._words()
        top = tuple(TokenLogprob(words(token), value) for token, value in found.top)
        self._logprobs.append(TokenLogprob(words(piece.tokens[-1]), found.chosen, top))

    def _words(self) -> Callable[[int], bytes]:
        known = self.model.token_bytes() if self.model.token_bytes is not None else ()
        return lambda token: known[token] if token < len(known) else b""

    def _text(self, text: str) -> list[Event]:
        if not text:
            return []
        logprobs, self._logprobs = tuple(self._logprobs), []
        return [Text(text, logprobs)]

    def _show(self, output: Sequence[Text | Thinking | ToolCall]) -> list[Event]:
        events: list[Event] = []
        for part in output:
            events += self._show_part(part)
            if self._stop.hit or self._enough:
                return events + self._finish("stop")
        return events

    def _show_part(self, part: Text | Thinking | ToolCall) -> list[Event]:
        if isinstance(part, Thinking):
            return [part]
        self._stopwatch.answer()
        if isinstance(part, Text):
            return self._text(self._stop.feed(part.text))
        self._called = True
        self._enough = not self.request.parallel_calls
        return [*self._text(self._stop.finish()), part]

    def _turn(self) -> list[Event]:
        """Between two tokens: force the end of the thinking, or go on with the sampling of the text."""
        budget = self.request.budget
        if self._parser.thinking and self._cut is None and budget is not None and self._thinking_tokens >= budget:
            self._cut = "budget"
        if self._parser.thinking and self._cut is not None:
            return self._cut_thinking(self._cut)
        free = self._constraint is not None and self.run.constraint is None
        if self._parser.answering and (free or self.run.sampling != self._sampling["text"]):
            return self._restart()
        return []

    def _cut_thinking(self, by: ThinkingEnd) -> list[Event]:
        self._answer += self.model.tokenize(EARLY_STOP, special=True)
        self._thinking_end, self._cut = by, None
        return self._show(self._parser.feed(EARLY_STOP)) + self._restart()

    def _restart(self) -> list[Event]:
        prompt = self.prompt + tuple(self._answer)
        left = self._limit - self._generated
        if left < 1 or len(prompt) >= self.model.context_length:
            return self._finish("length")
        sampling = self._sampling["text"]
        if sampling.seed is not None:  # the same numbers must not be drawn again
            sampling = replace(sampling, seed=sampling.seed + len(self._answer))
        self._sampling["text"] = sampling
        self.run = RunSpec(prompt, sampling, left, len(self._answer), self._new_constraint(), self.request.logprobs)
        self._stopwatch.start_run()
        return []

    def _finish(self, reason: Literal["stop", "length"]) -> list[Event]:
        self.finished = True
        events: list[Event] = []
        if not self._stop.hit and not self._enough:
            events = self._show(self._parser.finish())
            events += self._text(self._stop.finish())
        if events and isinstance(events[-1], Finished):  # a stop string came with the last held text
            return events
        usage = Usage(len(self.prompt), self._cached_tokens, self._generated, self._thinking_tokens)
        timing = self._stopwatch.timing(self.model.load_ms, len(self.prompt) - self._cached_tokens)
        why: Literal["stop", "length", "tool_calls"] = "tool_calls" if self._called and reason == "stop" else reason
        return [*events, Finished(why, usage, timing, self._thinking_end, self._stop.hit)]
