"""Whether our locks cover what is about to change, and are still in force: the server is asked every time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapell._locks import paths
from kapell._locks.environment import KnownLock
from kapell.errors import FencingTokenStale

if TYPE_CHECKING:
    from kapell.locks import Locks
    from kapell.v1.lock_pb2 import Lock, LockOwner

AT_A_TIME = 16
_NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """A lock path that may not be touched, and why."""

    path: str
    why: str


async def missing(locks: Locks, needed: Iterable[str], ours: Iterable[KnownLock]) -> list[Missing]:
    """Those of the paths that no exclusive lock of ours covers, in force. Raises KapellError: then nobody knows."""
    check = _Fences(locks)
    ours = list(ours)
    wanted = sorted(set(needed))
    reasons = await asyncio.gather(*(check.reason(path, ours) for path in wanted))
    return [Missing(path=path, why=why) for path, why in zip(wanted, reasons, strict=True) if why]


async def stale(locks: Locks, ours: Iterable[KnownLock]) -> list[Missing]:
    """Those of our locks that are not in force any more."""
    check = _Fences(locks)
    ours = list(ours)
    good = await asyncio.gather(*(check.is_good(lock) for lock in ours))
    return [
        Missing(path=lock.path, why="the lock was lost: its fencing token is stale")
        for lock, is_good in zip(ours, good, strict=True)
        if not is_good
    ]


async def refusal(locks: Locks, needed: Iterable[str], ours: Iterable[KnownLock]) -> str:
    """Why an attempt may not change what has these lock paths, in words; empty where it may.

    With locks of its own: what they cover, and only while all of them are in force. Without any: what nobody
    else has locked. Raises KapellError: then nobody knows.
    """
    ours, needed = list(ours), sorted(set(needed))
    if not ours:
        for path in needed:
            if others := await in_the_way(locks, path, ours):
                return "; ".join(f"{lock.path} is locked by {_holder(lock.owner)}" for lock in others)
        return ""
    found = await missing(locks, needed, ours) or await stale(locks, ours)
    if not found:
        return ""
    held = "; ".join(f"{one.path} by {_holder(one.owner)}" for one in await in_the_way(locks, found[0].path, ours))
    return f"lock {found[0].path}: {found[0].why}" + (f" - it is held: {held}" if held else "")


class _Fences:
    """Asks about each lock once, however many files it covers."""

    def __init__(self, locks: Locks) -> None:
        self._locks = locks
        self._gate = asyncio.Semaphore(AT_A_TIME)
        self._asked: dict[KnownLock, asyncio.Task[bool]] = {}

    async def reason(self, path: str, ours: list[KnownLock]) -> str:
        """Why the path may not be touched; empty where it may."""
        covering = [lock for lock in ours if paths.covers(lock.path, path)]
        exclusive = [lock for lock in covering if lock.mode == "exclusive"]
        for lock in sorted(exclusive, key=lambda lock: len(lock.path), reverse=True):
            if await self.is_good(lock):
                return ""
        if exclusive:
            return f"the lock of {exclusive[0].path} was lost: its fencing token {exclusive[0].fencing_token} is stale"
        if covering:
            return f"the lock of {covering[0].path} is shared: it is for reading only"
        return "no lock of yours covers it"

    async def is_good(self, lock: KnownLock) -> bool:
        if lock not in self._asked:
            self._asked[lock] = asyncio.create_task(self._ask(lock), name=f"fence of {lock.path}")
        return await self._asked[lock]

    async def _ask(self, lock: KnownLock) -> bool:
        async with self._gate:
            try:
                await self._locks.check_fence(lock.path, lock.fencing_token, shared=lock.mode == "shared")
            except FencingTokenStale:
                return False
        return True


async def in_the_way(locks: Locks, path: str, ours: Iterable[KnownLock]) -> list[Lock]:
    """Locks of others that touch the path, a few of them."""
    own = {lock.lock_id for lock in ours}
    page = await locks.list(path=path, page_size=_NAMED + len(own))
    return [lock for lock in page.locks if lock.lock_id not in own][:_NAMED]


def _holder(owner: LockOwner) -> str:
    name = owner.task_id or owner.session_id or owner.actor.id
    return name + (f", attempt {owner.attempt}" if owner.task_id else "") + (f" ({owner.note})" if owner.note else "")
