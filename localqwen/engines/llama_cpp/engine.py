"""The llama.cpp engine: several runs in one context, stepped together, on the low-level API.

A slot is one sequence of the context; its ids stay in the KV cache after its run has ended. A new run takes over the
longest prefix that any slot has cached, and computes only the rest (scheduling/).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localqwen.engines import logits
from localqwen.engines.engine import Constraint, Logprobs, Run, Sampling, TokenOutput
from localqwen.engines.llama_cpp.context import Context
from localqwen.engines.llama_cpp.library import ModelFile, library, sampler_chain
from localqwen.engines.llama_cpp.settings import Settings, tuned
from localqwen.engines.scheduling import checks, passes
from localqwen.engines.scheduling.passes import Passes, Share
from localqwen.engines.scheduling.slots import Placement, RunState, Slot, Slots, state_of
from localqwen.errors import EngineError, Unsupported, UsageError
from localqwen.formats import model_header
from localqwen.machine import this_machine
from localqwen.models import fit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Up to this size of the weights, waking a second thread takes longer than the work that it takes over.
ONE_THREAD_BYTES = 64 << 20
#: Positions per block of `evaluate`: each takes four bytes for every token of the vocabulary.
EVALUATED_BLOCK = 64


class LlamaCppEngine:
    """The `Engine` of GGUF files (engines/engine.py). Raises EngineError where llama.cpp cannot make the context."""

    name = "llama.cpp"

    def __init__(self, model: ModelFile, settings: Settings, *, context_length: int, max_runs: int = 1) -> None:
        """The weights of `model` may serve several engines; the caller closes it."""
        self._lib, self._model = library(), model
        self._context = Context(model, settings, cells=context_length * max_runs, sequences=max_runs)
        self.context_length = context_length
        self.max_runs = max_runs
        self.chat_template = self._model.metadata("tokenizer.chat_template")
        self.special_tokens = self._model.special_tokens()
        self.stop_tokens = self._model.stop_tokens()
        self._slots = Slots([Slot(index) for index in range(max_runs)], context_length)
        # Never both: llama.cpp computes only pieces of one length together, so a mixed batch is two passes all the
        # same, and everybody would wait for both.
        self._passes = Passes(settings.batch, mixed=False)
        self._closed = False
        self.warnings: tuple[str, ...] = (settings.yarn.warning,) if settings.yarn else ()
        self._labels = model.labels

    @property
    def settings(self) -> Settings:
        """How llama.cpp computes."""
        return self._context.settings

    @property
    def threads(self) -> int:
        """How many threads decode at the moment."""
        return self._context.threads

    @property
    def backend_description(self) -> str:
        settings = self.settings
        count = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        tuned = ("tuned",) if settings.tuned else ()
        flash = ("flash attention",) if settings.flash_attention else ()
        kv = (f"{settings.kv_type} keys and values",) if settings.kv_type != "f16" else ()
        yarn = (settings.yarn.label,) if settings.yarn else ()
        return ", ".join((count, *tuned, *flash, *kv, *yarn, *self._labels))

    def tokenize(self, text: str, *, special: bool, limit: int | None = None) -> list[int]:
        checks.check_open(self._closed)
        return self._model.tokenize(text, special=special, limit=limit)

    def vocabulary(self) -> list[bytes]:
        checks.check_open(self._closed)
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
        checks.check_open(self._closed)
        run = self._slots.new_run(prompt, sampling, max_tokens, constraint, logprobs)
        placement = self._slots.place(run)
        self._take_over(placement)
        self._slots.occupy(placement.slot, run, self._sampler(run, generated))
        return run

    def _sampler(self, run: Run, generated: int) -> Any:
        """Return the run's samplers, which count the last `generated` ids of its prompt for penalties."""
        chain = sampler_chain(self._model, run.sampling, window=self.context_length)
        for token in run.prompt[len(run.prompt) - generated :]:
            self._lib.llama_sampler_accept(chain, token)
        return chain

    def _take_over(self, placement: Placement[Slot]) -> None:
        """Leave in the slot what it keeps of its donor, and nothing else."""
        slot, donor, keep = placement.slot, placement.donor, placement.keep
        # Removal goes by position, not by what we believe to be there: an interrupted step may have left more behind.
        if slot is donor or not keep:
            self._context.truncate(slot.index, keep)
        else:
            self._context.share(donor.index, slot.index, keep)
        slot.tokens = donor.tokens[:keep]

    def step(self) -> list[tuple[Run, TokenOutput]]:
        checks.check_open(self._closed)
        shares = self._passes.schedule(self._slots.live())
        if not shares:
            return []
        rows = passes.rows_that_draw(shares)
        self._compute(shares, {row for _, row in rows})
        return [(run, self._output(run, row)) for run, row in rows]

    def _compute(self, shares: Sequence[Share], outputs: Set[int]) -> None:
        """Compute the shares in one batch, with the logits of the rows `outputs`."""
        row = 0
        for share in shares:
            slot = _state(share.run).slot
            for position, token in enumerate(share.ids, len(slot.tokens)):
                self._context.set_row(row, token, position, slot.index, output=row in outputs)
                row += 1
        began = time.perf_counter()
        self._context.compute(row)
        self._passes.measured(shares, time.perf_counter() - began)
        for run in passes.note_computed(shares):
            self.cancel(run)

    def _output(self, run: Run, row: int) -> TokenOutput:
        """Draw the next token from the logits of a row."""
        token, logprobs = self._draw(run, row)
        data = None if token in self.stop_tokens else self._model.piece(token)
        output = passes.add_token(run, token, data, logprobs, full=False)
        if output.finish_reason:
            self.cancel(run)
        return output

    def _draw(self, run: Run, row: int) -> tuple[int, Logprobs | None]:
        """Return a token drawn from the logits of a row, and its logprobs if the run wants them."""
        sampler = _state(run).sampler
        best = not run.sampling.temperature and not run.sampling.penalizes
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

    def cached_prefix(self, prompt: Sequence[int]) -> int:
        checks.check_open(self._closed)
        return self._slots.cached_prefix(prompt)

    def cancel(self, run: Run) -> None:
        if run.finished:
            return
        state = _state(run)
        run.finished, state.slot.run = True, None
        self._lib.llama_sampler_free(state.sampler)

    def evaluate(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        self._check_evaluation(tokens)
        self._context.clear()
        for slot in self._slots.all:
            slot.tokens = []
        return self._blocks(tokens)

    def _check_evaluation(self, tokens: Sequence[int]) -> None:
        checks.check_open(self._closed)
        checks.check_evaluation(tokens, self.context_length, live=bool(self._slots.live()))

    def _blocks(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(tokens), EVALUATED_BLOCK):
            self._check_evaluation(tokens)  # between two blocks the caller may have started a run, or closed
            yield self._evaluated(tokens[start : start + EVALUATED_BLOCK], start)

    def _evaluated(self, block: Sequence[int], start: int) -> NDArray[np.float32]:
        """Return the logits behind the ids of a block that begins at a position, shape (ids, vocabulary)."""
        for row, token in enumerate(block):
            self._context.set_row(row, token, start + row, 0, output=True)
        self._context.compute(len(block))
        return logits.stacked(self._context.logits(row) for row in range(len(block)))

    def close(self) -> None:
        if self._closed:
            return
        for run in self._slots.live():
            self.cancel(run)
        self._context.close()
        self._closed = True


class OwnModelEngine(LlamaCppEngine):
    """An engine that opens its file and closes it. Raises EngineError where llama.cpp cannot load it."""

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


def _state(run: Run) -> RunState[Slot, Any]:
    return state_of(run)


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

    `threads` defaults to what was tuned, else to every core that other programs leave free. `kv_quant` is the bits of
    keys and values, 8 or 4; None keeps them in 16. `adapter` is a GGUF file too, and read at once. Raise Unsupported,
    UsageError, NotEnoughMemory, EngineUnavailable and EngineError.
    """
    from localqwen.engines.llama_cpp.probe import probe

    header = model_header.read(path)
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
