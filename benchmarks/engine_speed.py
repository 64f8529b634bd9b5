"""Measure our engine against llama.cpp's own calls and against llama_cpp.Llama, in one run, on one file.

    python benchmarks/engine_speed.py build/qwen3-0.6b-random-Q4_K_M.gguf --threads 2

Each round measures all three, one after the other, so that a drift in the machine's speed affects all of them.
The script prints medians over the rounds, and the median of the ratios within a round.

raw         llama_decode in a loop with llama.cpp's default settings, nothing else: no sampling, no text
raw, plain  the same with the engine's settings: plain attention, 256 tokens per pass
ours        localqwen's engine: the Qwen team's sampling (T 0.6, top_p 0.95, top_k 20), detokenizing, bookkeeping
high-level  llama_cpp.Llama.create_completion with the same sampling
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from localqwen.engines.engine import Sampling
from localqwen.engines.llama_cpp.engine import OwnModelEngine
from localqwen.engines.llama_cpp.library import ModelFile, library
from localqwen.engines.llama_cpp.probe import probe
from localqwen.engines.llama_cpp.settings import Settings
from localqwen.models.fit import BATCH

DEFAULT_BATCH = 512  # llama.cpp's n_ubatch
Speeds = tuple[float, float]  # prefill, decode: tokens per second


class Raw:
    """A model and a context of the C interface, fed with tokens that do not depend on the logits."""

    def __init__(self, path: Path, context: int, threads: int, *, use_extra_bufts: bool, plain: bool = False) -> None:
        self.lib = library()
        self.model = ModelFile(path, use_extra_bufts=use_extra_bufts)
        self.size = BATCH if plain else DEFAULT_BATCH
        params = self.lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, self.size, self.size
        if plain:
            params.flash_attn_type = 0
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        self.context = self.lib.llama_init_from_model(self.model.handle, params)
        self.batch = self.lib.llama_batch_init(self.size, 0, 1)

    def decode(self, tokens: list[int], position: int) -> None:
        """Compute the tokens, and wait for the result."""
        for row, token in enumerate(tokens):
            self.batch.token[row], self.batch.pos[row] = token, position + row
            self.batch.n_seq_id[row], self.batch.seq_id[row][0] = 1, 0
            self.batch.logits[row] = row == len(tokens) - 1
        self.batch.n_tokens = len(tokens)
        if self.lib.llama_decode(self.context, self.batch):
            raise SystemExit("llama_decode failed")
        self.lib.llama_get_logits_ith(self.context, -1)  # waits for the result

    def measure(self, prompt: list[int], generate: int) -> Speeds:
        """Return the tokens per second of prefill and decode."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        began = time.perf_counter()
        for at in range(0, len(prompt), self.size):
            self.decode(prompt[at : at + self.size], at)
        first = time.perf_counter()
        for n in range(generate):
            self.decode([prompt[n % len(prompt)]], len(prompt) + n)
        return len(prompt) / (first - began), generate / (time.perf_counter() - first)


def measure_ours(engine: OwnModelEngine, prompt: list[int], generate: int, seed: int) -> Speeds:
    """Return the tokens per second of localqwen's engine."""
    run = engine.start(prompt, Sampling(seed=seed), max_tokens=generate + 1)
    if run.cached_tokens:
        raise SystemExit("the prompt was cached: the measurement would flatter")
    began = time.perf_counter()
    while not run.generated:
        engine.step()
    first = time.perf_counter()
    while not run.finished:
        engine.step()
    return len(prompt) / (first - began), (run.generated - 1) / (time.perf_counter() - first)


def high_level(path: Path, context: int, threads: int) -> Callable[[list[int], int, int], Speeds]:
    """Return the tokens per second of llama_cpp.Llama."""
    from llama_cpp import Llama, StoppingCriteriaList

    llama = Llama(
        str(path),
        n_ctx=context,
        n_batch=DEFAULT_BATCH,
        n_ubatch=DEFAULT_BATCH,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )

    def measure(prompt: list[int], generate: int, seed: int) -> Speeds:
        llama.reset()
        llama._ctx.kv_cache_clear()  # otherwise it would find the prompt's prefix in its cache
        times: list[float] = []

        def note(_tokens: object, _logits: object) -> bool:  # called once for every token
            times.append(time.perf_counter())
            return False

        began = time.perf_counter()
        llama.create_completion(
            prompt, max_tokens=generate + 1, temperature=0.6, top_p=0.95, top_k=20, min_p=0, seed=seed,
            stopping_criteria=StoppingCriteriaList([note]),
        )  # fmt: skip
        return len(prompt) / (times[0] - began), (len(times) - 1) / (times[-1] - times[0])

    return measure


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-high-level", action="store_true", help="where llama_cpp.Llama crashes on this CPU")
    arguments = parser.parse_args()

    context = arguments.prompt + arguments.generate + 64
    extra = probe().use_extra_bufts
    raw = Raw(arguments.model, context, arguments.threads, use_extra_bufts=extra)
    plain = Raw(arguments.model, context, arguments.threads, use_extra_bufts=extra, plain=True)
    engine = OwnModelEngine(arguments.model, Settings(arguments.threads, use_extra_bufts=extra), context_length=context)
    contestants: dict[str, Callable[[list[int], int, int], Speeds]] = {
        "raw": lambda prompt, generate, _seed: raw.measure(prompt, generate),
        "raw, plain": lambda prompt, generate, _seed: plain.measure(prompt, generate),
        "ours": lambda prompt, generate, seed: measure_ours(engine, prompt, generate, seed),
    }
    if not arguments.skip_high_level:
        contestants["high-level"] = high_level(arguments.model, context, arguments.threads)

    results: dict[str, list[Speeds]] = {name: [] for name in contestants}
    for number in range(arguments.rounds + 1):
        # A different first token in each round, so that no prefix is cached.
        prompt = [(300 + number + 7 * n) % 500 for n in range(arguments.prompt)]
        for name, measure in contestants.items():
            speeds = measure(prompt, arguments.generate, number + 1)
            if number:  # the first round is a warm-up
                results[name].append(speeds)

    print(f"{arguments.model.name}, {arguments.threads} threads, prompt {arguments.prompt}, {arguments.rounds} rounds")
    print("| | prefill t/s | decode t/s | prefill / raw | decode / raw |\n|---|---|---|---|---|")
    for name, speeds in results.items():
        medians = [statistics.median(value) for value in zip(*speeds, strict=True)]
        ratios = [
            statistics.median(mine[i] / theirs[i] for mine, theirs in zip(speeds, results["raw"], strict=True))
            for i in range(2)
        ]
        print(f"| {name} | {medians[0]:.1f} | {medians[1]:.2f} | {ratios[0]:.3f} | {ratios[1]:.3f} |")


if __name__ == "__main__":
    main()
