"""Dependencies as they are said in short: "task_01k…", "build" or "build:finished"."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kapell.errors import InvalidRequest
from kapell.v1.dependency_pb2 import DependencyCondition, TaskDependency

Dependency = str | TaskDependency
"""A task's id, or the client_key of a task of the same request; with ":started" or ":finished" behind
it where waiting for its success would be too much. A message says all there is to say."""

_WORDS = ("succeeded", "finished", "started")
_KEY = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def dependencies(said: Iterable[Dependency]) -> list[TaskDependency]:
    """The messages. Raises InvalidRequest for a text that names no task."""
    return [entry if isinstance(entry, TaskDependency) else _parsed(entry) for entry in said]


def _parsed(text: str) -> TaskDependency:
    target, _, word = text.partition(":")
    if (word and word not in _WORDS) or not _KEY.fullmatch(target):
        raise InvalidRequest(
            f"{text!r} is no dependency - it is the id or client_key of a task, perhaps with one of "
            f"{', '.join(':' + word for word in _WORDS)} behind it",
            reason="ARGUMENT_INVALID",
        )
    entry = TaskDependency(task_id=target) if target.startswith("task_") else TaskDependency(client_key=target)
    if word:
        entry.condition = DependencyCondition.Value(f"DEPENDENCY_CONDITION_{word.upper()}")
    return entry
