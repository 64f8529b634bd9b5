"""What a request becomes before an engine sees it: the text of the model's template, and its token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from localqwen.chat.encoding import Part, chat_parts, encode_parts
from localqwen.chat.messages import Message, Request
from localqwen.chat.model_info import ModelInfo
from localqwen.chat.thinking import resolve_thinking
from localqwen.errors import UsageError

#: What of preparing a request begins: compiling its grammar, rendering the template, reading the text into tokens.
Stage = Literal["grammar", "template", "text"]
OnStage = Callable[[Stage], None]


def unnoticed(_stage: Stage) -> None:
    """Do nothing: nobody watches the stages."""


def render_request(
    request: Request, messages: Sequence[Message], model: ModelInfo, thinking: bool, *, on_stage: OnStage = unnoticed
) -> list[Part]:
    """Return the prompt that these messages make with the tools and the thinking switch of the request; of a request
    to continue a text, that text. Raise TemplateError, and UsageError for an empty text."""
    if request.prompt is not None:
        if not request.prompt:
            raise UsageError("the prompt is empty", "give at least one character to continue")
        return [Part(request.prompt, control=False)]
    on_stage("template")
    tools = [tool.to_json() for tool in request.tools] or None
    # A model that cannot switch never saw the variable; passing it would be a guess about its template.
    switch = thinking if model.thinking_mode == "switch" else None
    rendered = [message.to_json() for message in messages]
    return chat_parts(model.template, rendered, tools=tools, enable_thinking=switch)


def count_prompt(request: Request, model: ModelInfo, *, on_stage: OnStage = unnoticed) -> int:
    """Return how many tokens the prompt of a request has, also where it is too long for the context."""
    thinking = request.prompt is None and resolve_thinking(request, model.thinking_mode, model.name)
    parts = render_request(request, request.messages, model, thinking, on_stage=on_stage)
    on_stage("text")
    return len(encode_parts(parts, model.tokenize))
