"""The contract of every engine: tokens in, text out. An engine knows nothing of messages, thinking or JSON.

Many sequences, one thread: an engine is created, stepped and closed in the same thread. The caller always gives the
whole prompt; the engine finds the longest prefix that it still has cached. `step()` is continuous batching: prompts are
prefilled in slices beside the runs that are already answering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, Protocol

from localqwen.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SamplingRange:
    """The values that a field of `Sampling` may have: `low` to `high`, or only above `low`; `whole` numbers or all."""

    low: int
    high: int
    above_low: bool = False
    whole: bool = False

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, Integral if self.whole else Real):
            return False
        number: Any = value
        above = number > self.low if self.above_low else number >= self.low
        return bool(above and number <= self.high)  # NaN is in no range

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        bounds = f"above {self.low:,}, at most" if self.above_low else f"from {self.low:,} to"
        return f"{kind} {bounds} {self.high:,}"


#: Field of `Sampling` -> its range, for everything that takes sampling from a user. `seed` has none: each API says
#: which numbers it takes.
SAMPLING_RANGES: Mapping[str, SamplingRange] = {
    "temperature": SamplingRange(0, 100),
    "top_p": SamplingRange(0, 1),
    "top_k": SamplingRange(0, 2**31 - 1, whole=True),
    "min_p": SamplingRange(0, 1),
    "presence_penalty": SamplingRange(-100, 100),
    "frequency_penalty": SamplingRange(-100, 100),
    "repetition_penalty": SamplingRange(0, 100, above_low=True),
}


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn, in the order of transformers: penalties, temperature, top_k, top_p, min_p.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch their filter off. Penalties count tokens that
    this answer generated, never the prompt's; 0 switches presence and frequency off, 1 repetition. `seed` None draws a
    fresh one for every run. Raise UsageError where a value is outside of SAMPLING_RANGES.
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
        for name, bounds in SAMPLING_RANGES.items():
            if getattr(self, name) not in bounds:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}, it must be {bounds}",
                    "1.0 switches it off" if name == "repetition_penalty" else "",
                )

    @property
    def penalizes(self) -> bool:
        """Whether any penalty is on."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities, before penalties, temperature, filters and constraints:
    of the token that came, and of the likeliest ones as (id, logprob), best first."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TokenOutput:
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
    def backend_description(self) -> str:
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

    def step(self) -> list[tuple[Run, TokenOutput]]:
        """One batch: slices of prompts, or one token for every run that is past its prompt, or both. Neither waits for
        more than one batch of the other."""
        ...

    def cached_prefix(self, prompt: Sequence[int]) -> int:
        """Return how many ids of the prompt's beginning the engine has cached; change nothing."""
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
