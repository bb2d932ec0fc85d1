"""The locks that a template says its tasks need: paths with tags, where a list stands for one lock each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from kapell.v1.lock_pb2 import LOCK_MODE_SHARED, LockItem
from kapell.v1.template_pb2 import TemplateLock

from kapell_server.domain.locks.declared import Modes, drawn_together, mode_of, reduced, tidied
from kapell_server.domain.locks.paths import PathError, canonical
from kapell_server.domain.templates.template_text import If, Node, Put, Renderer, TextError, holds, parse

_MOST_PATHS = 5_000
"""Most paths that one line may come to, before they are drawn together."""
_MOST_LENGTH = 2_000


@dataclass(frozen=True, slots=True)
class CompiledLock:
    """A line of a template's locks, parsed. Not to be altered."""

    path: list[Node]
    exclusive: bool


def compile_locks(locks: Sequence[TemplateLock]) -> list[CompiledLock]:
    """Lines that were checked when they were written."""
    return [CompiledLock(parse(lock.path), lock.mode != LOCK_MODE_SHARED) for lock in locks]


def rendered_locks(renderer: Renderer, locks: Sequence[CompiledLock]) -> list[LockItem]:
    """The locks for the renderer's values, by path. Raises TextError."""
    modes: Modes = {}
    for lock in locks:
        for path in _paths(renderer, lock.path):
            modes[path] = modes.get(path, False) or lock.exclusive
    try:
        few = drawn_together(reduced(modes))
    except PathError as error:
        raise TextError(f"its locks {error}") from error
    return [LockItem(path=path, mode=mode_of(few[path])) for path in sorted(few)]


def _paths(renderer: Renderer, nodes: list[Node]) -> Iterator[str]:
    """What one line comes to: a path for each entry of a list, for every combination of several."""
    lists = dict(_lists(nodes, renderer.values))
    count = 1
    for entries in lists.values():
        count *= len(entries)
    if count > _MOST_PATHS:
        raise TextError(f"a line of its locks comes to {count:,} paths, at most {_MOST_PATHS:,} are allowed")
    for chosen in product(*lists.values()):
        text = tidied(renderer.text(nodes, _MOST_LENGTH, dict(zip(lists, chosen, strict=True))))
        if not text:
            continue
        try:
            yield canonical(text)
        except PathError as error:
            raise TextError(f"the path of a lock, {text!r}, {error}") from error


def _lists(nodes: Sequence[Node], values: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """The lists that the text asks for as they are, for these values, in no loop of its own."""
    for node in nodes:
        if isinstance(node, If):
            yield from _lists(node.then if holds(node, values) else node.otherwise, values)
        elif isinstance(node, Put) and not node.name.fields and not node.form:
            value = values.get(node.name.root)
            if isinstance(value, list):
                yield node.name.root, value
