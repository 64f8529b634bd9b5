"""What a request becomes before an engine sees it: the text of the model's template, and its token ids."""

from __future__ import annotations

from collections.abc import Sequence

from localqwen.chat.encoding import encode_chat
from localqwen.chat.messages import Message, Request
from localqwen.chat.model_info import ModelInfo
from localqwen.chat.thinking import resolve_thinking


def encode_request(
    request: Request, messages: Sequence[Message], model: ModelInfo, thinking: bool
) -> tuple[list[int], str]:
    """Return the token ids and the text of the prompt that these messages make with the tools and the thinking switch
    of the request. Raise TemplateError."""
    tools = [tool.to_json() for tool in request.tools] or None
    # A model that cannot switch never saw the variable; passing it would be a guess about its template.
    switch = thinking if model.thinking_mode == "switch" else None
    rendered = [message.to_json() for message in messages]
    return encode_chat(model.template, rendered, model.tokenize, tools=tools, enable_thinking=switch)


def count_prompt(request: Request, model: ModelInfo) -> int:
    """Return how many tokens the prompt of a request has, also where it is too long for the context."""
    thinking = resolve_thinking(request, model.thinking_mode, model.name)
    return len(encode_request(request, request.messages, model, thinking)[0])
