"""A deterministic engine without a model: its answers are a script. For tests, demos and development.

Its vocabulary grows as it tokenizes: words, white space and tags become tokens with ids in order of appearance, so
`tokenize` and the answers share ids and no token is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from localqwen.engines.engine import Constraint, FinishReason, Logprobs, Run, Sampling, TokenOutput
from localqwen.engines.normalization import nfc
from localqwen.engines.scheduling import checks, common_prefix
from localqwen.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Renders Qwen3's format for plain conversations; it obeys `enable_thinking` like the hybrids.
CHATML = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_TOKEN = re.compile(r"</?(?:think|tool_call|tool_response)>|<\|\w+\|>|\w+|\s|.", re.DOTALL)
_STOP = "<|im_end|>"


@dataclass
class _Script:
    """The rest of one answer, the ids that came so far, and the bytes of a character that a token left unfinished."""

    tokens: list[bytes]
    said: list[int] = field(default_factory=list)
    pending: bytes = b""


@dataclass
class ScriptedEngine:
    """Each `start` takes the next answer: a text, cut into words, or a list of tokens (str, or bytes to split a
    character). An answer ends with the stop token; `prefill` is the number of prompt tokens taken per step. A
    constraint is kept on the run and not obeyed: the script stands."""

    answers: Iterable[str | Sequence[str | bytes]]
    chat_template: str = CHATML
    context_length: int = 4096
    max_runs: int = 8
    prefill: int = 4096
    name: str = "scripted"
    special_tokens: Mapping[str, str] = field(default_factory=lambda: {"eos_token": _STOP})
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._script = iter(self.answers)
        self._ids: dict[bytes, int] = {}
        self._cached: list[tuple[int, ...]] = []
        self._live: list[Run] = []
        self.runs: list[Run] = []  # every run that was started, for tests to look at
        self.closed = False

    def tokenize(self, text: str, *, special: bool, limit: int | None = None) -> list[int]:
        checks.check_open(self.closed)
        words = (found.group() for found in _TOKEN.finditer(nfc(text)))
        parts = (part for word in words for part in ([word] if special or not word.startswith("<|") else word))
        return [self._id(part.encode()) for part in islice(parts, None if limit is None else limit + 1)]

    @property
    def backend_description(self) -> str:
        return "a script"

    def vocabulary(self) -> list[bytes]:
        """Return the tokens that were seen so far."""
        checks.check_open(self.closed)
        return [b"" if word.startswith(b"<|") and len(word) > 2 else word for word in self._ids]

    @property
    def stop_tokens(self) -> frozenset[int]:
        return frozenset([self._id(_STOP.encode())])

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
        checks.check_open(self.closed)
        checks.check_prompt(prompt, max_tokens, self.context_length)
        if len(self._live) >= self.max_runs:
            raise EngineError(f"all {self.max_runs} runs of the engine are busy")
        answer = next(self._script, None) if max_tokens else ""
        if answer is None:
            raise EngineError("the script has no more answers")
        limit = min(max_tokens, self.context_length - len(prompt))
        run = Run(tuple(prompt), sampling, limit, constraint=constraint, logprobs=logprobs)
        run.cached_tokens = run.prefilled = min(len(prompt) - 1, self.cached_prefix(prompt))
        words = _TOKEN.findall(answer) if isinstance(answer, str) else answer
        run.state = _Script([word.encode() if isinstance(word, str) else word for word in words])
        self._live.append(run)
        self.runs.append(run)
        return run

    def step(self) -> list[tuple[Run, TokenOutput]]:
        checks.check_open(self.closed)
        outputs: list[tuple[Run, TokenOutput]] = []
        for run in list(self._live):
            if run.prefilled < run.prompt_tokens:
                run.prefilled = min(run.prompt_tokens, run.prefilled + self.prefill)
            if run.prefilled == run.prompt_tokens and run.max_tokens:
                outputs.append((run, self._speak(run)))
            elif run.prefilled == run.prompt_tokens:
                self.cancel(run)
        return outputs

    def evaluate(self, tokens: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        checks.check_open(self.closed)
        raise EngineError("the scripted engine has no probabilities", "evaluate a real model")

    def _speak(self, run: Run) -> TokenOutput:
        script = run.state
        assert isinstance(script, _Script)
        run.generated += 1
        if not script.tokens:
            self.cancel(run)
            stop = self._id(_STOP.encode())
            return TokenOutput((stop,), "", finish_reason="stop", logprobs=_certain(run, stop))
        token = script.tokens.pop(0)
        script.said.append(self._id(token))
        text, script.pending = _whole_characters(script.pending + token)
        finish: FinishReason | None = "length" if run.generated >= run.max_tokens else None
        if finish:
            self.cancel(run)
        return TokenOutput((script.said[-1],), text, not script.pending, finish, _certain(run, script.said[-1]))

    def cached_prefix(self, prompt: Sequence[int]) -> int:
        checks.check_open(self.closed)
        return max((common_prefix(prompt, known) for known in self._cached), default=0)

    def cancel(self, run: Run) -> None:
        if run in self._live:
            assert isinstance(run.state, _Script)
            self._live.remove(run)
            self._cached.append((*run.prompt[: run.prefilled], *run.state.said))
            run.finished = True

    def close(self) -> None:
        for run in list(self._live):
            self.cancel(run)
        self.closed = True

    def _id(self, token: bytes) -> int:
        return self._ids.setdefault(token, len(self._ids))


def _certain(run: Run, token: int) -> Logprobs | None:
    """Return probability 1 for a token of the script."""
    return None if run.logprobs is None else Logprobs(0.0, ((token, 0.0),) if run.logprobs else ())


def _whole_characters(data: bytes) -> tuple[str, bytes]:
    """Return the characters that are complete, and the bytes of one that is not."""
    for pending in range(min(4, len(data) + 1)):
        try:
            return data[: len(data) - pending].decode(), data[len(data) - pending :]
        except UnicodeDecodeError:
            continue
    return data.decode(errors="replace"), b""
