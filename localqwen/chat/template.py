"""Messages to prompt: the model's own chat template, rendered as transformers renders it, and encoded safely.

A template comes with a model file, so it is untrusted code: it runs in the sandbox of `sandbox`, within limits. What
users and tools write is data: control tokens typed there are encoded as the text they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from localqwen.chat.sandbox import running
from localqwen.errors import TemplateError

#: The seconds that compiling a template and each rendering may take, and the most characters of its source.
SECONDS, MAX_SOURCE = 5.0, 1 << 20
#: Qwen3's control tokens (`special: true` in tokenizer.json). Other tags are ordinary vocabulary.
CONTROL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_CONTROL = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))
#: Code points that Unicode reserves for a program's own use; text that is exchanged does not hold them.
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


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


def encode_chat(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    tokenize: Callable[..., list[int]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool | None = None,
) -> tuple[list[int], str]:
    """Return the token ids of the prompt, and its text.

    A control token is one only where the template wrote it. Those in the data are marked before rendering, and between
    the template's own control tokens everything is encoded as plain text, so that the ids are those of an ordinary
    rendering wherever the data holds none.
    """
    mark = _unused_mark(messages, tools)
    rendered = template.render(_marked(messages, mark), tools=_marked(tools, mark), enable_thinking=enable_thinking)
    ids: list[int] = []
    for text, control in _split_control(rendered):
        ids += tokenize(text.replace(mark, ""), special=False)
        ids += tokenize(control, special=True)
    return ids, rendered.replace(mark, "")


def _split_control(text: str) -> Iterator[tuple[str, str]]:
    """Pairs of a plain stretch and the control token behind it ("" at the end)."""
    at = 0
    for found in _CONTROL.finditer(text):
        yield text[at : found.start()], found.group()
        at = found.end()
    yield text[at:], ""


def _marked(value: Any, mark: str) -> Any:
    """A copy of the data in which `<|im_end|>` and its kind are broken by the mark."""
    if isinstance(value, str):
        return _CONTROL.sub(lambda found: "<" + mark + found.group()[1:], value)
    if isinstance(value, Mapping):
        return {_marked(key, mark): _marked(item, mark) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_marked(item, mark) for item in value]
    return value


def _unused_mark(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
    text = json.dumps([list(messages), list(tools or [])], ensure_ascii=False, default=str)
    for mark in _NONCHARACTERS:
        if mark not in text:
            return mark
    raise TemplateError("the messages hold every noncharacter of Unicode", "remove U+FDD0 to U+FDEF from them")
