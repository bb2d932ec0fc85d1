"""The face for locks: who may work on which path, proved by fencing tokens.

    async with client.lock("repo/src", shared=True) as lock:
        ...  # lock.fencing_token proves it, lock.check() raises once it is lost

The verbs are thin; `lock` and `session` wait, renew in the background and give back. A path locks
everything below it. How paths are written, and who conflicts with whom, is told in lock.proto.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Unpack

from kapell._locks.holding import HeldLocks, HeldSession, lock_items, wanted_locks
from kapell.connection import Connection, Stream
from kapell.filters import LockQuery, lock_filter
from kapell.messages import Seconds, duration, new_request_id
from kapell.v1 import lock_pb2 as pb
from kapell.v1.lock_pb2_grpc import LockServiceStub
from kapell.watch import Watch, WatchKeywords, split_start

if TYPE_CHECKING:
    from kapell.v1.lock_pb2_grpc import LockServiceAsyncStub

__all__ = ["HeldLocks", "HeldSession", "LockWatchKeywords", "Locks", "lock_item"]


class LockWatchKeywords(LockQuery, WatchKeywords, total=False):
    """Which locks to watch, and how."""


def lock_item(path: str, *, shared: bool = False) -> pb.LockItem:
    """A path with its mode, where the locks of one call differ in it."""
    return lock_items((path,), shared=shared)[0]


class Locks:
    """`client.locks`. A `request_id` makes a write repeatable by hand; left out, each call gets its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> LockServiceAsyncStub:
        return self._connection.stub(LockServiceStub)

    def lock(
        self,
        *paths: str | pb.LockItem,
        shared: bool = False,
        timeout: Seconds | None = None,
        ttl: Seconds | None = None,
        priority: int | None = None,
        note: str = "",
    ) -> HeldLocks:
        """Locks for the length of a block, all or none; see `Client.lock`."""
        wanted = wanted_locks(paths, shared=shared, priority=priority, note=note)
        if (lease := duration(ttl)) is not None:
            wanted.ttl.CopyFrom(lease)
        return HeldLocks(self._connection, wanted, timeout=timeout)

    def session(self, display_name: str = "", *, ttl: Seconds | None = None) -> HeldSession:
        """A session for the length of a block: an owner that many locks hang on, renewed in the background.

        One thread of work: while it waits for a lock it counts as waiting, which is how deadlocks are found.
        """
        return HeldSession(self._connection, ttl=ttl, display_name=display_name)

    async def acquire(
        self,
        *paths: str | pb.LockItem,
        shared: bool = False,
        ttl: Seconds | None = None,
        session_id: str = "",
        lease_token: str = "",
        wait: Seconds | None = None,
        priority: int | None = None,
        keep_queued: bool = False,
        note: str = "",
        request_id: str = "",
    ) -> pb.AcquireLocksResponse:
        """Takes all of the locks or none; nobody renews them but the caller.

        Waits up to `wait`, at most 60 s; with `keep_queued` the answer then has a ticket. The owner is
        a session, an attempt by its lease, or, with neither, this acquisition with a `ttl` of 60 s.
        """
        request = wanted_locks(paths, shared=shared, priority=priority, note=note)
        request.keep_queued = keep_queued
        request.request_id = request_id or new_request_id()
        if (patience := duration(wait)) is not None:
            request.wait.CopyFrom(patience)
        if lease_token:
            request.lease_token = lease_token
        elif session_id:
            request.session_id = session_id
        elif (lease := duration(ttl)) is not None:
            request.ttl.CopyFrom(lease)
        timeout = 30.0 + request.wait.seconds
        return await self._connection.call(self._stub.AcquireLocks, request, timeout=timeout)

    async def renew(self, *lock_ids: str) -> list[pb.Lock]:
        """Renews plain locks, all or none. Raises LockLost."""
        request = pb.RenewLocksRequest(lock_ids=lock_ids)
        return list((await self._connection.call(self._stub.RenewLocks, request)).locks)

    async def release(self, *lock_ids: str, keep_shared: bool = False, request_id: str = "") -> pb.ReleaseLocksResponse:
        """Gives locks back, or weakens them to SHARED. Those that had ended are named in the answer."""
        request = pb.ReleaseLocksRequest(
            lock_ids=lock_ids, keep_shared=keep_shared, request_id=request_id or new_request_id()
        )
        return await self._connection.call(self._stub.ReleaseLocks, request)

    async def force_release(
        self, *, reason: str, lock_id: str = "", path: str = "", request_id: str = ""
    ) -> pb.ForceReleaseLocksResponse:
        """Takes a lock, or all on a path and below it, away from their owners; their tokens are stale then."""
        request = pb.ForceReleaseLocksRequest(reason=reason, request_id=request_id or new_request_id())
        if lock_id:
            request.lock_id = lock_id
        else:
            request.path = path
        return await self._connection.call(self._stub.ForceReleaseLocks, request)

    async def check_fence(self, path: str, fencing_token: int, *, shared: bool = False) -> pb.Lock:
        """The lock that covers the path and has this token. Raises FencingTokenStale where none has."""
        mode = pb.LOCK_MODE_SHARED if shared else pb.LOCK_MODE_EXCLUSIVE
        request = pb.CheckFenceRequest(path=path, fencing_token=fencing_token, mode=mode)
        return (await self._connection.call(self._stub.CheckFence, request)).lock

    async def list(
        self, *, page_size: int = 0, page_token: str = "", **query: Unpack[LockQuery]
    ) -> pb.ListLocksResponse:
        """One page of the locks that are held, by path; the first page has those who wait, too."""
        request = pb.ListLocksRequest(filter=lock_filter(**query), page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListLocks, request)

    async def iterate(self, *, page_size: int = 200, **query: Unpack[LockQuery]) -> AsyncIterator[pb.Lock]:
        """All locks that match, page by page."""
        page_token = ""
        while True:
            page = await self.list(page_size=page_size, page_token=page_token, **query)
            for lock in page.locks:
                yield lock
            page_token = page.next_page_token
            if not page_token:
                return

    async def graph(self, **query: Unpack[LockQuery]) -> pb.GetLockGraphResponse:
        """Who waits for whom."""
        request = pb.GetLockGraphRequest(filter=lock_filter(**query))
        return await self._connection.call(self._stub.GetLockGraph, request)

    def watch(self, **keywords: Unpack[LockWatchKeywords]) -> Watch[pb.LockEvent]:
        """Changes of locks, tickets and sessions; as `Client.watch`."""
        start, query = split_start(keywords)
        wanted = lock_filter(**query)
        return Watch(
            lambda options: self._connection.stream(
                self._stub.WatchLocks, pb.WatchLocksRequest(filter=wanted, options=options)
            ),
            start,
        )

    async def ticket(self, ticket_id: str) -> pb.LockTicket:
        """A place in the queue, as it is."""
        request = pb.GetLockTicketRequest(ticket_id=ticket_id)
        return (await self._connection.call(self._stub.GetLockTicket, request)).ticket

    async def watch_ticket(self, ticket_id: str) -> AsyncIterator[pb.LockTicket]:
        """A ticket now and at each change, to its end. Raises Unavailable where the connection is lost."""
        request = pb.WatchLockTicketRequest(ticket_id=ticket_id)
        stream: Stream[pb.WatchLockTicketResponse] = self._connection.stream(self._stub.WatchLockTicket, request)
        try:
            async for message in stream:
                yield message.ticket
        finally:
            stream.cancel()

    async def cancel_ticket(self, ticket_id: str, *, request_id: str = "") -> pb.LockTicket:
        """Leaves the queue; the ticket as it is then, GRANTED where the grant came first."""
        request = pb.CancelLockTicketRequest(ticket_id=ticket_id, request_id=request_id or new_request_id())
        return (await self._connection.call(self._stub.CancelLockTicket, request)).ticket

    async def open_session(
        self, *, ttl: Seconds | None = None, display_name: str = "", request_id: str = ""
    ) -> pb.LockSession:
        """Opens a session that the caller renews; `session` does that by itself."""
        request = pb.OpenSessionRequest(
            ttl=duration(ttl), display_name=display_name, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.OpenSession, request)).session

    async def renew_session(self, session_id: str) -> pb.LockSession:
        """Renews a session and all its locks. Raises LockLost."""
        request = pb.RenewSessionRequest(session_id=session_id)
        return (await self._connection.call(self._stub.RenewSession, request)).session

    async def close_session(self, session_id: str, *, request_id: str = "") -> pb.LockSession:
        """Ends a session: its locks are released, its tickets cancelled."""
        request = pb.CloseSessionRequest(session_id=session_id, request_id=request_id or new_request_id())
        return (await self._connection.call(self._stub.CloseSession, request)).session

    async def sessions(self, *, page_size: int = 0, page_token: str = "") -> pb.ListSessionsResponse:
        """One page of the open sessions, the eldest first."""
        request = pb.ListSessionsRequest(page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListSessions, request)


def task_locks(locks: Iterable[str | pb.LockItem], read_locks: Iterable[str | pb.LockItem]) -> list[pb.LockItem]:
    """What a task declares: paths it changes, and paths it only reads."""
    changed, read = tuple(locks), tuple(read_locks)
    items = lock_items(changed, shared=False) if changed else []
    return items + (lock_items(read, shared=True) if read else [])
