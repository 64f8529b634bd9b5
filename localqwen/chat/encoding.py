"""A rendered chat template as token ids. What users and tools write is data: control tokens typed there are encoded as
the text they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from localqwen.chat.template import ChatTemplate
from localqwen.errors import ContextTooLong, TemplateError, UsageError

#: Qwen3's control tokens (`special: true` in tokenizer.json). Other tags are ordinary vocabulary.
CONTROL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_CONTROL = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))
#: Code points that Unicode reserves for a program's own use; text that is exchanged does not hold them.
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


#: Characters of a prompt that is counted exactly, however few tokens the context holds.
COUNTED_EXACTLY = 1 << 18


class Part(NamedTuple):
    """A stretch of a prompt: plain text, or a control token that the template wrote."""

    text: str
    control: bool


def chat_parts(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool | None = None,
) -> list[Part]:
    """Return the rendered prompt, cut at the control tokens that the template wrote. Those in the data are marked
    before rendering, so that they stay text. Raise TemplateError, and UsageError for data that is nested too deeply."""
    try:
        mark = _unused_mark(messages, tools)
        marked, marked_tools = _marked(messages, mark), _marked(tools, mark)
    except RecursionError as exc:
        raise UsageError("the messages or tools are nested too deeply", "flatten their JSON") from exc
    rendered = template.render(marked, tools=marked_tools, enable_thinking=enable_thinking)
    return [Part(part.text.replace(mark, ""), part.control) for part in _split_control(rendered)]


def encode_parts(
    parts: Sequence[Part], tokenize: Callable[..., list[int]], *, context_length: int | None = None
) -> list[int]:
    """Return the ids of a prompt: between its control tokens everything is plain text, so that the ids are those of an
    ordinary rendering wherever the data holds no control tokens.

    With a `context_length`, raise ContextTooLong for a long prompt as soon as it is known to have more ids.
    """
    ids: list[int] = []
    if context_length is None or sum(len(part.text) for part in parts) <= COUNTED_EXACTLY:
        for part in parts:
            ids += tokenize(part.text, special=part.control)
        return ids
    for part in parts:
        ids += tokenize(part.text, special=part.control, limit=context_length - len(ids))
        if len(ids) > context_length:
            raise ContextTooLong(len(ids), context_length, exact=False)
    return ids


def encode_chat(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    tokenize: Callable[..., list[int]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    enable_thinking: bool | None = None,
) -> tuple[list[int], str]:
    """Return the token ids of the prompt, and its text. A control token is one only where the template wrote it."""
    parts = chat_parts(template, messages, tools=tools, enable_thinking=enable_thinking)
    return encode_parts(parts, tokenize), text_of(parts)


def text_of(parts: Sequence[Part]) -> str:
    """Return the prompt as text."""
    return "".join(part.text for part in parts)


def _split_control(text: str) -> Iterator[Part]:
    """Cut a text at its control tokens. Two control tokens have no empty text between them."""
    at = 0
    for found in _CONTROL.finditer(text):
        if at < found.start():
            yield Part(text[at : found.start()], control=False)
        yield Part(found.group(), control=True)
        at = found.end()
    if at < len(text):
        yield Part(text[at:], control=False)


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
