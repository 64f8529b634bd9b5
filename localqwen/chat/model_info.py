"""What the chat layer needs to know of a loaded model: its template, tokenizer, thinking mode, presets, grammars."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from localqwen.chat.grammar import Grammars
from localqwen.chat.messages import ThinkingMode
from localqwen.chat.sampling import QWEN_DEFAULTS, Presets
from localqwen.chat.template import ChatTemplate
from localqwen.engines.engine import Engine
from localqwen.errors import EngineError, TemplateError

_PROBE = ({"role": "user", "content": "x"},)


class Tokenize(Protocol):
    """`Engine.tokenize`, as a function."""

    def __call__(self, text: str, *, special: bool, limit: int | None = None) -> list[int]: ...


@dataclass(frozen=True)
class ModelInfo:
    """What an answer needs to know of its model. `token_bytes` returns the bytes of every token by id, for logprobs;
    `load_ms` is how long opening took, in milliseconds."""

    name: str
    template: ChatTemplate
    tokenize: Tokenize
    thinking_mode: ThinkingMode
    context_length: int
    load_ms: float | None = None
    presets: Presets = QWEN_DEFAULTS
    grammars: Grammars | None = None
    token_bytes: Callable[[], Sequence[bytes]] | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer: its engine, and what the chat layer knows of it."""

    engine: Engine
    info: ModelInfo


def thinking_mode_of(template: ChatTemplate) -> ThinkingMode:
    """Return what a template shows of its model: it obeys `enable_thinking` ("switch"), always opens a think block
    ("always"), or does neither ("never")."""
    try:
        default, off = template.render(_PROBE), template.render(_PROBE, enable_thinking=False)
    except TemplateError:
        return "never"
    if default != off:
        return "switch"
    return "always" if default.rstrip().endswith("<think>") else "never"


def info_of(
    engine: Engine,
    name: str,
    *,
    thinking_mode: ThinkingMode | None = None,
    load_ms: float = 0,
    presets: Presets = QWEN_DEFAULTS,
) -> ModelInfo:
    """Return what an answer needs to know of an engine's model. `thinking_mode` None asks the template.

    Raises EngineError for a model without a chat template.
    """
    if not engine.chat_template:
        raise EngineError(
            f"{name} has no chat template", "use a model that was converted with its tokenizer_config.json"
        )
    template = ChatTemplate(engine.chat_template, engine.special_tokens)
    mode = thinking_mode or thinking_mode_of(template)
    words = functools.cache(engine.vocabulary)
    return ModelInfo(
        name,
        template,
        engine.tokenize,
        mode,
        engine.context_length,
        load_ms,
        presets,
        grammars=Grammars(lambda text: engine.tokenize(text, special=False), words, lambda: engine.stop_tokens),
        token_bytes=words,
    )
