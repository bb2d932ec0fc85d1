"""Locks and sessions for code without a loop: the client's thread waits for them and renews them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, Self, TypeVar

from kapell._locks.holding import HeldLocks, HeldSession
from kapell.errors import KapellError
from kapell.messages import Seconds
from kapell.v1.lock_pb2 import Lock, LockItem

_T = TypeVar("_T")


class Run(Protocol):
    """Runs a coroutine in the client's thread and waits for it here."""

    def __call__(self, coroutine: Coroutine[Any, Any, _T], /) -> _T: ...


class SyncHeldLocks:
    """`HeldLocks` for a `with`. `lost` is a threading.Event."""

    def __init__(self, run: Run, make: Callable[[], HeldLocks]) -> None:
        self._run = run
        self._make = make
        self._held: HeldLocks | None = None
        self.lost = threading.Event()
        """Set when a lock is no longer ours."""

    @property
    def locks(self) -> list[Lock]:
        """What is held, in the order it was asked for; empty before."""
        return self._held.locks if self._held is not None else []

    @property
    def fencing_token(self) -> int:
        """The token to show at every effect: of the first lock; `token_of` has those of the others."""
        return self._inner.fencing_token

    @property
    def environment(self) -> str:
        """The value of KAPELL_LOCKS for a program that works under these locks."""
        return self._inner.environment

    def token_of(self, path: str) -> int:
        """The fencing token of the lock that was asked for as `path`. Raises KeyError."""
        return self._inner.token_of(path)

    def check(self) -> None:
        """Raises LockLost once a lock is no longer ours. Asks nobody but the client's thread."""
        self._run(_calling(self._inner.check))

    def verify(self) -> None:
        """As `check`, and asks the server about each lock. Raises FencingTokenStale."""
        self._run(self._inner.verify())

    def __enter__(self) -> Self:
        async def enter() -> HeldLocks:
            self._held = held = self._make()
            held.loss.on_lost = self.lost.set
            return await held.__aenter__()

        try:
            self._run(enter())
        except KapellError:
            raise
        except BaseException:
            # Ctrl-C may come when all is held already: then nobody else would let go.
            self._run(_leave(self._held))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: Any) -> None:
        self._run(self._inner.__aexit__(kind, *exc))

    @property
    def _inner(self) -> HeldLocks:
        assert self._held is not None, "nothing is held yet: use `with`"
        return self._held


class SyncHeldSession:
    """`HeldSession` for a `with`. `lost` is a threading.Event."""

    def __init__(self, run: Run, make: Callable[[], HeldSession]) -> None:
        self._run = run
        self._make = make
        self._held: HeldSession | None = None
        self.lost = threading.Event()
        """Set when the session, and with it every lock of it, is no longer ours."""

    @property
    def session_id(self) -> str:
        """The id; empty before the block is entered."""
        return self._held.session_id if self._held is not None else ""

    def check(self) -> None:
        """Raises LockLost once the session is no longer ours."""
        self._run(_calling(self._inner.check))

    def lock(
        self,
        *paths: str | LockItem,
        shared: bool = False,
        timeout: Seconds | None = None,
        priority: int | None = None,
        note: str = "",
    ) -> SyncHeldLocks:
        """Locks of this session for the length of a `with`."""
        inner = self._inner
        return SyncHeldLocks(
            self._run, lambda: inner.lock(*paths, shared=shared, timeout=timeout, priority=priority, note=note)
        )

    def __enter__(self) -> Self:
        async def enter() -> HeldSession:
            self._held = held = self._make()
            held.loss.on_lost = self.lost.set
            return await held.__aenter__()

        try:
            self._run(enter())
        except KapellError:
            raise
        except BaseException:
            # Ctrl-C may come when all is held already: then nobody else would let go.
            self._run(_leave(self._held))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: Any) -> None:
        self._run(self._inner.__aexit__(kind, *exc))

    @property
    def _inner(self) -> HeldSession:
        assert self._held is not None, "the session is not open: use `with`"
        return self._held


async def _leave(held: HeldLocks | HeldSession | None) -> None:
    if held is not None and held.is_held:
        await held.__aexit__(KeyboardInterrupt, None, None)


async def _calling(function: Callable[[], None]) -> None:
    function()
