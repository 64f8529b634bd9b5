"""Workloads by name, from workloads.toml: the questions, their length, the number of turns. Knows no model."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any

from localqwen.bench.quality import bundled_text
from localqwen.bench.samples import Test
from localqwen.chat.messages import Message, Tool, ToolCall
from localqwen.errors import UsageError

#: Counts the tokens of a text.
Count = Callable[[str], int]
#: Tokens that a chat template puts around a few messages, tools included.
_TEMPLATE_TOKENS = 256
#: The suite that has an overall figure: MLPerf Client reports its extended tasks one by one.
OVERALL = "mlperf-client"

_TOOL = Tool(
    "look_up",
    "Finds a passage of the handbook.",
    {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]},
)


@dataclass(frozen=True)
class Workload:
    """A conversation to measure. Lengths are in tokens: `prompt` of the first turn, `follow_up` of each later one,
    `answer` at most. Questions in words replace lengths. `think` None leaves the choice to the model; `budget` limits
    thinking. `pause` is in seconds between turns; `deadline`, if not 0, is the seconds within which each answer should
    begin."""

    name: str
    about: str = ""
    suite: str = ""
    prompt: int = 0
    answer: int = 256
    turns: int = 1
    follow_up: int = 0
    questions: tuple[str, ...] = ()
    tools: bool = False
    think: bool | None = None
    budget: int | None = None
    pause: float = 0.0
    deadline: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "questions", tuple(self.questions))
        if self.questions:
            object.__setattr__(self, "turns", len(self.questions))
        if self.answer < 2 or self.turns < 1 or not (self.prompt > 0 or self.questions):
            raise UsageError(
                f"the workload {self.name} has no question", "it needs prompt and answer, in tokens, or questions"
            )

    @property
    def test(self) -> Test:
        """Return the test of this workload."""
        return Test("workload", self.name, prompt=self.prompt, generate=self.answer)

    @property
    def context_needed(self) -> int:
        """Return the tokens of the whole conversation."""
        prompts = 100 * len(self.questions) + self.prompt + self.follow_up * (self.turns - 1)
        return _TEMPLATE_TOKENS + prompts + self.answer * self.turns

    @property
    def offered(self) -> tuple[Tool, ...]:
        """Return the tools of the workload."""
        return (_TOOL,) if self.tools else ()


#: What each setting must be, in words, and its smallest value if it is a number.
_WORDS = {
    str: "a text in quotes",
    bool: "true or false",
    tuple: "a list of texts",
    int: "a whole number",
    float: "seconds",
}
_KINDS: dict[str, tuple[type, float]] = {
    "about": (str, 0), "suite": (str, 0), "questions": (tuple, 1), "tools": (bool, 0), "think": (bool, 0),
    "prompt": (int, 0), "answer": (int, 2), "turns": (int, 1), "follow_up": (int, 0), "budget": (int, 0),
    "pause": (float, 0), "deadline": (float, 0),
}  # fmt: skip


def problem(key: str, value: Any) -> tuple[str, str] | None:
    """Return what is wrong with a setting, and a hint; None if nothing is."""
    if key not in _KINDS:
        near = get_close_matches(key, _KINDS, 1)
        return f"{key} is unknown", f"did you mean {near[0]}?" if near else f"possible: {', '.join(sorted(_KINDS))}"
    kind, least = _KINDS[key]
    if _is(value, kind, least):
        return None
    words = _WORDS[kind] + (f" of at least {least:g}" if kind in (int, float) else "")
    return f"{key} is {value!r}, it must be {words}", "lengths are in tokens: prompt = 350"


def _is(value: Any, kind: type, least: float) -> bool:
    if kind is tuple:
        return isinstance(value, list) and len(value) >= least and all(isinstance(each, str) for each in value)
    if kind not in (int, float):
        return isinstance(value, kind)
    fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return fits and least <= value < math.inf


def from_table(name: str, table: Mapping[str, Any], base: Workload | None = None) -> Workload:
    """Return a workload from a TOML table, or `base` with the settings of the table. Raise UsageError if a setting is
    wrong."""
    for key, value in table.items():
        wrong = problem(key, value)
        if wrong:
            raise UsageError(f"{name}: {wrong[0]}", wrong[1])
    if table.get("think") is False and table.get("budget"):
        raise UsageError(f"{name}: a budget with thinking off", "remove think = false, or the budget")
    return replace(base, name=name, **table) if base else Workload(name, **table)


@cache
def known() -> Mapping[str, Workload]:
    """Return all built-in workloads by name."""
    text = resources.files("localqwen.bench").joinpath("workloads.toml").read_text(encoding="utf-8")
    return {name: from_table(name, table) for name, table in tomllib.loads(text).items()}


def named(names: Sequence[str]) -> list[Workload]:
    """Return workloads by name or by suite (`mlperf-client`), in order and without repeats. Raise UsageError if there
    is none."""
    found: dict[str, Workload] = {}
    suites = dict.fromkeys(each.suite for each in known().values() if each.suite)
    for name in names:
        members = [each for each in known().values() if name in (each.name, each.suite)]
        if not members:
            near = get_close_matches(name, [*known(), *suites], 1)
            hint = f"did you mean {near[0]}?" if near else f"possible: {', '.join([*known(), *suites])}"
            raise UsageError(f"there is no workload {name!r}", hint)
        found.update({each.name: each for each in members})
    return list(found.values())


class Script:
    """The user's side of a workload as messages. `session` begins every conversation and is different for each, so that
    no cache, ours or a server's, has its first turn."""

    def __init__(self, workload: Workload, count: Count, session: str) -> None:
        self._work, self._session = workload, session
        self._texts = _Filler(count)

    def opening(self) -> list[Message]:
        """Return the messages before the first turn."""
        work = self._work
        system = Message("system", f"Session {self._session}. Answer at length.")
        if work.questions:
            return [system, Message("user", work.questions[0])]
        return [system, Message("user", self._texts.of(work.prompt, "Read this, then write about it.\n\n"))]

    def turns(self) -> Iterator[list[Message]]:
        """Yield the messages to add before each answer; the caller adds the answers."""
        yield self.opening()
        for turn in range(1, self._work.turns):
            yield self._follow_up(turn)

    def _follow_up(self, turn: int) -> list[Message]:
        work = self._work
        if work.questions:
            return [Message("user", work.questions[turn])]
        text = self._texts.of(work.follow_up or 16, f"Part {turn + 1}.\n\n")
        if not work.tools:
            return [Message("user", text)]
        call = ToolCall(_TOOL.name, {"topic": f"part {turn + 1}"}, id=f"call_{turn}")
        return [Message("assistant", "", tool_calls=(call,)), Message("tool", text, tool_call_id=call.id)]


class _Filler:
    """Text of a length in tokens, from the text that comes with the package."""

    def __init__(self, count: Count) -> None:
        self._count = count
        self._text = bundled_text()

    def of(self, tokens: int, head: str) -> str:
        """Return `head` and as much text as makes `tokens` tokens, to within a word."""
        words = (self._text * (1 + tokens * 8 // len(self._text))).split(" ")
        low, high = 0, len(words)
        while low < high:
            middle = (low + high + 1) // 2
            if self._count(head + " ".join(words[:middle])) <= tokens:
                low = middle
            else:
                high = middle - 1
        return head + " ".join(words[:low])
