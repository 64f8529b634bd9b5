"""Fuzzes the sandbox of chat templates: `python tools/fuzz_templates.py 50000 [SEED]`.

Random templates of constructs that take time or memory, and mutations of a real template, are compiled and rendered
with small limits. Each must end with a text within the bounds or a TemplateError, in about the time that it may take,
and the process must stay small. What does not is printed, and the program ends with 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from localqwen.chat.sandbox import budget, filters, methods, operators  # noqa: E402
from localqwen.chat.template import ChatTemplate  # noqa: E402
from localqwen.errors import TemplateError  # noqa: E402
from localqwen.machine import memory  # noqa: E402

#: Seconds that compiling and rendering may take here, each; processor seconds that one may take in truth: the last
#: operation is completed, what was made is freed, and the collector of other garbage may run.
LIMIT, IN_TRUTH = 0.2, 1.0
#: The most memory that rendering may add, in MiB: the budget's characters of four bytes, the output, and Python itself.
MEMORY = 2_048

MESSAGES = [
    {"role": "system", "content": "be <b>brief</b> & kind"},
    {"role": "user", "content": "a\tb\n" * 20 + "\u0130\u202e\U0001f600"},
    {"role": "assistant", "content": "<think>\nno\n</think>\n\nyes", "tool_calls": [
        {"function": {"name": "f", "arguments": {"a": [1, 2.5, None, {"b": "c"}]}}}
    ]},
    {"role": "tool", "content": None},
]  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]

NAMES = ("a", "b", "c", "m", "ns", "ns.p", "ns.q", "loop", "messages", "tools", "varargs", "kwargs", "caller", "self")
NUMBERS = (
    "0", "1", "-1", "2", "3", "7", "64", "999", "99999", "100000", "1048577", "33554433", "1000000000", "9" * 30,
    "0.5", "-2.5", "1e308", "1e999", "0x7fffffffffffffff", "true", "none",
)  # fmt: skip
TEXTS = (
    "", "x", "ab ab", "<&>'\\\"", "\\n", "a\\n" * 40, "%s", "%d%%", "%1000000000d", "%.99999999f", "%(a)s", "%*d", "{}",
    "{0}{0}", "{:1000000000}", "{:{}}", "{0.__class__}", "{a[b]!r:>9999}", "\u0130", "\u202e", "\U0001f600", "\u0000",
    "\ud800", "1" * 50, "http://a.b c", "<!--", "upper", "odd", "role", "a.b.c", "%Y", "%1000000000Y", "x" * 3000,
)  # fmt: skip
START = (
    "{% set ns = namespace(p='x', q=[1]) %}{% set a = 'xy' %}{% set b = [1, 'x'] %}{% set c = 3 %}"
    "{% macro m(a, b=1) %}{{ a }}{% endmacro %}"
)
GLOBALS = (
    "range", "dict", "namespace", "cycler", "joiner", "lipsum", "raise_exception", "strftime_now", "m", "loop", "caller"
)  # fmt: skip
FILTERS = tuple(filters.filters())
TESTS = tuple(name for name in filters.tests() if name.isidentifier())
METHODS = (
    *methods.TEXT, "join", "format", "format_map", "encode", "translate", "maketrans", "get", "items", "keys", "values",
    "copy", "pop", "append", "fromkeys", "next", "reset", "cycle", "changed", "bit_length", "to_bytes", "__class__",
)  # fmt: skip
#: Words of the messages about limits.
LIMITS = (
    "was", "makes", "works", "computes", "formats", "searches", "reads", "rounds", "names", "calls", "needs"
)  # fmt: skip
KEYWORDS = ("attribute", "width", "indent", "default", "start", "separators", "reverse", "fill_with", "sep", "a")


class Grammar:
    """Makes templates; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._pick = self._random.choice

    def template(self, real: str) -> str:
        """Return a random template: of this grammar, or the real one with changes."""
        if self._random.random() < 0.2:
            return self._mutated(real)
        return START + self._statements(3)

    def _mutated(self, real: str) -> str:
        for _ in range(self._random.randint(1, 6)):
            at, end = sorted(self._random.choices(range(len(real)), k=2))
            end = min(end, at + 200)
            part = self._pick(
                (self._statements(1), "{{ " + self._expression(2) + " }}", real[at:end] * 2, "", "{", "%}")
            )
            real = real[:at] + part + real[end if self._random.random() < 0.5 else at :]
        return real

    def _statements(self, depth: int) -> str:
        return "".join(self._statement(depth) for _ in range(self._random.randint(1, 3)))

    def _statement(self, depth: int) -> str:
        if depth <= 0:
            return "{{ " + self._expression(2) + " }}"
        return self._pick(self._kinds)(self, depth - 1)

    def _output(self, depth: int) -> str:
        return "{{ " + self._expression(depth + 1) + " }}"

    def _set(self, depth: int) -> str:
        return "{% set " + self._pick(("a", "b", "c", "ns.p", "ns.q")) + " = " + self._expression(depth + 1) + " %}"

    def _grow(self, _: int) -> str:
        """A loop that doubles or nests a value."""
        name = self._pick(("ns.p", "ns.q"))
        new = self._pick((
            "@ + @", "@ ~ @", "[@, @]", "(@,)", "@ * 2", "@ * @", "[@] + [@]", "{'k': @}", "@ ** 2", "@|tojson",
            "@|string|replace('x', 'xx')", "@|map('string')", "'%s%s' % (@, @)", "@|list + @|list", "@|e",
            "[@, " + self._expression(1) + "]", "[@, @]|join", "'{0}{0}'.format(@)",
        )).replace("@", name)  # fmt: skip
        count = self._pick(("5", "20", "60", "2000", "99999"))
        return "{% for i in range(" + count + ") %}{% set " + name + " = " + new + " %}{% endfor %}"

    def _for(self, depth: int) -> str:
        kind = self._pick(("", "", " recursive", " if " + self._expression(1)))
        body = self._statements(depth) + self._pick(("", "", "{% break %}", "{{ loop(a) }}", "{% continue %}"))
        return "{% for a in " + self._iterable() + kind + " %}" + body + "{% endfor %}"

    def _iterable(self) -> str:
        return self._pick(("messages", "range(9)", "range(99999)", "[1, 2]", self._expression(2)))

    def _if(self, depth: int) -> str:
        other = self._pick(("", "{% else %}" + self._statements(depth)))
        return "{% if " + self._expression(2) + " %}" + self._statements(depth) + other + "{% endif %}"

    def _macro(self, depth: int) -> str:
        head = "{% macro m(" + self._pick(("", "a", "a, b=1")) + ") %}"
        return head + self._statements(depth) + self._pick(("", "{{ m(a) }}")) + "{% endmacro %}{{ m(a) }}"

    def _block(self, depth: int) -> str:
        opening, closing = self._pick((
            ("set a", "endset"), ("filter " + self._pick(FILTERS), "endfilter"), ("call m()", "endcall"),
            ("with a = " + self._expression(1), "endwith"), ("block z", "endblock"), ("raw", "endraw"),
        ))  # fmt: skip
        return "{% " + opening + " %}" + self._statements(depth) + "{% " + closing + " %}"

    def _nest(self, _: int) -> str:
        count = self._pick((5, 5, 50, 50, 300, 5000))
        left, right = self._pick((
            ("(", ")"), ("[", "]"), ("-", ""), ("not ", ""), ("{1:", "}"), ("a.b(", ")"), ("", "|e"), ("1+", ""),
        ))  # fmt: skip
        return "{{ " + left * count + "1" + right * count + " }}"

    _kinds: tuple[Callable[[Grammar, int], str], ...] = (
        *(_output,) * 4, *(_set,) * 3, *(_grow,) * 3, _for, _for, _if, _macro, _block, _nest,
    )  # fmt: skip

    def _expression(self, depth: int) -> str:
        """Return an expression: mostly of operands that fit, so that it comes far."""
        if depth <= 0:
            return self._leaf()
        make = self._pick((self._any, self._text, self._text, self._number, self._list, self._list))
        return make(depth - 1)

    def _any(self, depth: int) -> str:
        one, other = self._expression(depth), self._expression(depth)
        return self._pick((
            f"({one} {self._pick((*operators.SIGNS, '~', 'and', 'or', '==', '<', 'in', 'not in', '!='))} {other})",
            f"{one}|{self._pick(FILTERS)}({self._arguments(depth)})",
            f"({one} is {self._pick(TESTS)}({other}))",
            f"({one}).{self._pick(METHODS)}({self._arguments(depth)})",
            f"({one})[{other}]",
            "{" + f"{one}: {other}" + "}",
            f"({one} if {other} else {self._leaf()})",
            f"{self._pick(GLOBALS)}({self._arguments(depth)})",
        ))  # fmt: skip

    def _text(self, depth: int) -> str:
        if depth <= 0:
            return self._pick(("a", "ns.p", "'" + self._pick(TEXTS).replace("'", "\\'") + "'"))
        one, other, count = self._text(depth - 1), self._text(depth - 1), self._number(depth - 1)
        return self._pick((
            f"({one} ~ {other})", f"({one} + {other})", f"({one} * {count})", f"({one} % {self._list(0)})",
            f"({one}|{self._pick(FILTERS)})", f"({one}|replace({other}, {self._text(0)}))", f"({one}|center({count}))",
            f"({one}|indent({count}))", f"({one}|wordwrap({count}, wrapstring={other}))", f"({one}|truncate({count}))",
            f"({one}).{self._pick(METHODS)}({self._pick(('', other, count))})", f"({self._list(0)}|join({one}))",
            f"({one}).join({self._list(depth - 1)}|map('string'))", f"({one}).replace({other}, {self._text(0)})",
            f"({one})[:{count}]", f"({one}).format({other}, {count}, a={other})", f"({self._expression(depth)}|tojson)",
            f"({one}|format({other}))", f"({self._expression(depth)}|string)", f"({self._list(depth - 1)}|pprint)",
        ))  # fmt: skip

    def _number(self, depth: int) -> str:
        if depth <= 0:
            return self._pick(("c", "1", "2", "3", "9", self._pick(NUMBERS)))
        one, other = self._number(depth - 1), self._number(depth - 1)
        return self._pick((
            f"({one} {self._pick(tuple(operators.SIGNS))} {other})", f"({self._text(depth - 1)}|length)",
            f"({self._text(depth - 1)}|int(0, 16))", f"({one}|round({other}))", f"({self._list(depth - 1)}|sum)",
            f"({self._text(depth - 1)}).count({self._text(0)})", f"({self._text(depth - 1)}|float)", f"(-{one})",
        ))  # fmt: skip

    def _list(self, depth: int) -> str:
        if depth <= 0:
            return self._pick(("b", "ns.q", "messages", "tools", "[1, 2]", "('x', 'y')", "range(99999)", "range(9)"))
        one, other = self._list(depth - 1), self._list(depth - 1)
        return self._pick((
            f"({one}|list + {other}|list)", f"({one}|list * {self._number(0)})", f"({one}|{self._pick(FILTERS)})",
            f"({one}|sort)", f"({one}|map('{self._pick(FILTERS)}')|list)", f"({one}|select('{self._pick(TESTS)}'))",
            f"({one}|batch({self._number(0)}, 0))", f"({one}|slice({self._number(0)})|list)", f"({one}|unique|list)",
            f"({self._text(depth - 1)}).split({self._text(0)})", f"({self._text(depth - 1)}|list)", f"({one})[::-1]",
            f"[{self._expression(depth)}, {one}, {one}]", f"({one}, {one})", f"({one}|groupby(0))", f"({one}|reverse)",
        ))  # fmt: skip

    def _arguments(self, depth: int) -> str:
        arguments = [self._expression(depth) for _ in range(self._random.randint(0, 2))]
        if self._random.random() < 0.2:
            arguments.append(self._pick(KEYWORDS) + "=" + self._expression(depth))
        if self._random.random() < 0.1:
            arguments.append(self._pick(("*", "**")) + self._expression(depth))
        return ", ".join(arguments)

    def _leaf(self) -> str:
        return self._pick((self._pick(NAMES), self._number(0), self._text(0), self._list(0)))


