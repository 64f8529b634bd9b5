"""localqwen runs Qwen3 on the machine in front of you.

    import localqwen
    from localqwen import Message, Request, Text

    with localqwen.load("demo") as model:
        for event in model.stream(Request([Message("user", "What is 17 + 25?")])):
            if isinstance(event, Text):
                print(event.text, end="", flush=True)

Everything named in `__all__` is public and stable; it is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from localqwen._version import __version__ as __version__

if TYPE_CHECKING:
    from localqwen.chat.load import load as load
    from localqwen.chat.messages import Event as Event
    from localqwen.chat.messages import Finished as Finished
    from localqwen.chat.messages import JsonFormat as JsonFormat
    from localqwen.chat.messages import Message as Message
    from localqwen.chat.messages import Overrides as Overrides
    from localqwen.chat.messages import PrefillProgress as PrefillProgress
    from localqwen.chat.messages import Request as Request
    from localqwen.chat.messages import SamplingOverrides as SamplingOverrides
    from localqwen.chat.messages import Started as Started
    from localqwen.chat.messages import Text as Text
    from localqwen.chat.messages import Thinking as Thinking
    from localqwen.chat.messages import Tool as Tool
    from localqwen.chat.messages import ToolCall as ToolCall
    from localqwen.chat.messages import Working as Working
    from localqwen.chat.thinking import ParsedOutput as ParsedOutput
    from localqwen.chat.thinking import parse_output as parse_output
    from localqwen.errors import LocalqwenError as LocalqwenError

_MESSAGES = (
    "Event", "Finished", "JsonFormat", "Message", "Overrides", "PrefillProgress", "Request", "SamplingOverrides",
    "Started", "Text", "Thinking", "Tool", "ToolCall", "Working",
)  # fmt: skip
_PUBLIC = {
    **dict.fromkeys(_MESSAGES, "localqwen.chat.messages"),
    "load": "localqwen.chat.load",
    "ParsedOutput": "localqwen.chat.thinking",
    "parse_output": "localqwen.chat.thinking",
    "LocalqwenError": "localqwen.errors",
}
__all__ = ["__version__", *_PUBLIC]  # noqa: PLE0604  (the keys are strings)


#: Public modules that a user may reach after `import localqwen` alone, and what is imported with them.
_MODULES = {"chat": "localqwen.chat.template", "engines": "localqwen.engines"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        importlib.import_module(_MODULES[name])
        return globals()[name]
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'localqwen' has no attribute {name!r}")
