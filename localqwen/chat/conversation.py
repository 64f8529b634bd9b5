"""What has been said and set, as a value, and what each record of a log changes in it. No files, no engines.

It does not know what the settings mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from localqwen.chat.messages import Message

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """What a log says. `partial` is an answer that has begun to stream and is not finished."""

    model: str
    created: str = ""
    name: str = ""
    system: str = ""
    messages: tuple[Message, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    partial: Message | None = None

    @property
    def last_question(self) -> int:
        """Return the index of the last user message, -1 where there is none."""
        return max((i for i, message in enumerate(self.messages) if message.role == "user"), default=-1)

    @property
    def unanswered(self) -> bool:
        """Return whether the last message is a question without an answer."""
        return bool(self.messages) and self.messages[-1].role == "user"


def apply(conversation: Conversation, record: Record) -> Conversation:
    """Return the conversation after one record. Records of unknown types (a later minor version) change nothing."""
    match record.get("type"):
        case "message":
            return _with_message(conversation, Message.from_json(record["message"]))
        case "partial":
            return replace(conversation, partial=_longer(conversation.partial, record))
        case "undo":  # the last question and everything after it
            return replace(
                conversation, messages=conversation.messages[: max(0, conversation.last_question)], partial=None
            )
        case "retry":  # everything after the last question
            return replace(conversation, messages=conversation.messages[: conversation.last_question + 1], partial=None)
        case "clear":
            return replace(conversation, messages=(), partial=None)
        case "system":
            return replace(conversation, system=str(record["text"]))
        case "settings":
            return replace(conversation, settings={**conversation.settings, **record["values"]})
        case "name":
            return replace(conversation, name=str(record["name"]))
        case "model":
            return replace(conversation, model=str(record["model"]))
    return conversation


def _with_message(conversation: Conversation, message: Message) -> Conversation:
    """A finished answer takes the place of its pieces; pieces before a question are an answer that was cut off."""
    unfinished = conversation.partial if message.role == "user" else None
    earlier = (*conversation.messages, unfinished) if unfinished else conversation.messages
    return replace(conversation, messages=(*earlier, message), partial=None)


def _longer(partial: Message | None, record: Record) -> Message:
    before = partial or Message("assistant", "")
    thinking = (before.thinking or "") + str(record.get("thinking", ""))
    return replace(before, content=before.content + str(record.get("content", "")), thinking=thinking or None)