@dataclass
class Findings:
    """What became of the templates. `faults` names those that broke a limit, `slow` those that took too long."""

    ends: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # processor seconds of compiling and rendering
    grown: float = 0.0  # MiB of memory
    faults: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"slowest {self.slowest:.2f} s of processor time, {self.grown:,.0f} MiB more memory at most, "
            f"{len(self.faults) + len(self.slow)} faults"
        )


def fuzz(count: int, seed: int, report: Callable[[str], None] = lambda _: None) -> Findings:
    """Return what became of so many templates; `report` takes a line now and then."""
    grammar, found, before = Grammar(seed), Findings(), memory.peak() or 0
    real = (ROOT / "tools" / "demo_template.jinja").read_text()
    for number in range(count):
        source = grammar.template(real)
        start = time.thread_time()
        try:
            found.ends[_end(source)] += 1
        except Exception as exc:  # a fault of the sandbox, of any type
            found.faults.append(f"{number}: {exc!r}: {source!r}")
        seconds = time.thread_time() - start
        found.slowest = max(found.slowest, seconds)
        found.grown = ((memory.peak() or 0) - before) / (1 << 20)
        if seconds > 2 * IN_TRUTH:
            found.slow.append(f"{number}: {seconds:.2f} s: {source!r}")
        if found.grown > MEMORY:
            found.faults.append(f"{number}: {found.grown:.0f} MiB: {source!r}")
        if number % 1000 == 999:
            report(f"{number + 1:,}: {found}")
    return found


def _end(source: str) -> str:
    """Compile and render a template. Return how it ended."""
    try:
        template = ChatTemplate(source, {"eos_token": "<|im_end|>"}, seconds=LIMIT)
    except TemplateError as exc:
        return "stopped compiling" if "stopped" in exc.message else "not compiled"
    try:
        text = template.render(MESSAGES, tools=TOOLS)
    except TemplateError as exc:
        _check(len(exc.message) < 500 and exc.message.isprintable(), "a message that is no line")
        word = next((word for word in LIMITS if f" {word} " in exc.message[:40]), "")
        return f"limit: {word}" if word else "failed"
    _check(isinstance(text, str) and len(text) <= budget.MAX_TEXT, "too long a text")
    return "rendered"


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def main() -> None:
    """Fuzz, print what was found, and end with 1 for a fault."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("count", type=int)
    arguments.add_argument("seed", type=int, nargs="?", default=0)
    given = arguments.parse_args()
    found = fuzz(given.count, given.seed, lambda line: print(line, flush=True))
    print(found)
    for end, times in found.ends.most_common():
        print(f"{times:7,} {end}")
    print(*found.faults, *found.slow, sep="\n")
    sys.exit(1 if found.faults or found.slow else 0)


if __name__ == "__main__":
    main()
