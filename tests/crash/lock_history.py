"""Reads what fighters over locks have written down, and looks for what must never be: L1 and L2.

Shares no code with what it checks. A worker believes that it holds a lock from its line `hold` until
`release`, the end of its time, or its last line, whichever comes first: after that it may be dead.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

SHARED = 2


@dataclass(frozen=True, kw_only=True)
class Hold:
    """One worker's belief that it has a lock."""

    owner: str
    path: str
    mode: int
    token: int
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Write:
    """A write that the guard let through, some time between `asked` and `told`."""

    owner: str
    path: str
    mode: int
    token: int
    asked: float
    told: float


@dataclass
class History:
    """All that the workers have said."""

    holds: list[Hold] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def read(directory: Path) -> History:
    """The history of all files of a directory. A last line that death has cut is left out."""
    history = History()
    for file in sorted(directory.glob("*.jsonl")):
        lines = [json.loads(line) for line in file.read_text().split("\n")[:-1]]
        history.counts.update(line["what"] for line in lines)
        history.holds += _holds(file.name, lines)
        history.writes += [
            Write(owner=file.name, **{key: line[key] for key in ("path", "mode", "token", "asked", "told")})
            for line in lines
            if line["what"] == "wrote"
        ]
    return history


def _holds(owner: str, lines: list[dict[str, Any]]) -> Iterator[Hold]:
    last = lines[-1]["at"] if lines else 0.0
    for at, line in enumerate(lines):
        if line["what"] != "hold":
            continue
        for lock in line["locks"]:
            released = next((later["at"] for later in lines[at:] if _releases(later, lock["id"])), last)
            yield Hold(
                owner=owner,
                path=lock["path"],
                mode=lock["mode"],
                token=lock["token"],
                begin=line["at"],
                end=min(released, line["until"]),
            )


def _releases(line: dict[str, Any], lock_id: str) -> bool:
    return line["what"] == "release" and any(lock["id"] == lock_id for lock in line["locks"])


def faults(history: History) -> list[str]:
    """Everything that must not be; empty where all is well."""
    return [*overlaps(history.holds), *late_writes(history.writes)]


def overlaps(holds: Iterable[Hold]) -> Iterator[str]:
    """L1: two who believe at the same time to have what conflicts."""
    open_: list[Hold] = []
    for hold in sorted(holds, key=lambda hold: hold.begin):
        open_ = [other for other in open_ if other.end > hold.begin]
        for other in open_:
            if hold.end > hold.begin and _conflict(hold, other):
                yield f"{hold} overlaps {other}"
        open_.append(hold)


def late_writes(writes: Iterable[Write]) -> Iterator[str]:
    """A write with an older token that was let through after one with a newer, conflicting token."""
    seen: list[Write] = []
    for write in sorted(writes, key=lambda write: write.asked):
        for earlier in seen:
            if earlier.told < write.asked and earlier.token > write.token and _conflict(write, earlier):
                yield f"{write} came after {earlier}"
        # A write that was checked long ago, and has an older token than those since, can tell nothing more.
        seen = [*seen[-400:], write]


def falling_tokens(grants: Iterable[tuple[str, int]]) -> list[str]:
    """L2: the grants of the server's log in their order, as path and token; where a token did not rise."""
    by_path: dict[str, list[int]] = {}
    for path, token in grants:
        by_path.setdefault(path, []).append(token)
    return [
        f"{path}: {token} after {before}"
        for path, tokens in by_path.items()
        for before, token in pairwise(tokens)
        if token <= before
    ]


def _conflict(one: Hold | Write, other: Hold | Write) -> bool:
    if one.owner == other.owner or (one.mode == SHARED and other.mode == SHARED):
        return False
    return f"{one.path}/".startswith(f"{other.path}/") or f"{other.path}/".startswith(f"{one.path}/")
