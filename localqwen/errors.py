"""Every error that a user can meet: a message that names the thing and the numbers, and a hint what to do next.

    LocalqwenError
    ├── UsageError              the command or request is malformed                 exit 2, HTTP 400
    │   ├── ConfigError         the config file or an environment variable is wrong
    │   └── BadField            a field of a request's body is missing or wrong
    ├── ModelNotFound           no model of that name, no file at that path         exit 1, HTTP 404
    │   └── NotPulled           a known model whose files are not on disk
    ├── HubError                a hub refused, failed or could not be reached       exit 1, HTTP 502
    │   ├── HubRefused          no such repository or file, or no right to it
    │   └── DamagedFile         a file is not what the hub declared
    ├── StorageError            the disk is full, or a folder cannot be written     exit 1, HTTP 507
    ├── Unsupported             the model or engine cannot do that                  exit 1, HTTP 400
    │   ├── ContextTooLong      the prompt does not fit the context
    │   ├── NotEnoughMemory     the machine does not have the memory                exit 1, HTTP 507
    │   └── FormatError         a model's file is damaged or of another kind; also a CheckpointError
    ├── TemplateError           the model's chat template failed on these messages  exit 1, HTTP 400
    ├── SessionError            a saved conversation is missing or unreadable       exit 1, HTTP 400
    ├── EngineUnavailable       no engine is installed, or none runs on this CPU    exit 1, HTTP 503
    ├── Refused                 the server does not take this request               exit 1, HTTP 400
    │   ├── WrongKey            without the server's API key                        exit 1, HTTP 401
    │   ├── WrongHost           an unknown Host, or a page of an unknown Origin     exit 1, HTTP 403
    │   ├── TooSlow             a body that did not come in time                    exit 1, HTTP 408
    │   ├── TooLarge            a body beyond the limit                             exit 1, HTTP 413
    │   └── Busy                all runs are taken and the queue is full            exit 1, HTTP 503
    ├── EngineError             an engine failed while loading or decoding          exit 1, HTTP 500
    │   ├── ProcessEnded        the process of a served model died, or was ended    exit 1, HTTP 503
    │   └── SetAside            a served model whose process died again and again   exit 1, HTTP 503
    └── ConversionError         a conversion could not finish                       exit 1, HTTP 500
        ├── CheckpointError     the source is not a readable checkpoint
        └── OutputError         the target exists, or cannot be written

Foreign exceptions are mapped to these where the foreign library is imported, with `raise ... from exc`.
"""

from __future__ import annotations


class LocalqwenError(Exception):
    """An error for the user: `message` says what happened, `hint` what to run or change next (may be empty)."""

    exit_code = 1
    http_status = 500

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LocalqwenError):
    """The command or request is malformed."""

    exit_code = 2
    http_status = 400


class ConfigError(UsageError):
    """The configuration file or an environment variable is wrong."""


class BadField(UsageError):
    """A field of a request's body is missing or wrong. `field` is its path, as in `messages[0].role`, "" the body."""

    def __init__(self, field: str, what: str, hint: str = "") -> None:
        super().__init__(f'field "{field}" {what}' if field else f"the body {what}", hint)
        self.field = field


class ModelNotFound(LocalqwenError):
    """There is no model of that name, or no file at that path."""

    http_status = 404


class NotPulled(ModelNotFound):
    """The model is known, but its files are not on disk."""


class HubError(LocalqwenError):
    """A hub refused, failed or could not be reached."""

    http_status = 502


class HubRefused(HubError):
    """The hub has no such repository or file, or grants no right to it."""


class DamagedFile(HubError):
    """A file is not what the hub declared."""


class StorageError(LocalqwenError):
    """The disk is full, or a folder cannot be written."""

    http_status = 507


class Unsupported(LocalqwenError):
    """The model or engine cannot do what the user wants."""

    http_status = 400


class ContextTooLong(Unsupported):
    """The prompt leaves no room for one generated token. It is raised before any work. Where `exact` is False, the
    prompt was not read to its end, and has at least `prompt_tokens`."""

    def __init__(self, prompt_tokens: int, context_length: int, *, exact: bool = True) -> None:
        super().__init__(
            f"the prompt has {'' if exact else 'at least '}{prompt_tokens:,} tokens, "
            f"the context holds {context_length:,}",
            "shorten the prompt or the conversation, or raise the context with --ctx",
        )
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        self.exact = exact


class NotEnoughMemory(Unsupported):
    """The machine does not have the memory."""

    http_status = 507


class TemplateError(LocalqwenError):
    """The model's chat template failed on these messages."""

    http_status = 400


class SessionError(LocalqwenError):
    """A saved conversation is missing or unreadable."""

    http_status = 400


class EngineUnavailable(LocalqwenError):
    """No engine is installed, or none runs on this CPU."""

    http_status = 503


class Refused(LocalqwenError):
    """The server does not take this request."""

    http_status = 400


class WrongKey(Refused):
    """The request comes without the server's API key."""

    http_status = 401


class WrongHost(Refused):
    """The Host header is unknown, or the request comes from a page of an unknown Origin."""

    http_status = 403


class TooSlow(Refused):
    """The body of a request did not come in time."""

    http_status = 408


class TooLarge(Refused):
    """The body of a request is larger than the limit."""

    http_status = 413


class Busy(Refused):
    """All runs are taken and the queue is full, or the server stops. `retry_after` is when to retry, in seconds."""

    http_status = 503

    def __init__(self, message: str, hint: str = "", *, retry_after: int = 1) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class EngineError(LocalqwenError):
    """An engine failed while loading or decoding."""


class ProcessEnded(EngineError):
    """The process of a model that the server had loaded died, or was ended because it did not answer."""

    http_status = 503


class SetAside(EngineError):
    """The process of a model died again and again: the server does not start it any more."""

    http_status = 503


class ConversionError(LocalqwenError):
    """A conversion could not finish."""


class CheckpointError(ConversionError):
    """The source is not a readable checkpoint."""


class FormatError(Unsupported, CheckpointError):
    """A file of a model is damaged or of another kind. Running and converting meet the same damaged file: for the
    first it is Unsupported, for the second a ConversionError."""


class OutputError(ConversionError):
    """The target exists, or cannot be written."""
