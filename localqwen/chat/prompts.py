"""What a request becomes before an engine sees it: the text of the model's template, and its token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from localqwen.chat.grammar import Grammars
from localqwen.chat.messages import Message, Request, ThinkingMode
from localqwen.chat.sampling import MAKERS, Presets
from localqwen.chat.template import ChatTemplate, encode_chat
from localqwen.chat.thinking import resolve_thinking


class Tokenize(Protocol):
    def __call__(self, text: str, *, special: bool) -> list[int]: ...


@dataclass(frozen=True)
class ModelFacts:
    """What an answer needs to know of its model. `token_bytes` gives the bytes of every token, for logprobs."""

    name: str
    template: ChatTemplate
    tokenize: Tokenize
    thinking_mode: ThinkingMode
    context_length: int
    load_ms: float | None = None
    presets: Presets = MAKERS
    grammars: Grammars | None = None
    token_bytes: Callable[[], Sequence[bytes]] | None = None


def encode_request(
    request: Request, messages: Sequence[Message], model: ModelFacts, thinking: bool
) -> tuple[list[int], str]:
    """Token ids and text of the prompt that these messages make with the tools and the switch of the request."""
    tools = [tool.to_json() for tool in request.tools] or None
    # A model that cannot switch never saw the variable; passing it would be a guess about its template.
    switch = thinking if model.thinking_mode == "switch" else None
    rendered = [message.to_json() for message in messages]
    return encode_chat(model.template, rendered, model.tokenize, tools=tools, enable_thinking=switch)


def count_prompt(request: Request, model: ModelFacts) -> int:
    """Tokens of the prompt that `Reply` would make, be it too long for the context or not."""
    thinking = resolve_thinking(request, model.thinking_mode, model.name)
    return len(encode_request(request, request.messages, model, thinking)[0])
