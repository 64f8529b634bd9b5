"""Answers that must have a form: JSON, JSON of a schema, a call of a named tool.

Built on llguidance, which is given the engine's vocabulary as bytes, so that a grammar means the same on every engine.

The constraint holds for the text of an answer; its thinking is free.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from localqwen.chat import schema_limits
from localqwen.chat.messages import Request, Tool
from localqwen.errors import EngineError, Unsupported, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What a model writes between its thinking and its answer.
_LEAD = "/\\n{0,2}/ "
#: White space inside JSON: a space, or a line break and an indentation; never an answer full of line breaks.
_JSON_OPTIONS = {"whitespace_pattern": "( |\\n[ \\t]{0,40})?"}


class Grammars:
    """Constraints over one engine's vocabulary. It may be used from any thread: the tokenizer is built once, on first
    use, which takes about a second for 150,000 tokens."""

    def __init__(
        self,
        tokenize: Callable[[str], list[int]],
        vocabulary: Callable[[], Sequence[bytes]],
        stop_tokens: Callable[[], frozenset[int]],
    ) -> None:
        self._tokenize = tokenize
        self._vocabulary = vocabulary
        self._stop_tokens = stop_tokens
        self._tokenizer: Any = None
        self._building = threading.Lock()
        self._last: tuple[str, Any] = ("", None)  # the grammar that was compiled last

    def constraint(self, request: Request, *, thinking: bool) -> Callable[[], TokenConstraint] | None:
        """Return what makes a fresh constraint for each run of an answer; None where the text is free. `thinking` says
        whether the text comes behind thinking.

        Raise UsageError that says what of a schema cannot be followed.
        """
        source = _source(request, _LEAD if thinking else "")
        if source is None:
            return None
        schema_limits.check_grammar(source)
        compiled, size = self._compiled(source), self._built().vocab_size
        return lambda: TokenConstraint(compiled.deep_copy(), size, self._stop_tokens())

    def _compiled(self, source: str) -> Any:
        """Return a matcher at its beginning, to be copied. Raise UsageError."""
        known, matcher = self._last
        if known == source:
            return matcher
        matcher = _library().LLMatcher(self._built(), source, log_level=0)
        if matcher.is_error():
            raise _cannot_be_followed(matcher.get_error())
        matcher.compute_bitmask()  # a schema that only refers to itself compiles and allows nothing
        if matcher.is_error():
            raise _cannot_be_followed("it allows no text")
        self._last = (source, matcher)
        return matcher

    def _built(self) -> Any:
        with self._building:
            if self._tokenizer is None:
                stops = sorted(self._stop_tokens())
                words = _Vocabulary(self._tokenize, self._vocabulary(), stops)
                llguidance = _library()
                self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(words), eos_token=stops)
        return self._tokenizer


class TokenConstraint:
    """A `Constraint` (engines/engine.py) for one run. Where the grammar fails (llguidance bounds its own work), the run
    may only stop, and `problem` says why: an answer that fails must not take those beside it along."""

    def __init__(self, matcher: Any, size: int, stop_tokens: frozenset[int]) -> None:
        self._matcher = matcher
        self._size = size
        self._stop_tokens = stop_tokens
        self.problem: EngineError | None = None

    def allowed(self) -> NDArray[np.bool_]:
        """Return which tokens may come next, of shape (vocabulary size,)."""
        import numpy as np

        if self.problem is None:
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            self._check()
        if self.problem is None:
            return np.unpackbits(bits, bitorder="little")[: self._size].astype(np.bool_)
        only = np.zeros(self._size, np.bool_)
        only[sorted(self._stop_tokens)] = True
        return only

    def accept(self, token: int) -> None:
        """Take the token that was drawn."""
        if self.problem is None:
            self._matcher.consume_token(token)
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            self.problem = EngineError(f"the answer's grammar failed: {_first_line(self._matcher.get_error())}")


class _Vocabulary:
    """What llguidance asks of a tokenizer. Where a grammar leaves one text only, it allows the tokens in which the
    model itself would write that text: so it must tokenize as the model does."""

    def __init__(self, tokenize: Callable[[str], list[int]], tokens: Sequence[bytes], stops: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.eos_token_id = stops[0]
        self.bos_token_id = None
        self.special_token_ids = list(stops)
        self._tokenize = tokenize

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("text is tokenized as str")  # llguidance finds out by trying
        return self._tokenize(text)


def _library() -> Any:
    try:
        import llguidance
    except ImportError as exc:
        raise Unsupported("answers of a given form need llguidance", "pip install 'localqwen[serve]'") from exc
    return llguidance


def _source(request: Request, lead: str) -> str | None:
    """A Lark grammar in llguidance's dialect (docs/syntax.md there); None where nothing is demanded."""
    if request.must_call:
        wanted = set(request.must_call)
        chosen = [tool for tool in request.tools if tool.name in wanted]
        return _grammar(lead, ["calls"], _call_rules(chosen, request.parallel_calls))
    if request.format is None:
        return None
    schema = {"type": "object"} if request.format.schema is None else request.format.schema
    starts, rules = ["json"], [f"json: {_json(schema)}"]
    if request.tools:  # a model with tools may still call one
        starts.append("calls")
        rules += _call_rules(request.tools, request.parallel_calls)
    return _grammar(lead, starts, rules)


def _grammar(lead: str, starts: Sequence[str], rules: Sequence[str]) -> str:
    return "\n".join([f"start: {lead}({' | '.join(starts)})", *rules])


def _call_rules(tools: Sequence[Tool], several: bool) -> list[str]:
    """Qwen3's form: `<tool_call>`, one line of JSON, `</tool_call>`."""
    schema_limits.check_tools(len(tools))
    rules = ['calls: call ("\\n" call)*' if several else "calls: call"]
    rules.append(
        f'call: "<tool_call>\\n" ({" | ".join(f"tool{index}" for index in range(len(tools)))}) "\\n</tool_call>"'
    )
    for index, tool in enumerate(tools):
        begin = json.dumps(f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": ', ensure_ascii=False)
        rules.append(f'tool{index}: {begin} arguments{index} "}}"')
        rules.append(f"arguments{index}: {_json({'type': 'object', **tool.parameters})}")
    return rules


def _json(schema: Any) -> str:
    schema_limits.check_schema(schema)
    with_options = {**schema, "x-guidance": _JSON_OPTIONS} if isinstance(schema, dict) else schema
    return f"%json {json.dumps(with_options)}"


def _cannot_be_followed(problem: str) -> UsageError:
    if problem.startswith("panic: "):  # an assertion of llguidance, about its own tables
        problem = "it is too large"
    return UsageError(f"the JSON schema cannot be followed: {_first_line(problem)}", "simplify that schema")


def _first_line(problem: str) -> str:
    """Return the first line of a message, without its place in a grammar that the user never saw."""
    return re.sub(r"^\d+\(\d+\): |^at \d+\(\d+\): ", "", problem.strip().split("\n", 1)[0])
