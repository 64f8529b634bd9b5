"""Messages to prompt: the model's own chat template, rendered as transformers renders it.

A template comes with a model file, so it is untrusted code and runs in jinja2's immutable sandbox.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from localqwen.errors import TemplateError


class ChatTemplate:
    """A chat template in jinja2, with the tokens that it may name (`eos_token`, …). Raise TemplateError."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        import jinja2

        self.source = source
        self.special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as exc:
            raise TemplateError(f"the model's chat template is not valid (line {exc.lineno}): {exc.message}") from exc

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Return the prompt as text. `messages` and `tools` have OpenAI's shape; `enable_thinking` None is not passed
        on."""
        import jinja2

        switch = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        try:
            text: str = self._template.render(
                messages=messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **switch,
                **self.special_tokens,
            )
            return text
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as exc:
            raise TemplateError(
                f"the model's chat template refused these messages: {exc}",
                "check the roles and the order of the messages",
            ) from exc


def _environment() -> Any:
    """As transformers sets it up (utils/chat_template_utils.py): the same trimming, extension, filter and globals."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """jinja2's own filter escapes for HTML, which models never saw."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    from jinja2 import TemplateError as JinjaError

    raise JinjaError(message)
