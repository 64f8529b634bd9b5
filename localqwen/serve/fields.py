"""Read the JSON of a request: every field by name and type, with an error that names the field.

null means the same as a missing field. Unknown fields are ignored. A field that an API defines and that this server
cannot obey is refused; each API lists its own (`Fields.refuse`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from localqwen import json_text
from localqwen.engines.engine import SAMPLING_RANGES
from localqwen.errors import BadField

#: The most stop strings, and the characters of the longest: after every token, the thread that all answers share
#: searches for each.
MOST_STOPS, LONGEST_STOP = 64, 1000
#: The characters of a client's text, and how many names, that an error shows.
_SHOWN, _LISTED = 100, 20
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a whole number"}
_KINDS |= {float: "a number", type(None): "null"}


class Fields:
    """One JSON object of a request. `path` says where it is, as in `messages[0]`. Every reader returns None if the
    field is missing or null, and raises BadField if it has the wrong type."""

    def __init__(self, data: Any, path: str = "", within: Fields | None = None) -> None:
        """`within` is an object of the same request."""
        self.path = path
        self._allowance: list[int] = within._allowance if within is not None else [json_text.MOST_VALUES]
        if not isinstance(data, Mapping):
            raise BadField(path, f"must be an object, not {kind(data)}")
        self.data: Mapping[str, Any] = data

    def at(self, name: str) -> str:
        """Return the path of a field of this object, as in `messages[0].role`."""
        return f"{self.path}.{name}" if self.path else name

    def wrong(self, name: str, what: str, hint: str = "") -> BadField:
        """Return an error about one field; `what` continues the sentence after its name (`must be …`)."""
        return BadField(self.at(name), what, hint)

    def has(self, name: str) -> bool:
        """Return whether the field is given and is not null."""
        return self.data.get(name) is not None

    def text(self, name: str) -> str | None:
        """Return a string."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, f"must be a string, not {kind(value)}")
        return value

    def needed_text(self, name: str) -> str:
        """Return a string. Raise BadField if it is missing."""
        value = self.text(name)
        if value is None:
            raise self.wrong(name, "is missing")
        return value

    def flag(self, name: str) -> bool | None:
        """Return true or false."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, f"must be true or false, not {kind(value)}")
        return value

    def whole(self, name: str, low: int = -(2**63), high: int = 2**63 - 1) -> int | None:
        """Return a whole number between `low` and `high`; 20.0 is one too."""
        value = self._whole(name)
        if value is not None and not low <= value <= high:
            raise self.wrong(name, f"is {value:,}, it must be between {low:,} and {high:,}")
        return value

    def _whole(self, name: str) -> int | None:
        value = self.data.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON has one kind of number; some clients write 20.0
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.wrong(name, f"must be a whole number, not {kind(value)}")
        return value

    def number(self, name: str, low: float = -1e9, high: float = 1e9) -> float | None:
        """Return a number between `low` and `high`."""
        value = self._number(name)
        if value is None:
            return None
        if not low <= value <= high:  # NaN is outside too
            raise self.wrong(name, f"is {value}, it must be between {low:g} and {high:g}")
        return float(value)

    def _number(self, name: str) -> float | None:
        value = self.data.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self.wrong(name, f"must be a number, not {kind(value)}")
        return value

    def sampling(self, of: str, name: str | None = None) -> Any:
        """Return the value of the field `of` of `Sampling`, None if it is missing; `name` is what this API calls it."""
        name, bounds = name or of, SAMPLING_RANGES[of]
        value = self._whole(name) if bounds.whole else self._number(name)
        if value is not None and value not in bounds:
            raise self.wrong(name, f"is {value}, it must be {bounds}")
        return value if value is None or bounds.whole else float(value)

    def one_of(self, name: str, allowed: Sequence[str]) -> str | None:
        """Return a string that is one of `allowed`."""
        value = self.text(name)
        if value is not None and value not in allowed:
            raise self.wrong(name, f"is {shown(value)}, it must be one of {', '.join(allowed)}")
        return value

    def object(self, name: str) -> Fields | None:
        """Return the reader of an object inside this one."""
        return Fields(self.data[name], self.at(name), self) if self.has(name) else None

    def list(self, name: str) -> Sequence[Any] | None:
        """Return a list of any values."""
        value = self.data.get(name)
        if value is not None and not isinstance(value, list):
            raise self.wrong(name, f"must be a list, not {kind(value)}")
        return value

    def objects(self, name: str) -> Iterator[Fields]:
        """Yield a reader for each object of a list; none if the list is missing."""
        for index, item in enumerate(self.list(name) or ()):
            yield Fields(item, f"{self.at(name)}[{index}]", self)

    def json(self, name: str) -> Any:
        """Return the value of a string that contains JSON; control characters may stand in its strings.

        All such strings of a request together have as many values as its body may have.
        """
        data = self.needed_text(name).encode(errors="surrogatepass")
        try:
            value, count = json_text.parse(data, strict=False, allowance=self._allowance[0])
        except json_text.Refused as exc:
            raise self.wrong(name, str(exc)) from None
        self._allowance[0] -= count
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return the strings of a list, or a single string as a tuple; () if the field is missing."""
        value = self.data.get(name)
        if value is None:
            return ()
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise self.wrong(name, "must be a string or a list of strings")
        return tuple(listed)

    def stops(self, name: str) -> tuple[str, ...]:
        """Return stop strings; at most MOST_STOPS, of at most LONGEST_STOP characters."""
        found = self.texts(name)
        if len(found) > MOST_STOPS:
            raise self.wrong(name, f"has {len(found):,} strings, at most {MOST_STOPS} are allowed")
        if any(len(stop) > LONGEST_STOP for stop in found):
            raise self.wrong(name, f"has a string of more than {LONGEST_STOP:,} characters, which is the limit")
        return found

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Raise BadField if one of these fields is set: they would change the answer and cannot be obeyed. `reasons`
        maps the name of a field to the reason. A field that is null, false or empty does not count as set."""
        for name, why in reasons.items():
            if self.data.get(name):
                raise self.wrong(name, why)


def shown(text: str | None) -> str:
    """Return a client's text as an error quotes it, cut if it is long."""
    return repr(text) if text is None or len(text) <= _SHOWN else repr(f"{text[:_SHOWN]}…")


def listed(names: Collection[str]) -> str:
    """Return names as an error lists them: the first of them if they are many."""
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(shown(name)[1:-1] for name in itertools.islice(names, _LISTED)) + more


def kind(value: Any) -> str:
    """Return the type of a JSON value in words, as in "a list"."""
    return _KINDS.get(type(value), type(value).__name__)
