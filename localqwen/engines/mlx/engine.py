"""The MLX engine: several runs on one checkpoint folder, stepped together, in one thread.

A step is one pass over the weights, shared by a token of every answering run and slices of the prompts that are being
read (mlx_model.py). Nothing is computed ahead: what a run's caches hold is what was shown of it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localqwen.engines import scheduling
from localqwen.engines.decoding import Decoding, check_evaluation
from localqwen.engines.engine import Constraint, FinishReason, Run, Sampling, TokenOutput
from localqwen.engines.mlx import model
from localqwen.engines.mlx.cache import Slot, Slots
from localqwen.engines.mlx.model import Weights
from localqwen.engines.mlx.sampling import Sampler, logprobs
from localqwen.engines.mlx.tokenizer import FolderTokenizer
from localqwen.engines.turns import Turns
from localqwen.errors import NotEnoughMemory
from localqwen.machine import this_machine
from localqwen.models import checkpoint_header, fit
from localqwen.models.yarn import Scaling

#: Ids of prompts per pass, at the most.
LARGEST_SLICE = 512
#: Positions per block of `evaluate`: the logits of 128 take 78 MB with Qwen3's vocabulary.
EVALUATED = 128


class MlxEngine:
    """See `engines.engine.Engine`. `memory_limit` is what weights, keys and values may take, in bytes; None: all."""

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
        """`yarn` is the scaling that was applied beyond what the folder says; `labels` tell what computes, for people,
        beside the device."""
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
        self._slots = Slots(max_runs, self._new_caches)
        self._slice = scheduling.SMALLEST_SLICE
        self._turns = Turns()
        self._closed = False

    @property
    def setup(self) -> str:
        return ", ".join((model.device(), *self._labels))

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        return self._tokenizer.encode(text, special=special)

    def vocabulary(self) -> list[bytes]:
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
        scheduling.check_prompt(prompt, max_tokens, self.context_length)
        self._slots.check_free()
        room = self._admit(len(prompt))
        run = Run(tuple(prompt), sampling, min(max_tokens, self.context_length - len(prompt), room))
        run.constraint, run.logprobs = constraint, logprobs
        slot = self._slots.take(run, self.context_length)
        run.cached_tokens = run.prefilled = len(slot.tokens)
        sampler = Sampler(sampling, run.prompt[len(run.prompt) - generated :], constraint)
        run.state = Decoding(slot, sampler, list(run.prompt[run.prefilled :]))
        return run

    def _room(self) -> int | None:
        """Positions that the memory has room for, of all runs together."""
        if self._limit is None or not self._kv_bytes:
            return None
        return max(0, self._limit - self._weights.bytes) // self._kv_bytes

    def _admit(self, prompt_tokens: int) -> int:
        """How many tokens may follow. Raises NotEnoughMemory before any work: Metal ends a process that asks for more
        than there is."""
        room = self._room()
        if room is None:
            return self.context_length
        taken = sum(run.prompt_tokens + run.generated for run in self._live())
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
        """Whether the living runs, which grow together, leave no memory for another step of theirs."""
        room, live = self._room(), self._live()
        return room is not None and sum(run.prompt_tokens + run.generated for run in live) + len(live) > room

    def _live(self) -> list[Run]:
        return [slot.run for slot in self._slots.live() if slot.run is not None]

    def step(self) -> list[tuple[Run, TokenOutput]]:
        shares = self._shares()
        if not shares:
            return []
        room = self._room()
        if room is not None:
            self._slots.forget(room - sum(count for _, count in shares))
        wanted, outputs = self._wanted(shares)
        rows = [(_state(run).todo[:count], _state(run).slot.caches) for run, count in shares]
        began = time.perf_counter()
        for run, _ in shares:
            _state(run).slot.settle()
        logits = self._weights.forward(rows, wanted)
        if any(count > 1 for _, count in shares):
            count, seconds = sum(count for _, count in shares), time.perf_counter() - began
            self._slice = scheduling.next_slice(self._slice, count, seconds, LARGEST_SLICE)
        for run, count in shares:
            self._computed(run, count)
        return [(run, self._speak(run, logits[row])) for row, run in enumerate(outputs)]

    def _shares(self) -> list[tuple[Run, int]]:
        """How many ids of each live run this pass takes: answers one each, then prompts up to a slice."""
        live = self._live()
        answers = [(run, 1) for run in live if len(_state(run).todo) == 1]
        reading = [run for run in live if len(_state(run).todo) > 1]
        prompts = self._turns.share([len(_state(run).todo) for run in reading], self._slice)
        return answers + [(reading[index], count) for index, count in prompts]

    def _wanted(self, shares: list[tuple[Run, int]]) -> tuple[list[int], list[Run]]:
        """The places in the pass whose logits are needed, and the runs that they belong to."""
        wanted, runs, end = [], [], 0
        for run, count in shares:
            end += count
            if count == len(_state(run).todo) and run.max_tokens:
                wanted.append(end - 1)
                runs.append(run)
        return wanted, runs

    def _computed(self, run: Run, count: int) -> None:
        state = _state(run)
        state.slot.tokens += state.todo[:count]
        del state.todo[:count]
        run.prefilled = min(run.prompt_tokens, len(state.slot.tokens))
        if not run.max_tokens and not state.todo:
            self.cancel(run)

    def _speak(self, run: Run, logits: model.Logits) -> TokenOutput:
        """Draw the next token from raw logits of shape (vocabulary,)."""
        state = _state(run)
        token = state.sampler.draw(logits)
        run.generated += 1
        finish: FinishReason | None = "length" if run.generated >= run.max_tokens or self._is_full() else None
        text = ""
        if token in self.stop_tokens:
            finish = "stop"
        else:
            text = state.text.decode(self._tokenizer.bytes_by_id[token])
            state.todo.append(token)
        probabilities = None if run.logprobs is None else logprobs(logits, token, run.logprobs)
        if finish:
            self.cancel(run)
        return TokenOutput((token,), text, state.whole, finish, probabilities)

    def held(self, prompt: Sequence[int]) -> int:
        return self._slots.held(prompt)

    def cancel(self, run: Run) -> None:
        if not run.finished:
            run.finished, _state(run).slot.run = True, None

    def evaluate(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        check_evaluation(tokens, self.context_length, live=bool(self._live()))
        self._slots.clear()
        return self._blocks(tokens, self._new_caches())

    def _blocks(self, tokens: Sequence[int], caches: model.Caches) -> Iterator[NDArray[np.float32]]:
        for begin in range(0, len(tokens), EVALUATED):
            block = tokens[begin : begin + EVALUATED]
            yield np.array(self._weights.forward([(block, caches)], range(len(block))))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for run in self._live():
            self.cancel(run)
        del self._slots, self._weights
        model.give_back()


def _state(run: Run) -> Decoding[Slot, Sampler]:
    assert isinstance(run.state, Decoding)
    return run.state


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
    """Open a checkpoint folder, official or quantised for MLX, with the context that the memory allows. `adapter` is a
    safetensors file, read at once."""
    header = checkpoint_header.read(path)
    if adapter is not None:
        header = replace(header, bytes=header.bytes + adapter.stat().st_size)
    kv = fit.kv_type(kv_quant)
    machine = this_machine()
    context = fit.granted_context(header, context_length, machine, max_runs=max_runs, kv=kv, force=force)
    limit = model.use_memory(int(machine.memory * fit.USABLE_SHARE))
    yarn = fit.stretched(header, context)
    rope = yarn.as_config if yarn else checkpoint_header.rope_settings(checkpoint_header.config_of(path))
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
