"""Every error a user can meet: a message that names the thing and the numbers, and a hint that says what to do next.

    LocalqwenError
    ├── UsageError              the command or request is malformed                 exit 2, HTTP 400
    │   ├── ConfigError         the config file or an environment variable is wrong
    │   └── BadField            a field of a request's body is missing or wrong
    ├── ModelNotFound           no model of that name, no file at that path         exit 1, HTTP 404
    │   └── NotPulled           a model that we know, but its files are not here
    ├── HubError                a hub refused, failed or could not be reached       exit 1, HTTP 502
    │   ├── HubRefused          no such repository or file, or no right to it
    │   └── DamagedFile         a file is not what the hub declared
    ├── StorageError            the disk is full, or a folder cannot be written     exit 1, HTTP 507
    ├── Unsupported             the model or engine cannot do what was asked        exit 1, HTTP 400
    │   ├── ContextTooLong      the prompt does not fit the context
    │   ├── NotEnoughMemory     the machine does not have the memory                exit 1, HTTP 507
    │   └── FormatError         a file of a model is damaged or of another kind; also a CheckpointError
    ├── TemplateError           the model's chat template failed on these messages  exit 1, HTTP 400
    ├── SessionError            a saved conversation is missing or unreadable       exit 1, HTTP 400
    ├── EngineUnavailable       no engine is installed, or none runs on this CPU    exit 1, HTTP 503
    ├── Refused                 the server does not take this request               exit 1, HTTP 400
    │   ├── WrongKey            without the server's API key                        exit 1, HTTP 401
    │   ├── WrongHost           from a page, or under a name, that is not ours      exit 1, HTTP 403
    │   ├── TooSlow             a body that did not come                            exit 1, HTTP 408
    │   ├── TooLarge            a body beyond the limit                             exit 1, HTTP 413
    │   └── Busy                all runs are taken and the queue is full            exit 1, HTTP 503
    ├── EngineError             an engine failed while loading or decoding          exit 1, HTTP 500
    └── ConversionError         a conversion could not finish                       exit 1, HTTP 500
        ├── CheckpointError     the source is not a checkpoint that we can read
        └── OutputError         the target exists, or cannot be written

Foreign exceptions are mapped to these where the foreign library is imported, with `raise ... from exc`.
"""

from __future__ import annotations


class LocalqwenError(Exception):
    """`message` says what happened, `hint` what to run or change next (may be empty)."""

    exit_code = 1
    http_status = 500

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LocalqwenError):
    exit_code = 2
    http_status = 400


class ConfigError(UsageError):
    pass


class BadField(UsageError):
    """`field` is its path in the body, as in `messages[0].role`; "" is the body itself."""

    def __init__(self, field: str, what: str, hint: str = "") -> None:
        super().__init__(f'field "{field}" {what}' if field else f"the body {what}", hint)
        self.field = field


class ModelNotFound(LocalqwenError):
    http_status = 404


class NotPulled(ModelNotFound):
    pass


class HubError(LocalqwenError):
    http_status = 502


class HubRefused(HubError):
    pass


class DamagedFile(HubError):
    pass


class StorageError(LocalqwenError):
    http_status = 507


class Unsupported(LocalqwenError):
    http_status = 400


class ContextTooLong(Unsupported):
    """Raised before any work: the prompt leaves no room for one generated token."""

    def __init__(self, prompt_tokens: int, context_length: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens:,} tokens, the context holds {context_length:,}",
            "shorten the prompt or the conversation, or raise the context with --ctx",
        )
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length


class NotEnoughMemory(Unsupported):
    http_status = 507


class TemplateError(LocalqwenError):
    http_status = 400


class SessionError(LocalqwenError):
    http_status = 400


class EngineUnavailable(LocalqwenError):
    http_status = 503


class Refused(LocalqwenError):
    http_status = 400


class WrongKey(Refused):
    http_status = 401


class WrongHost(Refused):
    http_status = 403


class TooSlow(Refused):
    http_status = 408


class TooLarge(Refused):
    http_status = 413


class Busy(Refused):
    """`retry_after` is seconds."""

    http_status = 503

    def __init__(self, message: str, hint: str = "", *, retry_after: int = 1) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class EngineError(LocalqwenError):
    pass


class ConversionError(LocalqwenError):
    pass


class CheckpointError(ConversionError):
    pass


class FormatError(Unsupported, CheckpointError):
    """Raised by the readers of file formats. Running a model and converting one meet the same damaged file: for the
    first it is Unsupported, for the second a ConversionError."""


class OutputError(ConversionError):
    pass
