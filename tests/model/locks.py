"""What locks must allow: the oracle's part that knows paths, in its own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.model.oracle import Task

Locks = tuple[tuple[str, bool], ...]
"""Paths, and whether each is wanted for oneself alone."""
SETS: tuple[Locks, ...] = (
    (),
    (),
    (),
    (("r", True),),
    (("r", False),),
    (("r/a", True),),
    (("r/a", True), ("s", False)),
    (("r/b", False), ("s", True)),
    (("r/a/x", False),),
)


def clash(one: Task, other: Task) -> bool:
    """Whether the two may not run at the same time."""
    pairs = [(mine, its) for mine, alone in one.locks for its, also in other.locks if alone or also]
    return any(f"{mine}/".startswith(f"{its}/") or f"{its}/".startswith(f"{mine}/") for mine, its in pairs)


def comes_before(one: Task, other: Task) -> bool:
    """Whether the one may be due before the other: by when it was queued, where priority counts in minutes."""
    return one.since - 60 * one.priority <= other.since - 60 * other.priority


class Tokens:
    """L2: the fencing tokens of a path only grow."""

    def __init__(self) -> None:
        self._latest: dict[str, int] = {}

    def see(self, path: str, token: int) -> None:
        assert token > self._latest.get(path, 0), f"token {token} of {path} is not larger than the one before (L2)"
        self._latest[path] = token
