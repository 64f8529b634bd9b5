"""Stop strings: text is held back while it could be the beginning of one."""

from __future__ import annotations

from collections.abc import Sequence

from localqwen.chat.toolcalls import partial_tag


class StopStrings:
    """Cuts the text of an answer before the first stop string. `hit` is the stop string that came."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._pending = ""
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """Take more text. Return what may be shown now."""
        if not self._stops:
            return text
        text = self._pending + text
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            first, self.hit = min(found, key=lambda each: each[0])
            self._pending = ""
            return text[:first]
        keep = max(partial_tag(text, stop) for stop in self._stops)
        shown, self._pending = text[: len(text) - keep], text[len(text) - keep :]
        return shown

    def finish(self) -> str:
        """Return what was held back, when no more text comes."""
        rest, self._pending = self._pending, ""
        return rest
