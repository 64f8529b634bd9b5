"""What of the next turn's prompt is known when an answer has ended.

Qwen3's template drops the thinking of earlier answers, so the cached prefix ends where the last answer began, and the
next turn reads that answer again before it can reply. While nobody waits, an engine can read it: `next_turn` gives the
ids, `Engine.start(…, max_tokens=0)` computes them.
"""

from __future__ import annotations

from localqwen.chat.messages import Message, Request, Role
from localqwen.chat.reply import ModelFacts, encode_request
from localqwen.engines import common_prefix


def next_turn(request: Request, answer: Message, model: ModelFacts, *, thinking: bool) -> tuple[int, ...]:
    """The ids with which every next turn begins: the history with this answer as the template will show it, up to where
    the next user text (or, after calls, the first tool result) begins.

    The template is asked, not imitated: two prompts that differ in that text alone agree exactly so far. Raises
    TemplateError, and gives () for a request without messages.
    """
    if request.prompt is not None or not request.messages:
        return ()
    role: Role = "tool" if answer.tool_calls else "user"
    turns = [[*request.messages, answer, Message(role, text)] for text in ("a", "1")]
    first, second = (encode_request(request, turn, model, thinking)[0] for turn in turns)
    return tuple(first[: common_prefix(first, second)])
