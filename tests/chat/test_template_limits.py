"""A chat template is a program of a stranger: whatever it does, it ends with a text or a TemplateError."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from localqwen.chat.model_info import info_of, thinking_mode_of
from localqwen.chat.sandbox.budget import MAX_TEXT
from localqwen.chat.template import MAX_SOURCE, ChatTemplate
from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import TemplateError

ROOT = Path(__file__).parents[2]
USER = [{"role": "user", "content": "x"}]
LOOP = "{% for i in range(99999) %}" * 3 + "@" + "{% endfor %}" * 3
#: Two equal lists and a tuple that hold two values each, sixty levels deep: 10^18 values in all, in 60 objects.
SHARED = (
    "{% set ns = namespace(l=[0], m=[0], t=(0,)) %}{% for i in range(60) %}"
    "{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% set ns.t = (ns.t, ns.t) %}{% endfor %}"
)
DEEP = "{% set ns = namespace(t=(0,)) %}{% for i in range(5000) %}{% set ns.t = (ns.t,) %}{% endfor %}"


def grow(new: str, first: str = "'x'") -> str:
    """Return a template that replaces a value again and again, as `new` says; `@` is the value."""
    loop = "{% for i in range(200) %}{% set ns.x = " + new.replace("@", "ns.x") + " %}{% endfor %}"
    return "{% set ns = namespace(x=" + first + ") %}" + loop + "{{ ns.x|length }}"


def render(source: str, seconds: float = 60) -> str:
    return ChatTemplate(source, {}, seconds=seconds).render(USER)


@pytest.mark.parametrize(
    "source",
    [
        LOOP,
        "{% set x %}" + LOOP.replace("@", "{% set y = 1 %}") + "{% endset %}",
        "{% macro m(n) %}{% for i in range(9) %}{{ m(n - 1) if n }}{% endfor %}{% endmacro %}{{ m(40) }}",
        "{% for x in [range(9999)|map('string')]|map('list')|list * 99999 %}{{ x|sort|join|length }}{% endfor %}",
        "{% set ns = namespace(x='x' * 30000000) %}{% for i in range(99999) %}{{ 'y' in ns.x }}{% endfor %}",
    ],
    ids=["loops", "captured", "tree of macros", "sorting", "long text"],
)
def test_endless_work_is_stopped_in_the_main_thread_and_in_others(source: str) -> None:
    def check() -> None:
        with pytest.raises(TemplateError, match=r"stopped: rendering these messages took more than 0\.1 s"):
            render(source, 0.1)
        ended.append(True)

    ended: list[bool] = []
    check()
    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    assert ended == [True, True]


def test_compiling_has_the_same_limit() -> None:
    with pytest.raises(TemplateError, match=r"stopped: compiling it took more than 0\.1 s"):
        ChatTemplate("{{ a }}" * 100_000, {}, seconds=0.1)


@pytest.mark.parametrize(
    "expression",
    [
        "2 ** 10000000000", "(-9) ** 999999999", "10 ** (10 ** 10)", "'x' * 10 ** 10", "10 ** 9 * (1,)",
        "[1] * 10 ** 9", "'%1000000000d' % 1", "'%*d' % (1000000000, 1)", "'%.1000000000f' % 1.0",
        "'%(a))s%(b)1000000000d' % {'b': 1}",
        "'%1000000000d'|format(1)", "'{:1000000000}'.format(1)", "'{:{}}'.format(1, 1000000000)",
        "'{a:1000000000}'.format_map({'a': 1})", "('{:1000000000}'|safe).format(1)", "'x'.ljust(10 ** 10)",
        "'x'.rjust(10 ** 10)", "'x'.center(10 ** 10)", "'1'.zfill(10 ** 10)", "'\\t'.expandtabs(10 ** 10)",
        "('x' * 100000).replace('x', 'x' * 100000)", "('x' * 100000)|replace('', 'x' * 100000)",
        "('x' * 100000).join(['a'] * 100000)", "range(100000)|join('x' * 100000)", "'x'|center(10 ** 10)",
        "'a\\nb'|indent(10 ** 10)", "('a\\n' * 100000)|indent('x' * 10000)", "('a ' * 100000)|wordwrap(1)",
        "[1]|batch(10 ** 9, 0)|list", "[1]|slice(10 ** 9)|list", "1|round(-10 ** 9)", "1.5|round(10 ** 9, 'ceil')",
        "('x' * 20000000)|list", "('x ' * 10000000).split()", "('x' * 20000000).split('x')",
        "('\\n' * 20000000).splitlines()", "('<' * 30000000)|e", "('<'|safe).join(['<' * 10000000])",
        "('a ' * 10000000)|title", "('a ' * 10000000)|wordcount", "('http://a.b ' * 100000)|urlize",
        "('<' * 10000000)|striptags", "('f' * 10000000)|int(0, 16)", "('1' * 10000000)|float",
        "('a' * 20000000).rfind('b' ~ 'a' * 10000000)", "('a' * 20000000).rsplit('b' ~ 'a' * 10000000)",
        "('a' * 20000000).strip('b' * 10000000 ~ 'a')", "('a' * 20000000)|trim('b' * 10000000 ~ 'a')",
        "[1]|tojson(indent=10 ** 9)", "[1, 2]|tojson(separators=('x' * 10000000, ''))",
        "strftime_now('%1000000000Y')", "strftime_now('%Y' * 1000000)", "lipsum(10 ** 9)",
        "[{'a': 1}]|map(attribute='a.' * 1000000)|list", "('x' * 20000000) ~ ('x' * 20000000)", "('x' * 40000000)",
    ],
)  # fmt: skip
def test_no_single_operation_is_large(expression: str) -> None:
    """Each is refused before it is carried out: C code cannot be interrupted."""
    with pytest.raises(TemplateError, match=r"chat template (makes|computes|formats|searches|reads|rounds|names) "):
        render("{% set x = " + expression + " %}")


@pytest.mark.parametrize(
    "source",
    [
        grow("@ + @"), grow("@ ~ @"), grow("@ * 2"), grow("@ + @", "[1]"), grow("@ * 2", "(1,)"),
        grow("'%s%s' % (@, @)"), grow("'{0}{0}'.format(@)"),
        grow("[@, @]|join"), grow("''.join([@, @])"), grow("@|replace('x', 'xx')"),
        grow("@.replace('x', 'xx')"), grow("@|tojson", "'\"'"), grow("@|string|e|string * 2", "'<'"),
        grow("@ * @", "7"), grow("[@, @]|sum(start=[])", "[1]"), grow("@|list + @|list", "[1]"),
        "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set t %}{{ ns.x }}{{ ns.x }}{% endset %}"
        "{% set ns.x = t %}{% endfor %}",
        "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n else 'x' * 100000 }}{% endmacro %}{{ m(20) }}",
        "{% set x = 'x' * 10000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
        "{% set x %}" + LOOP.replace("@", "{{ '' }}") + "{% endset %}",
        LOOP.replace("@", "x" * 1000),
        grow("[@, 'x' * 9999999 ~ i]"),
        pytest.param(grow("[@, range(99999)|list]"), marks=pytest.mark.slow),
        pytest.param(
            "{% set ns = namespace(l=[]) %}{% macro m() %}{% set ns.l = [ns.l, varargs] %}{% endmacro %}"
            "{% for i in range(99999) %}{{ m(*range(99999)) }}{% endfor %}",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_growing_values_and_output_are_bounded(source: str) -> None:
    with pytest.raises(TemplateError, match=r"chat template (makes|computes|works) "):
        render(source)


@pytest.mark.parametrize(
    "expression",
    [
        "ns.l", "ns.l ~ ''", "ns.l|string", "ns.l|tojson", "ns.l|pprint", "'%s' % ns.l", "'{}'.format(ns.l)", "ns",
        "ns.l == ns.m", "ns.l < ns.m", "ns.l in [ns.m]", "ns.l is eq(ns.m)", "ns.l is in([ns.m])", "ns.l is lower",
        "{ns.t: 1}", "{}[ns.t]", "{}.get(ns.t)", "dict([(ns.t, 1)])", "[ns.t]|unique|list", "['a']|map(ns.t)|list",
        "[ns.l, ns.m]|sort", "[ns.l, ns.m]|max", "[ns.l].count(ns.m)", "[{'a': ns.l}, {'a': ns.m}]|groupby('a')",
        "[ns.l]|join", "{'a': ns.l}|xmlattr", "ns.l|upper", "raise_exception(ns.l)", "{'a': ns.l}.items()",
        "'a'|replace('a', ns.l)", "[1]|map(attribute=ns.t)|list", "[ns.l]|sum(start=[])",
    ],
)  # fmt: skip
def test_a_value_that_occurs_many_times_is_not_walked(expression: str) -> None:
    """Printing, comparing or hashing 10^18 values in C would never end."""
    with pytest.raises(TemplateError, match="works on a value that holds more than 1,048,576 others"):
        render(SHARED + "{{ " + expression + " }}")


@pytest.mark.parametrize("expression", ["{ns.t: 1}", "ns.t", "ns.t|tojson", "ns.t == (ns.t,)", "{}.get(ns.t)"])
def test_a_value_that_is_nested_deep_is_not_walked(expression: str) -> None:
    """Hashing nested tuples has no guard in Python: it would overflow the stack and end the process."""
    with pytest.raises(TemplateError, match="nested more than 500 deep"):
        render(DEEP + "{{ " + expression + " }}")


@pytest.mark.parametrize(
    "source",
    [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
        "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
        "{{ " + "not " * 5_000 + "1 }}",
        "{% if 1 %}" * 3_000 + "{% endif %}" * 3_000,
        "{" * 1_000_000,
    ],
)
def test_recursion_and_nesting_are_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="calls itself too often, or is nested too deep"):
        render(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "cannot be compiled: too many statically nested blocks"),
        ("{{ 1" + "|abs" * 1_000 + " }}", "is nested more than 200 deep"),
        ("{% if 0 %}" + "{% elif 0 %}" * 15_000 + "{% endif %}", "has more than 20,000 expressions and statements"),
        ("{{ " + "9" * 5_000 + " }}", "cannot be compiled: Exceeds the limit"),
        ("x" * (MAX_SOURCE + 1), "has 1,048,577 characters, at most 1,048,576 are allowed"),
        (
            "".join("{% if @ %}{% set @ = @ %}{% endif %}".replace("@", "x" * 200 + str(i)) for i in range(1_000)),
            "becomes a program of more than 2,097,152 characters",
        ),
    ],
    ids=["blocks", "filters", "branches", "number", "source", "code"],
)
def test_a_source_that_would_be_a_large_program_is_refused(source: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        ChatTemplate(source, {}, seconds=60)


def test_long_sums_are_not_nesting() -> None:
    assert render("{{ 'x'" + " + 'x'" * 150 + " }}") == "x" * 151
    assert render("{{ 'x'" + " ~ 'x'" * 5_000 + " }}") == "x" * 5_001


def test_nothing_is_computed_at_compile_time() -> None:
    """Compiling is harmless: jinja2 by itself would evaluate constant expressions."""
    ChatTemplate("{{ 'x' * 10 ** 10 }}{{ 'x'|center(10 ** 10) }}{{ 9 ** 99999999 }}{{ '%1000000000d'|format(1) }}", {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}", "{{ {}.fromkeys('a') }}", "{{ 'x'.encode() }}", "{{ (5).to_bytes(10 ** 9, 'little') }}",
        "{{ dict.fromkeys(range(9)) }}", "{{ ''.format.__globals__.x }}", "{{ messages.__class__() }}",
        "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{{ 'x'|truncate(1) }}",
        "{{ [1]|first|length }}", "{{ -1e999 }}", "{{ 'a'|nothing }}", "{{ a is nothing }}", "{{ x.y.z }}",
        "{{ [3, 'a']|sort }}",
        "{{ strftime_now('\ud800') }}", "{% autoescape true %}{{ a }}{% endautoescape %}", "{{ '%d' % 'x' }}",
        "{{ 'é' is odd }}", "{{ '{0.a.b}'.format(1) }}", "{{ loop([1]) }}", "{{ caller() }}", "{{ [1, 2]|sum('a') }}",
        "{{ namespace(1) }}", "{{ '\udfff'|urlencode }}", "{% for a, b in [1] %}{% endfor %}", "{% set a.b = 1 %}",
        "{{ messages['\ud800'].x }}", "{{ range(10 ** 30) }}",
    ],
)  # fmt: skip
def test_whatever_a_template_raises_is_a_template_error(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


def test_the_words_of_a_template_are_cut_and_stay_in_one_line() -> None:
    with pytest.raises(TemplateError) as caught:
        render("{{ raise_exception('\x1b[31m\\n\u202ered' ~ 'x' * 10000000) }}")
    assert caught.value.message.startswith("the model's chat template refused these messages:  [31m  redxxx")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


def test_an_error_does_not_hold_what_the_template_made() -> None:
    with pytest.raises(TemplateError) as caught:
        render("{% set x = 'x' * 30000000 %}{{ x.y.z }}")
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_large_but_honest_prompts_are_rendered() -> None:
    content = "x" * (MAX_TEXT // 2)
    template = ChatTemplate("{% for m in messages %}{{ '<' + m.role + '>' + m.content.strip() }}{% endfor %}", {})
    assert template.render([{"role": "user", "content": content}]) == "<user>" + content


def test_a_long_constant_is_not_compared_with_many_texts() -> None:
    """A million comparisons of a hundred thousand characters each would be one call into C."""
    source = "{% set ns = namespace(x='@' ~ 'y') %}{{ '@z' in [ns.x] * 1000000 }}".replace("@", "x" * 100_000)
    with pytest.raises(TemplateError, match="works on a value with more than 33,554,432 characters"):
        render(source)


def test_markup_is_bounded_and_escapes_as_in_jinja2() -> None:
    assert render("{{ ('<b>'|safe) + '<' }}{{ '<'|e }}{{ ('{}'|safe).format('<') }}") == "<b>&lt;&lt;&lt;"


@pytest.mark.parametrize(
    "source", [LOOP, "{{ messages[0] + 1 }}", SHARED + "{{ ns.l }}", LOOP.replace("@", "x" * 1000)]
)
def test_asking_a_hostile_template_for_its_mode_says_never(source: str) -> None:
    assert thinking_mode_of(ChatTemplate(source, {}, seconds=0.1)) == "never"


def test_a_model_with_a_template_that_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"cannot be compiled|is not valid|nested"):
        info_of(ScriptedEngine([], chat_template="{{ " + "(" * 5_000), "hostile")


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to one process")
def test_ctrl_c_stops_a_template_that_loops() -> None:
    code = (
        "from localqwen.chat.template import ChatTemplate\n"
        f"template = ChatTemplate({LOOP!r}, {{}}, seconds=600)\n"
        "print('ready', flush=True)\n"
        "template.render([])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        os.kill(child.pid, signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
