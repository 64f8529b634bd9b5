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
ENGINES = {"llama.cpp": "localqwen.engines.llama_cpp.engine", "mlx": "localqwen.engines.mlx.engine"}
PACKAGES = {"llama.cpp": "llama_cpp", "mlx": "mlx_lm"}
#: What users call an engine -> its name; `gguf` names the files that llama.cpp reads.
ALIASES = {"gguf": "llama.cpp", "llama_cpp": "llama.cpp", "llamacpp": "llama.cpp"}


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

    @property
    def penalises(self) -> bool:
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)


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
    warnings: tuple[str, ...]
    """What a user should know of how the model was opened, to be told once."""

    @property
    def setup(self) -> str:
        """What computes at the moment, in a few words: "2 threads, tuned, YaRN 4"."""
        ...

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
        """One batch: slices of prompts, or one token for every run that is past its prompt, or both. Neither waits for
        more than one batch of the other."""
        ...

    def held(self, prompt: Sequence[int]) -> int:
        """How many ids of the prompt's beginning the engine holds; changes nothing."""
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
class Readable:
    """Which engine opens a model's files, and why: because no other can (`alone`), or because only these are here."""

    engine: str
    why: str
    alone: bool


@dataclass(frozen=True)
class Choice:
    """Which engine, and the reason in words a user can check."""

    engine: str
    reason: str


def installed() -> dict[str, bool]:
    """Engine name -> whether its package can be imported (nothing is imported)."""
    return {name: importlib.util.find_spec(package) is not None for name, package in PACKAGES.items()}


def named(engine: str) -> str:
    """The engine that a user's word means, any case. Raises UsageError."""
    name = ALIASES.get(engine.lower(), engine.lower())
    if name not in ENGINES:
        raise UsageError(f"there is no engine {engine!r}", "engines: mlx, gguf (llama.cpp)")
    return name


def choose(
    machine: Machine, available: Mapping[str, bool], wanted: str | None = None, files: Readable | None = None
) -> Choice:
    """The engine for this machine and these files: what the user asked for, else the best that is installed.

    `files` says that one engine alone can open the model, or that only its form is on this disk. How much memory there
    is changes nothing: both engines need about the same for the same model. Raises UsageError for an engine that does
    not exist or cannot open the files, EngineUnavailable naming what to install.
    """
    wanted = named(wanted) if wanted else None
    if files is not None and files.alone:
        return _that_reads(machine, available, wanted, files)
    if wanted is not None:
        return Choice(_installed(machine, available, wanted, f"the engine {wanted} is not installed"), "asked for")
    if files is not None and available.get(files.engine):
        return Choice(files.engine, files.why)
    return _best(machine, available)


def _that_reads(machine: Machine, available: Mapping[str, bool], wanted: str | None, files: Readable) -> Choice:
    if wanted not in (None, files.engine):
        raise UsageError(f"{files.why}: {wanted} cannot open it", f"use --engine {files.engine}, or leave it out")
    missing = f"{files.why}, and the engine {files.engine} is not installed"
    return Choice(_installed(machine, available, files.engine, missing), files.why)


def _installed(machine: Machine, available: Mapping[str, bool], engine: str, missing: str) -> str:
    if not available.get(engine):
        raise EngineUnavailable(missing, how_to_install(engine, machine))
    return engine


def _best(machine: Machine, available: Mapping[str, bool]) -> Choice:
    mlx, llama, place = available.get("mlx"), available.get("llama.cpp"), f"{machine.system} {machine.architecture}"
    if apple_silicon(machine):
        if mlx:
            return Choice("mlx", f"computes on the GPU of {machine.chip} in the memory that it shares with the CPU")
        if llama:
            return Choice("llama.cpp", f"MLX is made for {machine.chip} and not installed: pip install mlx-lm")
    elif llama:
        rosetta = "; an arm64 Python would run MLX on this chip" if _under_rosetta(machine) else ""
        return Choice("llama.cpp", f"runs GGUF files on {place}{rosetta}")
    elif mlx:
        return Choice("mlx", f"the only engine here, and slow on {place}: pip install {_PIP['llama.cpp']} is faster")
    best = "mlx" if apple_silicon(machine) else "llama.cpp"
    raise EngineUnavailable("no engine is installed", how_to_install(best, machine))


def apple_silicon(machine: Machine) -> bool:
    """And a Python that knows it: under Rosetta the machine says x86_64."""
    return (machine.system, machine.architecture) == ("Darwin", "arm64")


def _under_rosetta(machine: Machine) -> bool:
    return machine.system == "Darwin" and ("Apple" in machine.chip)  # "VirtualApple" to a translated process


def how_to_install(engine: str, machine: Machine) -> str:
    if engine == "mlx" and machine.system == "Darwin" and not apple_silicon(machine):
        return "MLX needs Apple Silicon and an arm64 Python: use the GGUF, --engine gguf"
    if engine == "mlx" and machine.system != "Darwin":
        return "pip install 'localqwen[mlx]' gets its CPU build, which is slow: better use the GGUF, --engine gguf"
    return f"pip install {_PIP[engine]}"


_PIP = {"llama.cpp": "llama-cpp-python", "mlx": "mlx-lm"}


def open(  # noqa: A001  (the public name: localqwen.engines.open)
    name_or_path: str | Path,
    *,
    engine: str | None = None,
    context_length: int | None = None,
    threads: int | None = None,
    max_runs: int = 1,
    force: bool = False,
    kv_quant: int | None = None,
    adapter: str | Path | None = None,
) -> Engine:
    """Open a model by name or path on the engine that fits this machine.

    `context_length` is tokens per run (default: what the model and this machine's memory allow), `threads` defaults to
    the physical cores this process may use, `force` loads what does not fit the memory, `kv_quant` keeps keys and
    values in 8 or 4 bits instead of 16. A context beyond what the file says is stretched by YaRN, as far as the model
    was made for it (formats/yarn.py). `adapter` is a folder with a LoRA adapter of PEFT's layout, applied to the model
    as it stands. Raises ModelNotFound, UsageError, EngineUnavailable, EngineError, ConversionError.
    """
    from localqwen.models import provide

    choice = choose_for(str(name_or_path), engine)
    path = provide.provide(str(name_or_path), engine=choice.engine)
    module = importlib.import_module(ENGINES[choice.engine])
    with provide.adapted(adapter, path, engine=choice.engine) as lora:
        opened: Engine = module.open(
            path,
            context_length=context_length,
            threads=threads,
            max_runs=max_runs,
            force=force,
            kv_quant=kv_quant,
            adapter=lora,
        )
    return opened


def best_installed() -> str | None:
    """The engine for this machine whatever the model; None where none is installed."""
    from localqwen.machine import this_machine

    try:
        return choose(this_machine(), installed()).engine
    except EngineUnavailable:
        return None


def choose_for(name_or_path: str, engine: str | None = None) -> Choice:
    """`choose` on this machine, for the files of that model. Raises ModelNotFound for an unknown name too."""
    from localqwen.machine import this_machine
    from localqwen.models import forms

    found = forms.readable(name_or_path)
    files = Readable(found.engine, found.why, found.alone) if found else None
    return choose(this_machine(), installed(), engine, files)
