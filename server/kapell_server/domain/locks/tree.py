"""Things at paths: those at the ancestors of a path by key, those below it by branch.

So the cost of a look grows with the depth of the path and with what is found, never with how much the
tree holds. A node that holds nothing, itself and below, is not there: where a branch is, there is something.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Key = Any
"""What orders the things at one path; all of a tree compare with each other, and none is there twice."""


class _Node(Generic[T]):
    __slots__ = ("children", "entries")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.entries: list[tuple[Key, T]] = []


class PathTree(Generic[T]):
    """Things by canonical path, in the order of their keys at each. `remove` undoes `add`, and `add` `remove`."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, path: str, key: Key, thing: T) -> None:
        """Puts a thing at a path."""
        node = self._root
        for segment in path.split("/"):
            below = node.children.get(segment)
            if below is None:
                below = node.children[segment] = _Node()
            node = below
        insort(node.entries, (key, thing), key=_key)

    def remove(self, path: str, key: Key) -> None:
        """Takes the thing with this key, which must be there, from its path."""
        trail = [self._root]
        segments = path.split("/")
        for segment in segments:
            trail.append(trail[-1].children[segment])
        entries = trail[-1].entries
        place = bisect_left(entries, key, key=_key)
        assert entries[place][0] == key, "what is removed is there"
        del entries[place]
        for segment, node, above in zip(reversed(segments), reversed(trail), reversed(trail[:-1]), strict=False):
            if node.entries or node.children:
                return
            del above.children[segment]

    def at(self, path: str) -> list[tuple[Key, T]]:
        """The things at this very path, in order. Not to be altered."""
        node = self._root
        for segment in path.split("/"):
            below = node.children.get(segment)
            if below is None:
                return []
            node = below
        return node.entries

    def touching(self, path: str) -> Iterator[list[tuple[Key, T]]]:
        """The things at each path that covers this one or is covered by it, the topmost first; no empty lists."""
        node = self._root
        for segment in path.split("/"):
            below = node.children.get(segment)
            if below is None:
                return
            node = below
            if node.entries:
                yield node.entries
        branches = [iter(node.children.values())]
        while branches:
            child = next(branches[-1], None)
            if child is None:
                branches.pop()
                continue
            if child.entries:
                yield child.entries
            if child.children:
                branches.append(iter(child.children.values()))

    def walk(self, after: tuple[str, Key] | None = None, path: str = "") -> Iterator[T]:
        """Everything in the order of paths by segment, at each path by key; only beyond this path and key.

        With a path, only what is at it, above it or below it.
        """
        start, key = (after[0].split("/"), after[1]) if after is not None else ([], None)
        node = self._root
        trail: list[str] = []
        for segment in path.split("/") if path else ():
            below = node.children.get(segment)
            if below is None:
                return
            node = below
            trail.append(segment)
            if trail >= start:
                yield from (thing for its, thing in node.entries if trail > start or its > key)
        if start[: len(trail)] == trail:
            yield from _walk(node, start[len(trail) :], key)
        elif trail > start:
            yield from _walk(node, [], None)


def _walk(node: _Node[T], after: list[str], key: Key) -> Iterator[T]:
    """What is below a node, and beyond `key` at the path `after` below it."""
    first = after[0] if after else ""
    names = [name for name in node.children if name >= first]
    heapq.heapify(names)
    while names:
        name = heapq.heappop(names)
        child = node.children[name]
        if not after or name != first:
            yield from (thing for _, thing in child.entries)
            yield from _walk(child, [], None)
            continue
        if len(after) == 1:
            yield from (thing for its, thing in child.entries if its > key)
        yield from _walk(child, after[1:], key)


def _key(entry: tuple[Key, Any]) -> Key:
    return entry[0]
