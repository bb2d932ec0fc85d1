"""KAPELL_LOCKS: how a program is told which locks it works under, and what proves them.

A JSON list of {"path", "mode": "exclusive" | "shared", "lock_id", "fencing_token"}. Written by the
agent host, `kapell lock run` and `HeldLocks.environment`; read by `kapell lock guard`. Imports
nothing heavy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kapell.v1.lock_pb2 import Lock, TaskLock

VARIABLE = "KAPELL_LOCKS"

_SHARED = 2
_MODES = ("exclusive", "shared")


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownLock:
    """A lock as a program knows it."""

    path: str
    mode: str
    """ "exclusive" or "shared"."""
    lock_id: str
    fencing_token: int


def known(locks: Iterable[Lock | TaskLock]) -> list[KnownLock]:
    """What a program is told of locks; of those of a task, the ones that its attempt has."""
    return [
        KnownLock(
            path=lock.path,
            mode=_MODES[lock.mode == _SHARED],
            lock_id=lock.lock_id,
            fencing_token=lock.fencing_token,
        )
        for lock in locks
        if lock.fencing_token
    ]


def dump(locks: Iterable[KnownLock]) -> str:
    """The value of the variable."""
    return json.dumps([asdict(lock) for lock in locks], ensure_ascii=False, separators=(",", ":"))


def parse(text: str) -> list[KnownLock]:
    """The locks of the variable's value. Raises ValueError, naming what is wrong with it."""
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{VARIABLE} is not JSON: {error}") from None
    if not isinstance(entries, list):
        raise ValueError(f"{VARIABLE} is not a JSON list")
    return [_entry(entry) for entry in entries]


def _entry(entry: object) -> KnownLock:
    match entry:
        case {
            "path": str(path),
            "mode": "exclusive" | "shared" as mode,
            "lock_id": str(lock_id),
            "fencing_token": int(token),
        } if path and token > 0 and token is not True:
            return KnownLock(path=path, mode=mode, lock_id=lock_id, fencing_token=token)
    raise ValueError(f"{VARIABLE} has an entry without path, mode, lock_id and fencing_token: {str(entry)[:80]}")
