"""The llama.cpp engine: several runs in one context, stepped together, on the low-level API.

A slot is one sequence of the context and remembers which ids its KV cells hold, also after its run has ended. A new run
takes over the longest prefix that any slot holds, and computes only the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localqwen.engines import logits, scheduling
from localqwen.engines.decoding import Decoding, check_evaluation
from localqwen.engines.engine import Constraint, FinishReason, Logprobs, Run, Sampling, TokenOutput
from localqwen.engines.llama_cpp.context import Context
from localqwen.engines.llama_cpp.library import ModelFile, library, sampler_chain
from localqwen.engines.llama_cpp.settings import Settings, tuned
from localqwen.engines.turns import Turns
from localqwen.errors import EngineError, Unsupported, UsageError
from localqwen.machine import this_machine
from localqwen.models import fit, gguf_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Up to this size of the weights, waking a second thread takes longer than the work that it takes over.
ONE_THREAD_BYTES = 64 << 20
#: Positions per block of `evaluate`: each takes four bytes for every token of the vocabulary.
EVALUATED_BLOCK = 64


@dataclass(eq=False)
class _Slot:
    """One sequence. `tokens` are the ids in its KV cells, in order; `used` orders slots by last use."""

    index: int
    tokens: list[int] = field(default_factory=list)
    run: Run | None = None
    used: int = 0


class LlamaCppEngine:
    """See `engines.engine.Engine`. Raises EngineError where llama.cpp cannot load the file or make the context."""

    name = "llama.cpp"

    def __init__(self, model: ModelFile, settings: Settings, *, context_length: int, max_runs: int = 1) -> None:
        """The model's weights may serve several engines; the caller closes them."""
        self._lib, self._model = library(), model
        self._context = Context(model, settings, cells=context_length * max_runs, sequences=max_runs)
        self.context_length = context_length
        self.max_runs = max_runs
        self.chat_template = self._model.metadata("tokenizer.chat_template")
        self.special_tokens = self._model.special_tokens()
        self.stop_tokens = self._model.stop_tokens()
        self._slots = [_Slot(index) for index in range(max_runs)]
        self._clock = 0
        self._slice = scheduling.SMALLEST_SLICE
        self._turns = Turns()
        self._reads = False  # the last pass read prompts
        self._closed = False
        self.warnings: tuple[str, ...] = (settings.yarn.warning,) if settings.yarn else ()
        self._labels = model.labels

    @property
    def settings(self) -> Settings:
        return self._context.settings

    @property
    def threads(self) -> int:
        """Those that decode at the moment."""
        return self._context.threads

    @property
    def setup(self) -> str:
        settings = self.settings
        count = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        tuned = ("tuned",) if settings.tuned else ()
        flash = ("flash attention",) if settings.flash_attention else ()
        kv = (f"{settings.kv_type} keys and values",) if settings.kv_type != "f16" else ()
        yarn = (settings.yarn.label,) if settings.yarn else ()
        return ", ".join((count, *tuned, *flash, *kv, *yarn, *self._labels))

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        return self._model.tokenize(text, special=special)

    def vocabulary(self) -> list[bytes]:
        return [self._model.piece(token) for token in range(self._model.vocabulary_size)]

    def start(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        generated: int = 0,
        constraint: Constraint | None = None,
        logprobs: int | None = None,
    ) -> Run:
        scheduling.check_prompt(prompt, max_tokens, self.context_length)
        limit = min(max_tokens, self.context_length - len(prompt))
        run = Run(tuple(prompt), sampling, limit, constraint=constraint, logprobs=logprobs)
        slot = self._take_slot(run)
        run.cached_tokens = run.prefilled = len(slot.tokens)
        run.state = Decoding(slot, self._sampler(run, generated), list(run.prompt[run.prefilled :]))
        return run

    def _sampler(self, run: Run, generated: int) -> Any:
        chain = sampler_chain(self._model, run.sampling, window=self.context_length)
        for token in run.prompt[len(run.prompt) - generated :]:
            self._lib.llama_sampler_accept(chain, token)
        return chain

    def _take_slot(self, run: Run) -> _Slot:
        """A free slot that holds the longest known prefix of the prompt, and nothing else."""
        index, donor, keep = scheduling.place(run, self._slots, self.context_length)
        slot = self._slots[index]
        self._share(self._slots[donor], slot, keep)
        self._clock += 1
        slot.run, slot.used = run, self._clock
        return slot

    def _share(self, donor: _Slot, slot: _Slot, keep: int) -> None:
        # Removal goes by position, not by what we believe to be there: an interrupted step may have left more behind.
        if slot is donor or not keep:
            self._context.truncate(slot.index, keep)
        else:
            self._context.share(donor.index, slot.index, keep)
        slot.tokens = donor.tokens[:keep]

    def step(self) -> list[tuple[Run, TokenOutput]]:
        shares = self._shares()
        if not shares:
            return []
        outputs = self._fill(shares)
        self._decode(sum(count for _, count in shares), prefilling=self._reads)
        for run, count in shares:
            self._computed(run, count)
            if not run.max_tokens and run.prefilled == run.prompt_tokens:
                self.cancel(run)
        return [(run, self._speak(run, row)) for run, row in outputs]

    def _shares(self) -> list[tuple[Run, int]]:
        """How many ids of each live run this pass takes: answers one each, or prompts up to a slice, in turns.

        Never both: llama.cpp computes only pieces of one length together, so a mixed batch is two passes all the same,
        and everybody would wait for both.
        """
        live = [slot.run for slot in self._slots if slot.run is not None]
        answering = [run for run in live if len(_state(run).todo) == 1]
        reading = [run for run in live if len(_state(run).todo) > 1]
        self._reads = bool(reading) and not (answering and self._reads)
        if not self._reads:
            return [(run, 1) for run in answering]
        reading.sort(key=lambda run: _state(run).slot.used)
        left = [len(_state(run).todo) for run in reading]
        shares = self._turns.share(left, min(self._slice, self.settings.batch))
        return [(reading[index], count) for index, count in shares]

    def _fill(self, shares: list[tuple[Run, int]]) -> list[tuple[Run, int]]:
        """Write the batch; gives the row of the logits for each run whose prompt is complete with it."""
        row, outputs = 0, []
        for run, count in shares:
            state = _state(run)
            position, complete = len(state.slot.tokens), count == len(state.todo)
            for offset in range(count):
                last = complete and offset == count - 1
                self._context.set_row(row, state.todo[offset], position + offset, state.slot.index, output=last)
                row += 1
            if complete and run.max_tokens:
                outputs.append((run, row - 1))
        return outputs

    def _decode(self, count: int, *, prefilling: bool) -> None:
        began = time.perf_counter()
        self._context.compute(count)
        if prefilling:
            seconds = time.perf_counter() - began
            self._slice = scheduling.next_slice(self._slice, count, seconds, self.settings.batch)

    def _computed(self, run: Run, count: int) -> None:
        state = _state(run)
        state.slot.tokens += state.todo[:count]
        del state.todo[:count]
        run.prefilled = min(run.prompt_tokens, len(state.slot.tokens))

    def _speak(self, run: Run, row: int) -> TokenOutput:
        """Draw the next token from the logits of a row."""
        state = _state(run)
        token, logprobs = self._draw(run, row)
        run.generated += 1
        finish: FinishReason | None = "length" if run.generated >= run.max_tokens else None
        text = ""
        if token in self.stop_tokens:
            finish = "stop"
        else:
            text = state.text.decode(self._model.piece(token))
            state.todo.append(token)
        piece = TokenOutput((token,), text, state.whole, finish, logprobs)
        if finish:
            self.cancel(run)
        return piece

    def _draw(self, run: Run, row: int) -> tuple[int, Logprobs | None]:
        sampler = _state(run).sampler
        best = not run.sampling.temperature and not run.sampling.penalises
        if not best and run.constraint is None and run.logprobs is None:
            return self._context.sample(sampler, row), None
        scores = self._context.logits(row)
        known = logits.log_softmax(scores) if run.logprobs is not None else None
        if run.constraint is not None:  # the sampler reads the same memory
            scores[~run.constraint.allowed()] = -math.inf
        # The best of 151,936 is found here in a tenth of the time that the library takes to list them first.
        token = int(scores.argmax()) if best else self._context.sample(sampler, row)
        if run.constraint is not None:
            run.constraint.accept(token)
        return token, None if known is None else logits.logprobs(known, token, run.logprobs or 0)

    def held(self, prompt: Sequence[int]) -> int:
        return scheduling.held(prompt, self._slots)

    def cancel(self, run: Run) -> None:
        if run.finished:
            return
        state = _state(run)
        run.finished, state.slot.run = True, None
        self._lib.llama_sampler_free(state.sampler)

    def evaluate(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        check_evaluation(tokens, self.context_length, live=any(slot.run is not None for slot in self._slots))
        self._context.clear()
        for slot in self._slots:
            slot.tokens = []
        for start in range(0, len(tokens), EVALUATED_BLOCK):
            yield self._evaluated(tokens[start : start + EVALUATED_BLOCK], start)

    def _evaluated(self, block: Sequence[int], start: int) -> NDArray[np.float32]:
        for row, token in enumerate(block):
            self._context.set_row(row, token, start + row, 0, output=True)
        self._context.compute(len(block))
        return logits.stacked(self._context.logits(row) for row in range(len(block)))

    def close(self) -> None:
        if self._closed:
            return
        for slot in self._slots:
            if slot.run is not None:
                self.cancel(slot.run)
        self._context.close()
        self._closed = True


class OwnModelEngine(LlamaCppEngine):
    """Opens the file itself, and closes it. Raises EngineError where llama.cpp cannot load it."""

    def __init__(
        self, path: Path, settings: Settings, *, context_length: int, max_runs: int = 1, adapter: Path | None = None
    ) -> None:
        model = ModelFile(path, use_extra_bufts=settings.use_extra_bufts)
        try:
            if adapter is not None:
                model.adapt(adapter)
            super().__init__(model, settings, context_length=context_length, max_runs=max_runs)
        except EngineError:
            model.close()
            raise

    def close(self) -> None:
        super().close()
        self._model.close()


def _state(run: Run) -> Decoding[_Slot, Any]:
    assert isinstance(run.state, Decoding)
    return run.state


def open(  # noqa: A001  (the name every engine module offers)
    path: Path,
    *,
    context_length: int | None,
    threads: int | None,
    max_runs: int,
    force: bool = False,
    kv_quant: int | None = None,
    adapter: Path | None = None,
) -> LlamaCppEngine:
    """Open a GGUF file with the settings that this build needs on this CPU and the context that the memory allows.

    Without `threads`, what was tuned, else every core that other programs leave free. `kv_quant` is the bits of keys
    and values, 8 or 4; None keeps them in 16. `adapter` is a GGUF file too, and read at once.
    """
    from localqwen.engines.llama_cpp.probe import probe

    header = gguf_header.read(path)
    if header.architecture not in ("qwen3", "qwen3moe"):
        raise Unsupported(
            f"{path.name} is a {header.architecture} model", "localqwen runs Qwen3: qwen3 and qwen3moe files"
        )
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads were asked for", "use --threads 1 or more")
    machine = this_machine()
    kv = fit.kv_type(kv_quant)
    if adapter is not None:
        header = replace(header, bytes=header.bytes + adapter.stat().st_size)
    context = fit.granted_context(header, context_length, machine, max_runs=max_runs, kv=kv, force=force)
    settings = Settings(
        threads=1 if header.bytes <= ONE_THREAD_BYTES else machine.cores,
        use_extra_bufts=probe().use_extra_bufts,
        kv_type=kv,
        adapt_threads=threads is None,
        yarn=fit.stretched(header, context),
    )
    settings = tuned(path, settings)
    if threads is not None:
        settings = replace(settings, threads=threads, prefill_threads=None)
    return OwnModelEngine(path, settings, context_length=context, max_runs=max_runs, adapter=adapter)
