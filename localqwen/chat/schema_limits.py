"""How large a JSON schema may be that an answer must follow. llguidance compiles schemas of any size: the time grows
faster than some of them do, and one that is nested too deeply ends the process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localqwen.errors import UsageError

#: Tools of which an answer may or must call one.
MOST_TOOLS = 1_000
#: Characters of a grammar: the schemas of all tools together, as JSON.
LARGEST_GRAMMAR = 500_000
#: Alternatives in one place of a schema, or properties of one object. Past 2,000 alternatives llguidance gives up in
#: the middle of an answer (LLParserLimits.max_items_in_row).
MOST_BRANCHES = 2_000
#: Lists and objects inside each other, through references too. llguidance takes up to 3.5 KB of stack for each.
DEEPEST = 500

_BRANCHING = ("properties", "patternProperties", "anyOf", "oneOf", "allOf", "prefixItems")


def check_tools(count: int) -> None:
    """Raise UsageError for more tools than a grammar holds."""
    if count > MOST_TOOLS:
        raise UsageError(
            f"the answer must be able to call {count:,} tools, at most {MOST_TOOLS:,} are possible",
            'give fewer tools, or let the model choose freely with tool_choice "auto"',
        )


def check_grammar(source: str) -> None:
    """Raise UsageError for a grammar that is too large."""
    if len(source) > LARGEST_GRAMMAR:
        raise UsageError(
            f"the schemas that the answer must follow have {len(source):,} characters, "
            f"at most {LARGEST_GRAMMAR:,} are possible",
            "give fewer tools or a smaller schema",
        )


def check_schema(schema: Any) -> None:
    """Raise UsageError for a schema with too many branches in one place, or nested too deeply."""
    graph = _Graph(schema)
    for node in graph.nodes:
        _check_branches(node)
    if graph.depth() > DEEPEST:
        raise UsageError(
            f"the JSON schema is nested {graph.depth():,} levels deep, at most {DEEPEST} are possible",
            "flatten the schema, or let fewer of its definitions refer to each other",
        )


def _check_branches(node: Any) -> None:
    if not isinstance(node, Mapping):
        return
    for key in _BRANCHING:
        branches = node.get(key)
        count = len(branches) if isinstance(branches, Mapping) else _alternatives(branches)
        if count > MOST_BRANCHES:
            raise UsageError(
                f'"{key}" of the JSON schema has {count:,} branches, at most {MOST_BRANCHES:,} are possible',
                "simplify that schema",
            )


def _alternatives(branches: Any) -> int:
    """Return how many there are besides plain values, which llguidance joins to one."""
    if not isinstance(branches, list | tuple):
        return 0
    return sum(not (isinstance(branch, Mapping) and branch.keys() & {"const", "enum"}) for branch in branches)


class _Graph:
    """The lists and objects of a schema: each leads to those in it, and to those that it refers to."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._targets: dict[str, Any] = {}  # by reference; None if it is not found in the schema itself
        self._circular = False
        self._heights = self._measured(follow=True)
        self.nodes = [node for node, _ in self._heights.values()]

    def depth(self) -> int:
        """Return how many levels llguidance may go down. It follows each reference once. Where references form a
        circle, or lead to an unknown place, the order decides, and this is the most that it can be."""
        if not self._circular and None not in self._targets.values():
            return self._heights[id(self._schema)][1]
        apart = self._measured(follow=False)
        whole = apart[id(self._schema)][1]
        return whole + sum(whole if node is None else apart[id(node)][1] for node in self._targets.values())

    def _measured(self, *, follow: bool) -> dict[int, tuple[Any, int]]:
        """Return each node, by its identity, with the length of the longest path down from it. Depth first, without
        recursion: a node has length 0 as long as the path leads through it."""
        known: dict[int, tuple[Any, int]] = {id(self._schema): (self._schema, 0)}
        path = [(self._schema, iter(self._next(self._schema, follow)), [1])]
        while path:
            node, following, lengths = path[-1]
            child = next(following, None)
            if child is None:
                path.pop()
                known[id(node)] = (node, max(lengths))
                if path:
                    path[-1][2].append(max(lengths) + 1)
            elif id(child) in known:
                length = known[id(child)][1]
                self._circular = self._circular or not length
                lengths.append(length + 1)
            else:
                known[id(child)] = (child, 0)
                path.append((child, iter(self._next(child, follow)), [1]))
        return known

    def _next(self, node: Any, follow: bool) -> list[Any]:
        reference = node.get("$ref") if follow and isinstance(node, Mapping) else None
        target = self._target(reference) if isinstance(reference, str) else None
        return _inside(node) + ([] if target is None else [target])

    def _target(self, reference: str) -> Any:
        """Return what a reference such as `#/$defs/point` names."""
        if reference not in self._targets:
            self._targets[reference] = _found(self._schema, reference)
        return self._targets[reference]


def _found(schema: Any, reference: str) -> Any:
    """Return the list or object at a JSON pointer; None where there is none."""
    start, *steps = reference.split("/")
    node = schema if start == "#" else None
    for step in steps:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping):
            node = node.get(key)
        else:
            node = node[int(key)] if isinstance(node, list) and key.isdecimal() and int(key) < len(node) else None
    return node if isinstance(node, Mapping | list) else None


def _inside(node: Any) -> list[Any]:
    values = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    return [value for value in values if isinstance(value, Mapping | list | tuple)]
