"""Where a repository can come from. Each source is a module with the same functions and a cache folder of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

from localqwen.errors import UsageError
from localqwen.models.cached import CachedRepository
from localqwen.models.listing import Listing, RemoteFile, Report

#: Name -> module. The first one is used unless the user says otherwise.
MODULES = {"hf": "localqwen.models.hub", "modelscope": "localqwen.models.modelscope"}


class Hub(Protocol):
    """The functions of a source; `hub` documents them."""

    def cache_dir(self) -> Path: ...
    def host(self) -> str: ...
    def cached(self, repo: str) -> CachedRepository: ...
    def listing(self, repo: str, revision: str | None = None) -> Listing: ...
    def state(self, listed: Listing, file: RemoteFile) -> int: ...
    def fetch(self, listed: Listing, file: RemoteFile, report: Report) -> Path: ...
    def remember(self, listed: Listing) -> None: ...


def hub(source: str) -> Hub:
    """Return the module of a source. Raise UsageError."""
    if source not in MODULES:
        raise UsageError(f"there is no source {source!r}", f"sources: {', '.join(MODULES)}")
    return cast(Hub, importlib.import_module(MODULES[source]))


def everywhere(repo: str) -> list[CachedRepository]:
    """Return the repository in each source's cache, whether it is there or not."""
    return [hub(source).cached(repo) for source in MODULES]
