"""How much one rendering of a template may make: characters, items, nesting.

Sizes are counted in characters. A character takes up to four bytes of memory, a small object about as much as ITEM of
them.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, KeysView, Mapping, ValuesView
from itertools import islice
from typing import Any, NamedTuple

from jinja2.utils import Namespace

#: The most characters of one text, and of the prompt.
MAX_TEXT = 32 << 20
#: The most characters of all texts that one rendering makes, also of those that it drops.
MAX_TOTAL = 256 << 20
#: The most items of one list.
MAX_ITEMS = 1 << 20
#: The most values and nesting of a container that is printed, compared, sorted or made to JSON. A value counts each
#: time that it occurs: a list that holds the same list twice, thirty times over, would print a billion values.
MAX_VALUES, MAX_NESTING = 1 << 20, 500
#: The most bits of a whole number.
MAX_BITS = 1 << 16
#: What an object counts beside its characters.
ITEM = 16

#: Types of values that no operation takes long for, apart from the length of a text.
SCALARS = frozenset({str, int, float, bool, type(None)})
_COLLECTIONS = (list, tuple, set, frozenset, ItemsView, KeysView, ValuesView)


class LimitReached(Exception):
    """A template wants to make more than it may. The message continues "the chat template …"."""


def joined(pieces: Iterable[str]) -> str:
    """Return pieces of text joined, which are made one by one. Raise LimitReached as soon as they are too many."""
    pieces, chunks, size = iter(pieces), [], 0
    while chunk := list(islice(pieces, 1024)):
        size += sum(map(len, chunk))
        if size > MAX_TEXT:
            raise LimitReached(f"makes more than {MAX_TEXT:,} characters at once")
        chunks.append("".join(chunk))
    return "".join(chunks)


class Weight(NamedTuple):
    """What a container holds: how many values at all depths, and the characters of its texts."""

    values: int
    characters: int

    @property
    def as_text(self) -> int:
        """Return the most characters of the container as Python or JSON writes it: a character may become
        `\\U0010ffff` or `\\ud83d\\ude00`, a value has a number or quotation marks and a comma."""
        return 12 * self.characters + 2 * ITEM * self.values


class Budget:
    """What is left of MAX_TOTAL for one rendering."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_TOTAL

    def require(self, size: int) -> None:
        """Raise LimitReached if an operation that makes a value of this size is too large."""
        if size > MAX_TEXT:
            raise LimitReached(f"makes more than {MAX_TEXT:,} characters at once")
        if size > self.left:
            raise LimitReached(f"makes more than {MAX_TOTAL:,} characters in all")

    def spend(self, size: int) -> None:
        """Count a new value of this size. Raise LimitReached as `require` does."""
        if size > MAX_TEXT or size > self.left:
            self.require(size)
        self.left -= size

    def spend_items(self, count: int) -> None:
        """Count a new list of so many new objects. Raise LimitReached."""
        if count > MAX_ITEMS:
            raise LimitReached(f"makes a list of more than {MAX_ITEMS:,} items")
        self.left -= ITEM * count
        self.require(0)

    def made(self, value: Any) -> Any:
        """Return a value that an operation has made, after counting it."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.spend_items(len(value))
        return value

    def items(self, values: Iterable[Any]) -> list[Any]:
        """Return a list of the values. Raise LimitReached if there are too many."""
        found = list(islice(values, MAX_ITEMS + 1))
        self.spend_items(len(found))
        return found


def weigh(value: Any, max_values: int = MAX_VALUES) -> Weight:
    """Return what a value holds. Raise LimitReached if it holds too much or is nested too deep.

    Level by level, so that neither nesting nor a value that occurs many times takes long.
    """
    values = characters = 0
    level = [value]
    for _ in range(MAX_NESTING):
        values += len(level)
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                characters += len(item)
            elif kind not in SCALARS:
                if kind is dict:
                    below += item
                    below += item.values()
                else:
                    below += item if kind is list else _held(item)
                if values + len(below) > max_values:
                    raise LimitReached(f"works on a value that holds more than {max_values:,} others")
        if characters > MAX_TEXT:
            raise LimitReached(f"works on a value with more than {MAX_TEXT:,} characters")
        if not below:
            return Weight(values, characters)
        level = below
    raise LimitReached(f"works on a value that is nested more than {MAX_NESTING} deep")


def _held(value: Any) -> Iterable[Any]:
    """Return what printing or comparing a value looks at."""
    if isinstance(value, str):
        return (str(value),)
    if isinstance(value, _COLLECTIONS):
        return list(value)
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    if isinstance(value, Namespace):
        return (value._Namespace__attrs,)
    return ()


def light(value: Any) -> Any:
    """Return the value. Raise LimitReached if C code would walk it for long."""
    if type(value) not in SCALARS:
        weigh(value)
    return value


def text_size(value: Any) -> int:
    """Return the most characters of a value as text. Raise LimitReached if it cannot be printed."""
    return len(value) if isinstance(value, str) else weigh(value).as_text
