"""Odd values for property-based tests: what a file may hold in place of a sound value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 3, 2**31, 2**63 - 1, 10**30, 10**5000,
    0.0, -0.5, 1e-320, 0.5, 1e30, 1e308, float("inf"), float("-inf"), float("nan"),
    "", " ", ".", "..", "../../docs", "/", "auto", "x; touch y", "$(touch y)", "a-b", "a/b/c",
    "mean", "1", "true", "ä", "\u202e", "\x00", "\x1b[31m", "\ud800", "a\nb", "x" * 70_000,
    [], [[]], ["a", "a"], [None], [1, 2], ["x"] * 5000,
    {}, {"": 0}, {"a": {"b": []}}, {"x" * 500: 1}, {str(i): i for i in range(5000)},
]  # fmt: skip


def paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a tree of mappings and lists, the root's first."""
    yield path
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from paths(value, (*path, key))


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def spoiled(tree: Any) -> st.SearchStrategy[Any]:
    """`tree` with up to three of its values replaced, removed, or with another key beside them."""
    places = [path for path in paths(tree) if path]
    values = st.one_of(st.sampled_from(ODD), st.integers(), st.floats(), st.text(max_size=80))
    change = st.tuples(
        st.sampled_from(places), st.sampled_from("=-+"), values | st.just(nested(40))
    )
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: _apply(tree, changes))


def _apply(tree: Any, changes: list[tuple[tuple[Any, ...], str, Any]]) -> Any:
    tree = deepcopy(tree)
    for (*path, last), how, value in changes:
        node = tree
        for key in path:
            node = _child(node, key)
        if not isinstance(node, dict) and not _is_place(node, last):
            continue  # an earlier change took it away
        if how == "=":
            node[last] = deepcopy(value)
        elif how == "+" and isinstance(node, dict):
            node[value if isinstance(value, str) else "new"] = deepcopy(value)
        elif isinstance(node, list) or last in node:
            del node[last]
    return tree


def _child(node: Any, key: Any) -> Any:
    if isinstance(node, dict):
        return node.get(key)
    return node[key] if _is_place(node, key) else None


def _is_place(node: Any, key: Any) -> bool:
    """Whether `node` is a list and `key` an index of it, not a key of a mapping that was there."""
    return isinstance(node, list) and isinstance(key, int) and key < len(node)


def as_json(tree: Any) -> str:
    """JSON; also an integer of more digits than Python writes."""
    return json.dumps(_marked(tree)).replace('"@"', "1" * 5001)


def _marked(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _marked(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_marked(value) for value in tree]
    return "@" if isinstance(tree, int) and tree.bit_length() > 10_000 else tree
