"""Messages to prompt: the model's own chat template, rendered as transformers renders it.

A template comes with a model file, so it is untrusted code: it runs in the sandbox of `sandbox`, within limits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from localqwen.chat.sandbox import running
from localqwen.errors import TemplateError

#: The seconds that compiling a template and each rendering may take, and the most characters of its source.
SECONDS, MAX_SOURCE = 5.0, 1 << 20


class ChatTemplate:
    """A chat template in jinja2, with the tokens that it may name (`eos_token`, …). Compiling it and each rendering may
    take so many `seconds`. Raise TemplateError."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], *, seconds: float = SECONDS) -> None:
        from localqwen.chat.sandbox.environment import Program

        self.source = source
        self.special_tokens = dict(special_tokens)
        self.seconds = seconds
        if len(source) > MAX_SOURCE:
            raise TemplateError(
                f"the model's chat template has {len(source):,} characters, at most {MAX_SOURCE:,} are allowed",
                running.TRUST,
            )
        self._program = running.run(partial(Program, source), seconds, compiling=True)

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
        switch = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        variables = {
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
            **switch,
            **self.special_tokens,
        }
        return running.run(partial(self._program.render, variables), self.seconds, compiling=False)
