"""The MLX engine: several runs on one checkpoint folder, stepped together, in one thread.

A step is one pass over the weights, shared by a token of every answering run and slices of prompts (mlx/model.py).
Nothing is computed ahead: a run's caches have what was given out of it, and no token more.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localqwen.engines.engine import Constraint, Run, Sampling, TokenOutput
from localqwen.engines.mlx import model
from localqwen.engines.mlx.cache import Slot
from localqwen.engines.mlx.model import Weights
from localqwen.engines.mlx.sampling import Sampler, logprobs
from localqwen.engines.mlx.tokenizer import FolderTokenizer
from localqwen.engines.scheduling import checks, passes
from localqwen.engines.scheduling.passes import Passes, Share
from localqwen.engines.scheduling.slots import Placement, RunState, Slots, state_of
from localqwen.errors import NotEnoughMemory
from localqwen.formats import model_header, qwen3_config
from localqwen.formats.yarn import Scaling
from localqwen.machine import this_machine
from localqwen.models import fit

#: The most ids of prompts in a pass.
LARGEST_SLICE = 512
#: Positions per block of `evaluate`: the logits of 128 take 78 MB with Qwen3's vocabulary.
EVALUATED = 128


class MlxEngine:
    """The `Engine` of checkpoint folders (engines/engine.py)."""

    name = "mlx"

    def __init__(
        self,
        weights: Weights,
        tokenizer: FolderTokenizer,
        *,
        context_length: int,
        max_runs: int = 1,
        kv_quant: int | None = None,
        kv_bytes_per_token: int = 0,
        memory_limit: int | None = None,
        yarn: Scaling | None = None,
        labels: Sequence[str] = (),
    ) -> None:
        """`memory_limit` is bytes that weights, keys and values may take, None for all; a token takes
        `kv_bytes_per_token`. `yarn` is the scaling that was applied beyond what the folder says. `labels` stand beside
        the device in the description."""
        self.warnings: tuple[str, ...] = (yarn.warning,) if yarn else ()
        self._labels = labels
        self._weights, self._tokenizer = weights, tokenizer
        self.context_length = context_length
        self.max_runs = max_runs
        self.chat_template = tokenizer.chat_template
        self.special_tokens = tokenizer.special_tokens
        self.stop_tokens = tokenizer.stop_tokens
        self._kv_bytes = kv_bytes_per_token
        self._limit = memory_limit
        self._new_caches: Callable[[], model.Caches] = functools.partial(weights.new_caches, kv_quant)
        self._slots = Slots([Slot(index, caches=self._new_caches()) for index in range(max_runs)], context_length)
        self._passes = Passes(LARGEST_SLICE, mixed=True)
        self._closed = False

    @property
    def backend_description(self) -> str:
        return ", ".join((model.device(), *self._labels))

    def tokenize(self, text: str, *, special: bool, limit: int | None = None) -> list[int]:
        checks.check_open(self._closed)
        return self._tokenizer.encode(text, special=special, limit=limit)

    def vocabulary(self) -> list[bytes]:
        checks.check_open(self._closed)
        return list(self._tokenizer.bytes_by_id)

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
        run.max_tokens = min(run.max_tokens, self._admit(len(prompt)))
        placement = self._slots.place(run)
        self._take_over(placement)
        self._slots.occupy(placement.slot, run, Sampler(sampling, run.prompt[len(prompt) - generated :], constraint))
        return run

    def _take_over(self, placement: Placement[Slot]) -> None:
        """Leave in the slot what it keeps of its donor, and nothing else."""
        slot, donor, keep = placement.slot, placement.donor, placement.keep
        if not keep:
            slot.caches = self._new_caches()
        elif slot is not donor:
            slot.caches = model.copy(donor.caches, self._new_caches(), keep)
        slot.tokens = donor.tokens[: model.trim(slot.caches, keep)] if keep else []

    def _room(self) -> int | None:
        """Return how many positions of all runs together the memory has room for; None without a limit."""
        if self._limit is None or not self._kv_bytes:
            return None
        return max(0, self._limit - self._weights.bytes) // self._kv_bytes

    def _admit(self, prompt_tokens: int) -> int:
        """Return how many tokens may follow a prompt. Raise NotEnoughMemory before any work: Metal ends a process that
        takes more memory than there is."""
        room = self._room()
        if room is None:
            return self.context_length
        taken = sum(run.prompt_tokens + run.generated for run in self._slots.live())
        left = room - taken - prompt_tokens
        if left < 1:
            needed, free = prompt_tokens * self._kv_bytes, max(0, room - taken) * self._kv_bytes
            raise NotEnoughMemory(
                f"the keys and values of {prompt_tokens:,} tokens take {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB of "
                f"the {(self._limit or 0) / 1e9:.2f} GB that MLX may use here are left",
                "shorten the prompt, or halve what a token takes with --kv-quant 8",
            )
        return left

    def _is_full(self) -> bool:
        """Return whether the live runs, which grow together, leave no memory for another step of theirs once the token
        just drawn is added."""
        room, live = self._room(), self._slots.live()
        return room is not None and sum(run.prompt_tokens + run.generated for run in live) + 1 + len(live) > room

    def step(self) -> list[tuple[Run, TokenOutput]]:
        checks.check_open(self._closed)
        shares = self._passes.schedule(self._slots.live())
        if not shares:
            return []
        rows = passes.rows_that_draw(shares)
        logits = self._compute(shares, [row for _, row in rows])
        return [(run, self._output(run, logits[index])) for index, (run, _) in enumerate(rows)]

    def _compute(self, shares: Sequence[Share], outputs: Sequence[int]) -> model.Logits:
        """Compute the shares in one pass; return the logits of the rows `outputs`, shape (outputs, vocabulary)."""
        self._make_room(sum(share.count for share in shares))
        began = time.perf_counter()
        rows = [(share.ids, _state(share.run).slot.settled()) for share in shares]
        logits = self._weights.forward(rows, outputs)
        self._passes.measured(shares, time.perf_counter() - began)
        for run in passes.note_computed(shares):
            self.cancel(run)
        return logits

    def _make_room(self, positions: int) -> None:
        """Empty free slots, the longest unused first, until the memory has room for so many positions more."""
        room = self._room()
        if room is None:
            return
        for slot in self._slots.free():
            if self._slots.positions() + positions <= room:
                return
            slot.caches, slot.tokens = self._new_caches(), []

    def _output(self, run: Run, logits: model.Logits) -> TokenOutput:
        """Draw the next token from raw logits of shape (vocabulary,)."""
        token = _state(run).sampler.draw(logits)
        data = None if token in self.stop_tokens else self._tokenizer.bytes_by_id[token]
        probabilities = None if run.logprobs is None else logprobs(logits, token, run.logprobs)
        output = passes.add_token(run, token, data, probabilities, full=self._is_full())
        if output.finish_reason:
            self.cancel(run)
        return output

    def cached_prefix(self, prompt: Sequence[int]) -> int:
        checks.check_open(self._closed)
        return self._slots.cached_prefix(prompt)

    def cancel(self, run: Run) -> None:
        if not run.finished:
            run.finished, _state(run).slot.run = True, None

    def evaluate(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        checks.check_open(self._closed)
        checks.check_evaluation(tokens, self.context_length, live=bool(self._slots.live()))
        for slot in self._slots.all:
            slot.caches, slot.tokens = self._new_caches(), []
        return self._blocks(tokens, self._new_caches())

    def _blocks(self, tokens: Sequence[int], caches: model.Caches) -> Iterator[NDArray[np.float32]]:
        for begin in range(0, len(tokens), EVALUATED):
            checks.check_open(self._closed)  # the caller may have closed it between two blocks
            block = tokens[begin : begin + EVALUATED]
            yield np.array(self._weights.forward([(block, caches)], range(len(block))))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for run in self._slots.live():
            self.cancel(run)
        del self._slots, self._weights
        model.give_back()


def _state(run: Run) -> RunState[Slot, Sampler]:
    return state_of(run)


def open(  # noqa: A001  (the name every engine module offers)
    path: Path,
    *,
    context_length: int | None,
    threads: int | None,  # MLX decides on its own: a GPU has none, its CPU build takes what it likes
    max_runs: int,
    force: bool = False,
    kv_quant: int | None = None,
    adapter: Path | None = None,
) -> MlxEngine:
    """Open a checkpoint folder, official or quantized for MLX, with the context that the memory allows. `adapter` is a
    safetensors file, read at once. Raise NotEnoughMemory and EngineError."""
    header = model_header.read(path)
    if adapter is not None:
        header = replace(header, bytes=header.bytes + adapter.stat().st_size)
    kv = fit.kv_type(kv_quant)
    machine = this_machine()
    context = fit.granted_context(header, context_length, machine, max_runs=max_runs, kv=kv, force=force)
    limit = model.use_memory(int(machine.memory * fit.USABLE_SHARE))
    yarn = fit.stretched(header, context)
    rope = yarn.as_config if yarn else qwen3_config.read(path).rope
    weights = Weights(path, rope=rope, adapter=adapter)
    scaling = yarn or header.scaling
    return MlxEngine(
        weights,
        FolderTokenizer(path, weights.rows),
        context_length=context,
        max_runs=max_runs,
        kv_quant=kv_quant,
        kv_bytes_per_token=int(header.kv_elements_per_token * fit.KV_BYTES[kv]),
        memory_limit=None if force else limit,
        yarn=yarn,
        labels=(*([scaling.label] if scaling else []), *([f"adapter {adapter.stem}"] if adapter else [])),
    )
