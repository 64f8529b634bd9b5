"""Hostile chat templates: each is a function of a random generator that returns the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

Source = Callable[[Random], str]
#: What a template says that answers like the demo's; the hostile part stands before it.
PLAIN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def recursion(random: Random) -> str:
    """Return a template that calls itself without end."""
    return random.choice(
        [
            "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
            "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
            "{% block a %}{{ self.a() }}{% endblock %}",
            "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
            "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{% call m() %}x{% endcall %}",
            "{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}",
        ]
    )


def nesting(random: Random) -> str:
    """Return a template nested or chained some thousands deep."""
    depth = random.choice([300, 3_000, 30_000])
    before, middle, after = random.choice(
        [
            ("{% if true %}", "x", "{% endif %}"),
            ("{% for x in [1] %}", "x", "{% endfor %}"),
            ("{% set x %}", "x", "{% endset %}"),
            ("{% filter upper %}", "x", "{% endfilter %}"),
            ("{% macro m() %}", "x", "{% endmacro %}"),
            ("{% if true %}x{% elif false %}", "x", "{% endif %}"),
            ("(", "1", ")"), ("[", "1", "]"), ("{'a':", "1", "}"), ("not ", "1", ""), ("-", "1", ""),
            ("1 ~ ", "1", ""), ("1 + ", "1", ""), ("1 and ", "1", ""), ("2 ** ", "1", ""), ("1 if x else ", "1", ""),
            ("", "messages", ".a"), ("", "messages", "[0]"), ("", "messages", "|list"), ("", "range", "()"),
            ("", "1", " < 1"), ("x(", "1", ")"), ("'a' ", "'b'", ""),
        ]
    )  # fmt: skip
    source = before * depth + middle + after * depth
    return source if before.startswith("{%") else "{{ " + source + " }}"


def loops(random: Random) -> str:
    """Return a template that loops for hours without writing anything."""
    ends = [99_999, 99_999, random.choice([9_999, 99_999])]
    inner = random.choice(["", "{% set x = 1 %}", "{% if a > b %}{% endif %}", "{% set ns.n = ns.n + 1 %}"])
    heads = "".join(f"{{% for {name} in range({end}) %}}" for name, end in zip("abc", ends, strict=True))
    loop = "{% set ns = namespace(n=0) %}" + heads + inner + "{% endfor %}" * 3
    call = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
    return random.choice([loop, loop, call]) + PLAIN


def giant_text(random: Random) -> str:
    """Return a template that makes a text, or a list, of up to 10^13 elements."""
    n = 10 ** random.randint(9, 13)
    bomb = random.choice(
        [
            f"'x' * {n}", f"'x'.center({n})", f"'x'.ljust({n})", f"'x'.zfill({n})", f"'x'|center({n})",
            f"'%{n}d' % 1", f"'%.{n}f' % 1", f"'%{n}d'|format(1)", f"'{{:>{n}}}'.format(1)", f"'x'|indent({n}, true)",
            f"[1] * {n}", f"([1] * {n})|length", f"messages|tojson(indent={n})", f"[1]|batch({n}, 'x')|list",
            f"[1]|slice({n})|list", "lipsum(n=10000000)", f"'a'.replace('', 'x' * {n})", f"('x' * {n})|length",
            f"'\\t'.expandtabs({n})", "strftime_now('%A' * 10000000)", f"range({n})|list",
            f"'a'|wordwrap(1, true, 'x' * {n})",
        ]
    )  # fmt: skip
    late = bomb.replace(str(n), f"(messages|length * {n})") if "'%" not in bomb and "{" not in bomb else bomb
    return "{{ " + random.choice([bomb, late]) + " }}" + PLAIN


def power(random: Random) -> str:
    """Return a template with a number of many digits, computed while it is compiled or while it is rendered. In jinja
    `a ** b ** c` is `(a ** b) ** c`."""
    compiled = [
        "9 ** (9 ** 9)", "(9 ** (9 ** 7))|string|length", "2 ** 99999999999", "(10 ** 10000) ** 10000",
        "7 ** 77777777 % 3", "2 ** (2 ** 31)", "-(9 ** (9 ** 9))", "(9 ** 99999) ** 999",
    ]  # fmt: skip
    rendered = [
        "n ** (n ** n)", "n ** 99999999 % 7", "(n ** 9999999)|string", "(n ** 5000)|string", "(10.0 ** 400)|int",
        "n ** -(9 ** (9 ** 9))", "[n ** (9 ** 8), 1]|sum", "(n ** (9 ** 7))|tojson", "((n ** 9999) ** 99) ** 99",
        "(n ** 4000) * (n ** 4000) * (n ** 4000) * (n ** 4000)", "(n ** 99999999) is divisibleby 7",
    ]  # fmt: skip
    return "{% set n = messages|length + 8 %}{{ " + random.choice(compiled + rendered) + " }}" + PLAIN


def doubling(random: Random) -> str:
    """Return a template that doubles a text or a list in a loop."""
    step = random.choice(
        [
            "ns.s ~ ns.s", "ns.s + ns.s", "ns.s|replace('x', 'xx')", "'%s%s' % (ns.s, ns.s)", "'{0}{0}'.format(ns.s)",
            "[ns.s, ns.s]|join", "(ns.s, ns.s)", "[ns.s, ns.s]|string", "ns.s|tojson|tojson", "ns.s|urlencode ~ '%'",
        ]
    )  # fmt: skip
    times = random.choice([25, 40, 99_999])
    loop = f"{{% for i in range({times}) %}}{{% set ns.s = {step} %}}{{% endfor %}}"
    return '{% set ns = namespace(s="xx") %}' + loop + random.choice(["{{ ns.s }}", "{{ ns.s|length }}", ""]) + PLAIN


def syntax(random: Random) -> str:
    """Return a template that is no jinja, or that python cannot compile."""
    return random.choice(
        [
            "{% if", "{{", "{% endfor %}", "{% frobnicate %}", "{{ x|nosuchfilter }}", "{% break %}", "{% continue %}",
            "{{ 1 is nosuchtest }}", "{% set None = 1 %}", "{% set __debug__ = 1 %}",
            "{% macro m(__debug__) %}{% endmacro %}",
            "{% include 'x' %}", "{% extends messages %}", "{% import 'a' as b %}", "{% from 'a' import b %}",
            "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ '\\ud800' }}", "{{ '\\u0000' }}" * 9,
            "{{ x.y.z }}", "{{ 1 / 0 }}", "{{ raise_exception('x' * 10000000) }}", "{{ raise_exception('\\x1b[2J') }}",
            "{{ raise_exception('\\ud800') }}", "{{ raise_exception(messages) }}", "{{ strftime_now('\\u0000') }}",
            "{% for i in range(1) %}{% for j in range(i, -1, 0) %}{% endfor %}{% endfor %}", "{{ {}|attr('x') }}",
            "{{ {'a': messages, 'a': self} }}", "{{ self }}", "{{ caller() }}", "{{ loop }}", "{{ super() }}",
            "{{ varargs }}",
            "{{ messages|map(attribute='content')|sum }}", "{{ messages|sort }}", "{{ 'é' * 3 }}", "{{ 0x }}",
            "{{ 1_ }}",
            "{% set x = namespace() %}{% set x.x = x %}{{ x.x }}{{ x|tojson }}", "{{ cycler().next() }}",
            "{{ [] < {} }}",
            "{% set messages = 1 %}{% for m in messages %}{% endfor %}", "{{ 9e999|int }}", "{{ 'a'|float|int }}",
            "{{ dict(a=1, **messages[0]) }}", "{{ messages(*range(99999)) }}", "{{ joiner()(1) }}", "", "\0",
            "\ufeff", "#" * 10,
        ]
    ) + random.choice(["", PLAIN])  # fmt: skip


def huge_source(random: Random) -> str:
    """Return a template of up to 15 MB."""
    count = random.choice([10_000, 100_000, 400_000])
    piece = random.choice(
        [
            "{{ messages }}", "{# comment #}", "{% if x %}{% endif %}", "{% set x = 1 %}",
            "{% macro m() %}{% endmacro %}",
            "{{ 'text' }}", "{{ x|upper|lower }}", "plain text, ", "{% raw %}{{{% endraw %}", "{{ 1.5e3 }}", "\n",
            "{{- 1 -}}",
        ]
    )  # fmt: skip
    names = "".join(f"{{% set v{number} = {number} %}}" for number in range(count // 4))
    literal = "{{ [" + "1," * count + "] }}"
    return random.choice([piece * count, piece * count, piece * count, names, literal])[:15_000_000] + PLAIN


def slow_filter(random: Random) -> str:
    """Return a template whose time is spent inside one call."""
    call = random.choice(
        [
            "('a' * 3000000)|wordwrap(1)|length", "('<' * 200000)|striptags", "('http://' * 200000)|urlize|length",
            "('(' * 100000 ~ 'www.a.com')|urlize|length", "(range(99999)|map('string')|list * 99)|sort|length",
            "(range(99999)|list * 99)|unique|list|length", "('\\n' * 9999999)|indent(99)|length",
            "('a' * 9999999)|title|length",
            "('a ' * 3000000)|wordcount", "('é' * 9999999)|urlencode|length", "range(99999)|map('upper')|join|length",
            "(range(99999)|list)|groupby('real')|length", "('1' * 4300)|int ** 4300 % 7", "('1' * 999999)|int",
            "'a' * 9999999 in 'a' * 9999999 ~ 'b'", "('ab' * 4999999).count('ba' * 99999)",
            "('a' * 99999 ~ 'b') is in(range(99999)|map('string')|list)",
            "(('a' * 99999) ~ 'b') in (('a' * 9999999))", "('x' * 999999)|pprint|length",
            "('&' * 9999999)|escape|length",
            "range(99999)|list|tojson(indent=999)|length", "range(99999)|batch(2)|map('list')|list|string|length",
        ]
    )  # fmt: skip
    return f"{{% for i in range(99) %}}{{{{ {call} }}}}{{% endfor %}}" + PLAIN


def deep_value(random: Random) -> str:
    """Return a template that builds a value nested tens of thousands deep, and shows it."""
    step = random.choice(["[ns.l]", "{'a': ns.l}", "(ns.l,)", "ns.l|map('string')", "ns.l|list|map('list')"])
    shown = random.choice(
        ["ns.l", "ns.l|tojson", "ns.l|string|length", "ns.l == ns.l", "ns.l|list", "ns.l|length", "[ns.l]|sort"]
    )
    build = f"{{% for i in range(99999) %}}{{% set ns.l = {step} %}}{{% endfor %}}"
    return "{% set ns = namespace(l=[1]) %}" + build + "{{ " + shown + " }}" + PLAIN


def noise(random: Random) -> str:
    """Return a plain template with some characters changed."""
    source = list(PLAIN)
    for _ in range(random.randint(1, 8)):
        source[random.randrange(len(source))] = random.choice(["", "{", "}", "%", "|", "'", "(", "\0", "é", "{{", "{%"])
    return "".join(source)


TEMPLATES: Mapping[str, Source] = {
    "recursion": recursion, "nesting": nesting, "loops": loops, "giant text": giant_text, "power": power,
    "doubling": doubling, "syntax": syntax, "huge source": huge_source, "slow filter": slow_filter,
    "deep value": deep_value, "noise": noise,
}  # fmt: skip
