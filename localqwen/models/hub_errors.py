"""What can go wrong with the hub and its cache, as our errors: one table from the client's exceptions."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from localqwen.errors import HubError, HubRefused, LocalqwenError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AGAIN = "run the same command again; what came is kept, and it is resumed from there"
_TOKEN = "set HF_TOKEN, or log in: hf auth login"


class WrongLength(Exception):
    """The body of a response is shorter or longer than the file."""


def is_transient(error: Exception) -> bool:
    """Return whether another try may help: the connection failed, or the server says that it is its own fault."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, (httpx2.TransportError, WrongLength))


@contextlib.contextmanager
def mapped(repo: str, file: str = "") -> Iterator[None]:
    """Raise a LocalqwenError for everything that the client, the network and the disk raise inside."""
    import httpx2

    what = f"{file} of {repo}" if file else repo
    try:
        yield
    except LocalqwenError:
        raise
    except (OSError, httpx2.HTTPError, WrongLength) as exc:
        raise _ours(exc, what) from exc
    except (ValueError, TypeError, KeyError) as exc:
        raise HubError(
            f"{_host()} did not answer like a hub for {what}: {_first_line(exc)}",
            "check HF_ENDPOINT, and whether a proxy or a login page of the network answers instead",
        ) from exc


def _ours(error: Exception, what: str) -> LocalqwenError:
    from huggingface_hub import errors

    match error:
        case errors.OfflineModeIsEnabled():
            return HubError(f"HF_HUB_OFFLINE is set, and {what} is not on this machine", "unset HF_HUB_OFFLINE")
        case errors.HfHubHTTPError():
            return _refused(error, what)
        case errors.LocalEntryNotFoundError() if isinstance(error.__cause__, Exception):
            return _ours(error.__cause__, what)
        case WrongLength():
            return HubError(f"{_host()} sends {what} with a wrong length: {error}", _AGAIN)
        case OSError() if error.errno is not None and not isinstance(error, ConnectionError):
            return _disk(error, what)
    return HubError(f"the connection to {_host()} failed for {what}: {_first_line(error)}", _reachable(error))


def _refused(error: Exception, what: str) -> LocalqwenError:
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status = error.response.status_code
    match error:
        case errors.GatedRepoError():
            return HubRefused(
                f"{what} is gated: {_host()} wants to know who takes it ({status})", f"ask there; {_TOKEN}"
            )
        case errors.RevisionNotFoundError():
            return HubRefused(f"there is no such revision of {what} on {_host()}", "leave out --revision")
        case errors.EntryNotFoundError():
            return HubRefused(f"there is no {what} on {_host()}", "check the name on its page")
    match status:
        case 401:
            return HubRefused(f"{what} is not on {_host()}, or needs a token (401)", f"check the name; {_TOKEN}")
        case 403:
            return HubRefused(f"{_host()} forbids {what} to this token (403)", f"ask there for access; {_TOKEN}")
        case 404:
            return HubRefused(f"{what} is not on {_host()} (404)", "check the name; localqwen list --all")
        case 429:
            return HubError(f"{_host()} answers that these were too many requests (429)", f"wait a while; {_TOKEN}")
    return HubError(f"{_host()} answers {status} for {what}", _AGAIN)


def _disk(error: OSError, what: str) -> StorageError:
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in _FULL:
        return StorageError(
            f"the disk is full while loading {what}{where}", f"make room (localqwen list, localqwen rm), then {_AGAIN}"
        )
    return StorageError(
        f"cannot write {what}{where}: {error.strerror}",
        "choose a folder that can be written: HF_HOME=…, LOCALQWEN_HOME=…",
    )


def _reachable(error: Exception) -> str:
    import httpx2

    if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
        return "check the network, the proxy settings and HF_ENDPOINT, then run the same command again"
    return _AGAIN


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _host() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT).partition("://")[2]
