"""The chat template: rendered as transformers does, sandboxed."""

import json
from pathlib import Path

import pytest

from localqwen.chat.template import ChatTemplate
from localqwen.errors import TemplateError
from localqwen.models.converted import demo_checkpoint

CASES = json.loads((Path(__file__).parents[1] / "vectors" / "chat_template.json").read_text())
RENDERED = [case for case in CASES if not case.get("continue_final_message")]
CONTINUED = [case for case in CASES if case.get("continue_final_message")]
USER = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def demo() -> ChatTemplate:
    config = json.loads((demo_checkpoint() / "tokenizer_config.json").read_text())
    return ChatTemplate(config["chat_template"], {"eos_token": "<|im_end|>"})


def render(template: ChatTemplate, case: dict) -> str:
    return template.render(
        case["messages"],
        tools=case["tools"],
        enable_thinking=case["enable_thinking"],
        add_generation_prompt=case["add_generation_prompt"],
    )


@pytest.mark.parametrize("case", RENDERED, ids=lambda case: case["name"])
def test_the_demo_template_renders_what_the_official_one_does(demo: ChatTemplate, case: dict) -> None:
    assert render(demo, case) == case["expected"]


@pytest.mark.parametrize("case", CONTINUED, ids=lambda case: case["name"])
def test_a_final_message_to_be_continued_is_the_same_rendering_without_its_end(demo: ChatTemplate, case: dict) -> None:
    assert render(demo, case).removesuffix("<|im_end|>\n") == case["expected"]


def test_blocks_are_trimmed_and_loops_can_be_left_as_in_transformers() -> None:
    source = "{% for n in [1, 2, 3] %}\n    {% if n == 2 %}\n{% break %}\n    {% endif %}\n{{ n }}\n{% endfor %}\nend"
    assert ChatTemplate(source, {}).render(USER) == "1\nend"


def test_tojson_keeps_unicode_and_html_characters() -> None:
    assert ChatTemplate("{{ messages | tojson }}", {}).render([{"q": "<é>&'"}]) == """[{"q": "<é>&'"}]"""


def test_special_tokens_and_the_date_are_at_hand() -> None:
    template = ChatTemplate("{{ eos_token }}{{ strftime_now('%Y') | length }}", {"eos_token": "<|im_end|>"})
    assert template.render(USER) == "<|im_end|>4"


def test_enable_thinking_is_not_defined_unless_it_is_given() -> None:
    template = ChatTemplate("{{ enable_thinking is defined }}", {})
    assert (template.render(USER), template.render(USER, enable_thinking=True)) == ("False", "True")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",  # data cannot be changed
        "{{ ''.__class__.__mro__ }}",  # the interpreter cannot be reached
        "{{ raise_exception('no system message, please') }}",
        "{{ messages[7].content + 1 }}",
        "{{ 1 / 0 }}",
        "{% for i in range(999999999) %}{% endfor %}",
    ],
)
def test_what_a_template_must_not_do_or_refuses_is_a_template_error(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source, {}).render(USER)


def test_a_template_that_does_not_parse_is_refused_with_its_line() -> None:
    with pytest.raises(TemplateError, match="line 2"):
        ChatTemplate("ok\n{% endfor %}", {})
