"""Tokens in, pieces of text out. An engine knows nothing of messages, thinking or JSON.

Many sequences, one thread: an engine is created, stepped and closed in the same thread. The caller always gives the
whole prompt; the engine finds the longest prefix that it still holds. `step()` is continuous batching: prompts are
prefilled in slices beside the runs that are already answering.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from localqwen.errors import EngineUnavailable, UsageError
from localqwen.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]

#: Names of the real engines and the module that runs each; "scripted" is never chosen, only asked for.
ENGINES = {"llama.cpp": "localqwen.engines.llama_cpp"}
PACKAGES = {"llama.cpp": "llama_cpp"}


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn, in the order of transformers: penalties, temperature, top_k, top_p, min_p.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch their filter off. Penalties count tokens that
    this answer generated, never the prompt's. `seed` None draws a fresh one for every run.
    """

    temperature: float = 0.6
    top_k: int = 20
    top_p: float = 0.95
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} is {value}, it must be between {low:,} and {high:,}")
        if self.repetition_penalty <= 0:
            raise UsageError(
                f"repetition_penalty is {self.repetition_penalty}, it must be above 0", "1.0 switches it off"
            )


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0, 100),
    ("top_k", 0, 2**31 - 1),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("presence_penalty", -100, 100),
    ("frequency_penalty", -100, 100),
)


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities, before penalties, temperature, filters and constraints:
    of the token that came, and of the likeliest ones as (id, logprob), best first."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one generated token added. `text` is whole characters only: a token that ends inside a character has
    text "" and `whole` False, and the character comes with the token that completes it. The last piece of a run
    carries `finish_reason`; a stop token (`<|im_end|>`) is counted in `tokens` and has no text."""

    tokens: tuple[int, ...]
    text: str
    whole: bool = True
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


class Constraint(Protocol):
    """Which tokens may come next, for one run: a grammar over the engine's vocabulary. Asked before each token."""

    def allowed(self) -> NDArray[np.bool_]:
        """Shape (vocabulary size,); False may not be drawn. Stop tokens are allowed where the text may end."""
        ...

    def accept(self, token: int) -> None:
        """The token that was drawn, stop tokens too."""
        ...


@dataclass(eq=False)
class Run:
    """One sequence in flight. The engine updates `cached_tokens` at the start and `prefilled` at each step."""

    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int
    cached_tokens: int = 0
    prefilled: int = 0
    generated: int = 0
    finished: bool = False
    constraint: Constraint | None = None
    logprobs: int | None = None
    state: object = field(default=None, repr=False)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)


class Engine(Protocol):
    """Created, stepped and closed in one thread. `context_length` is what one run may fill, prompt and answer."""

    name: str
    context_length: int
    max_runs: int
    chat_template: str
    special_tokens: Mapping[str, str]
    stop_tokens: frozenset[int]

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Ids of the NFC form of `text`. `special` False reads `<|im_start|>` and its kind as plain text; tags that
        are ordinary vocabulary (`<think>`, `<tool_call>`) are one id either way."""
        ...

    def vocabulary(self) -> list[bytes]:
        """The bytes of every token by id; b"" for control tokens and unused rows."""
        ...

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
        """Begin a run. The last `generated` ids of `prompt` are an answer's earlier part: they count for penalties.

        `max_tokens` 0 only reads the prompt, for a later run that begins with it: the run finishes without a piece.
        `logprobs` N gives every piece its own and the N likeliest logprobs. Raises ContextTooLong where the prompt
        leaves no room for a token, EngineError where `max_runs` are live.
        """
        ...

    def step(self) -> list[tuple[Run, Piece]]:
        """One batch: slices of prompts, and one token for every run that is past its prompt."""
        ...

    def cancel(self, run: Run) -> None:
        """End a run now; what it computed stays for reuse. Does nothing to a run that has ended."""
        ...

    def evaluate(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Logits behind each of the tokens, in blocks of shape (positions, vocabulary), for measuring a model.

        Raises ContextTooLong, and EngineError while a run is live; what was cached for reuse is lost.
        """
        ...

    def close(self) -> None: ...


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids the two begin with alike."""
    shorter = min(len(left), len(right))
    return next((i for i in range(shorter) if left[i] != right[i]), shorter)


@dataclass(frozen=True)
class Choice:
    """Which engine, and the reason in words a user can check."""

    engine: str
    reason: str


def installed() -> dict[str, bool]:
    """Engine name -> whether its package can be imported (nothing is imported)."""
    return {name: importlib.util.find_spec(package) is not None for name, package in PACKAGES.items()}


def choose(machine: Machine, available: Mapping[str, bool], wanted: str | None = None) -> Choice:
    """The engine for this machine: what the user asked for, else the best that is installed.

    Raises EngineUnavailable naming what to install.
    """
    if wanted is not None:
        if wanted not in available:
            raise UsageError(f"there is no engine {wanted!r}", f"engines: {', '.join(available)}")
        if not available[wanted]:
            raise EngineUnavailable(f"the engine {wanted} is not installed", f"pip install {_pip_name(wanted)}")
        return Choice(wanted, "asked for")
    if available.get("llama.cpp"):
        return Choice("llama.cpp", f"runs GGUF files on {machine.system} {machine.architecture}")
    raise EngineUnavailable("no engine is installed", f"pip install {_pip_name('llama.cpp')}")


def _pip_name(engine: str) -> str:
    return {"llama.cpp": "llama-cpp-python"}[engine]


def open(  # noqa: A001  (the public name: localqwen.engines.open)
    name_or_path: str | Path,
    *,
    engine: str | None = None,
    context_length: int | None = None,
    threads: int | None = None,
    max_runs: int = 1,
    force: bool = False,
    kv_quant: int | None = None,
) -> Engine:
    """Open a model by name or path on the engine that fits this machine.

    `context_length` is tokens per run (default: what the model and this machine's memory allow), `threads` defaults to
    the physical cores this process may use, `force` loads what does not fit the memory, `kv_quant` keeps keys and
    values in 8 or 4 bits instead of 16. Raises ModelNotFound, EngineUnavailable, EngineError, ConversionError.
    """
    from localqwen.machine import this_machine
    from localqwen.models import provide

    choice = choose(this_machine(), installed(), engine)
    path = provide.provide(str(name_or_path))
    module = importlib.import_module(ENGINES[choice.engine])
    opened: Engine = module.open(
        path,
        context_length=context_length,
        threads=threads,
        max_runs=max_runs,
        force=force,
        kv_quant=kv_quant,
    )
    return opened
