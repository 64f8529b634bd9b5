"""The contract of every engine: tokens in, text out. An engine knows nothing of messages, thinking or JSON.

Many sequences, one thread: an engine is created, stepped and closed in the same thread. The caller always gives the
whole prompt; the engine finds the longest prefix that it still has cached. `step()` is continuous batching: prompts are
prefilled in slices beside the runs that are already answering. After `close()` every call raises EngineError.
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
    """What one generated token added to an answer.

    `text` never ends inside a character: a token that does so leaves `whole` False, and the character comes with the
    token that completes it. The last output of a run has a `finish_reason`. A stop token (`<|im_end|>`) counts in
    `tokens` and has no text.
    """

    tokens: tuple[int, ...]
    text: str
    whole: bool = True
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


class Constraint(Protocol):
    """Which tokens may come next in one run: a grammar over the engine's vocabulary."""

    def allowed(self) -> NDArray[np.bool_]:
        """Return which tokens may be drawn next, shape (vocabulary size,). Stop tokens may where the text may end."""
        ...

    def accept(self, token: int) -> None:
        """Take note of the token that was drawn; stop tokens too."""
        ...


@dataclass(eq=False)
class Run:
    """One sequence in flight.

    `max_tokens` is how many tokens the answer may have, 0 for a prefill-only run. `cached_tokens` ids of the prompt
    were cached when it began, `prefilled` are computed or cached by now, `generated` tokens have been drawn. `state`
    belongs to the engine.
    """

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
        """The length of the prompt in tokens."""
        return len(self.prompt)


class Engine(Protocol):
    """Computes many runs of one model, in one thread.

    `context_length` is tokens of one run, prompt and answer together; `max_runs` how many may be live. `stop_tokens`
    end an answer. `special_tokens` maps the names that chat templates use (`eos_token`) to their text. `warnings` tell
    a user what to know of how the model was opened.
    """

    name: str
    context_length: int
    max_runs: int
    chat_template: str
    special_tokens: Mapping[str, str]
    stop_tokens: frozenset[int]
    warnings: tuple[str, ...]

    @property
    def backend_description(self) -> str:
        """What computes at the moment, in a few words: "2 threads, tuned, YaRN 4"."""
        ...

    def tokenize(self, text: str, *, special: bool, limit: int | None = None) -> list[int]:
        """Return the ids of the NFC form of `text`. Without `special`, `<|im_start|>` and its kind are plain text; tags
        that are ordinary vocabulary (`<think>`, `<tool_call>`) are one id either way.

        With a `limit`, a text that has more ids is not read to its end, and more than `limit` ids are returned: the
        first of the text, or those of a part where a single word has too many.
        """
        ...

    def vocabulary(self) -> list[bytes]:
        """Return the bytes of every token by id; b"" for control tokens and unused rows."""
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

        `max_tokens` 0 prefills the prompt for a later run that begins with it: the run finishes without an output.
        `logprobs` N gives every output the logprob of its token and those of the N likeliest. Raise UsageError for an
        empty prompt, ContextTooLong where the prompt leaves no room for a token, NotEnoughMemory where its keys and
        values do not fit, and EngineError where `max_runs` are live.
        """
        ...

    def step(self) -> list[tuple[Run, TokenOutput]]:
        """Compute one batch and return its outputs: slices of prompts, or one token for every run that is past its
        prompt, or both. Neither waits for more than one batch of the other. Raise EngineError if the library fails."""
        ...

    def cached_prefix(self, prompt: Sequence[int]) -> int:
        """Return how many ids of the prompt's beginning the engine has cached; change nothing."""
        ...

    def cancel(self, run: Run) -> None:
        """End a run now and keep what it computed for reuse. Do nothing if it has ended."""
        ...

    def evaluate(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        """Yield the logits behind each of the tokens, in blocks of shape (positions, vocabulary), to measure a model.

        Raise ContextTooLong, and EngineError while a run is live. What was cached for reuse is lost.
        """
        ...

    def close(self) -> None:
        """End all runs and free the memory. Do nothing if it is closed already."""
        ...
