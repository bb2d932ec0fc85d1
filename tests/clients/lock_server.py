"""A real gRPC server with locks in memory, and faults on demand: lost answers, silence, locks taken away.

For what a holder does when calls fail half-way. All locks are exclusive and the queue is first come,
first served; who may have which lock when is proven elsewhere, on the real server.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from grpc import aio
from kapell.discovery import Endpoint
from kapell.v1 import lock_pb2 as pb
from kapell.v1.lock_pb2_grpc import LockServiceServicer, add_LockServiceServicer_to_server

from tests.clients.fake_server import refusal

TTL = 60.0


class LockServer(LockServiceServicer):
    """Start it with `async with`."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.held: dict[str, pb.Lock] = {}
        self.tickets: dict[str, pb.LockTicket] = {}
        self.sessions: dict[str, pb.LockSession] = {}
        self.refusals: dict[str, list[Any]] = {}
        self.silent: set[str] = set()
        """Methods that are carried out and never answered."""
        self.ttl_left = TTL
        """What is left of a ttl when the server tells."""
        self._answers: dict[str, pb.AcquireLocksResponse] = {}
        self._events: list[pb.LockEvent] = []
        self._revision = 0
        self._changed = asyncio.Condition()
        self._server = aio.server(options=[("grpc.so_reuseport", 0)])
        self._port = 0

    async def __aenter__(self) -> LockServer:
        add_LockServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._server.stop(None)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(address=f"127.0.0.1:{self._port}", token="secret")

    # What tests ask of it.

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits until something has become true."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: bool(condition()))

    async def occupy(self, *paths: str) -> list[str]:
        """Locks of somebody else; their ids."""
        return [lock.lock_id for lock in await self._grant(paths, pb.LockOwner(note="a stranger"))]

    async def take_away(self, *lock_ids: str, state: pb.LockState.ValueType = pb.LOCK_STATE_REVOKED) -> None:
        """Ends locks, and gives what is free then to who waits."""
        for lock_id in lock_ids:
            lock = self.held.pop(lock_id)
            lock.state = state
            self._note(lock)
        for ticket in self.tickets.values():
            if ticket.state == pb.LOCK_TICKET_STATE_WAITING and not self._in_the_way(_paths(ticket.items)):
                ticket.state = pb.LOCK_TICKET_STATE_GRANTED
                ticket.locks.extend(await self._grant(_paths(ticket.items), ticket.owner))
        await self._tell()

    async def end_ticket(self, state: pb.LockTicketState.ValueType, reason: str) -> None:
        """Ends the one ticket."""
        (ticket,) = self.tickets.values()
        ticket.state, ticket.state_reason = state, reason
        await self._tell()

    # The service.

    async def AcquireLocks(self, request: pb.AcquireLocksRequest, context: Any) -> pb.AcquireLocksResponse:
        if (known := self._answers.get(request.request_id)) is None:
            paths = _paths(request.items)
            owner = pb.LockOwner(session_id=request.session_id)
            if not self._in_the_way(paths):
                locks = await self._grant(paths, owner)
                known = pb.AcquireLocksResponse(locks=locks, revision=self._revision)
            elif request.keep_queued:
                ticket = pb.LockTicket(
                    ticket_id=f"ticket_{len(self.tickets)}", items=request.items, owner=owner, state=1
                )
                blocker = self._in_the_way(paths)[0]
                ticket.blockers.add(kind=1, id=blocker.lock_id, path=blocker.path, owner=blocker.owner)
                self.tickets[ticket.ticket_id] = ticket
                known = pb.AcquireLocksResponse(ticket=ticket)
            else:
                await self._enter("AcquireLocks", context)
                await context.abort_with_status(refusal("ABORTED", "LOCK_HELD", "a - b - c", holder="a stranger"))
                raise AssertionError("abort raises")
            self._answers[request.request_id] = known
        await self._enter("AcquireLocks", context)
        return known

    async def RenewLocks(self, request: pb.RenewLocksRequest, context: Any) -> pb.RenewLocksResponse:
        await self._enter("RenewLocks", context)
        if gone := [id for id in request.lock_ids if id not in self.held]:
            await context.abort_with_status(refusal("ABORTED", "LOCK_LOST", "it is gone", lock_id=gone[0]))
        return pb.RenewLocksResponse(locks=[self._as_it_is(self.held[id]) for id in request.lock_ids])

    async def ReleaseLocks(self, request: pb.ReleaseLocksRequest, context: Any) -> pb.ReleaseLocksResponse:
        lost = [id for id in request.lock_ids if id not in self.held]
        await self.take_away(*(id for id in request.lock_ids if id in self.held), state=pb.LOCK_STATE_RELEASED)
        await self._enter("ReleaseLocks", context)
        return pb.ReleaseLocksResponse(lost_lock_ids=lost)

    async def CheckFence(self, request: pb.CheckFenceRequest, context: Any) -> pb.CheckFenceResponse:
        await self._enter("CheckFence", context)
        for lock in self.held.values():
            if lock.fencing_token == request.fencing_token:
                return pb.CheckFenceResponse(lock=lock)
        await context.abort_with_status(refusal("ABORTED", "FENCING_TOKEN_STALE", path=request.path, current="17"))
        raise AssertionError("abort raises")

    async def WatchLocks(self, request: pb.WatchLocksRequest, context: Any) -> AsyncIterator[pb.WatchLocksResponse]:
        await self._enter("WatchLocks", context)
        place = request.options.start_after_revision
        yield pb.WatchLocksResponse(bookmark={"revision": place, "log_id": "log_a"})
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._revision > place)  # noqa: B023 - awaited before it changes
            for event in self._events:
                if event.revision > place:
                    place = event.revision
                    yield pb.WatchLocksResponse(events=[event])

    async def WatchLockTicket(
        self, request: pb.WatchLockTicketRequest, context: Any
    ) -> AsyncIterator[pb.WatchLockTicketResponse]:
        await self._enter("WatchLockTicket", context)
        ticket = self.tickets[request.ticket_id]
        yield pb.WatchLockTicketResponse(ticket=ticket)
        if ticket.state == pb.LOCK_TICKET_STATE_WAITING:
            async with self._changed:
                await self._changed.wait_for(lambda: ticket.state != pb.LOCK_TICKET_STATE_WAITING)
            yield pb.WatchLockTicketResponse(ticket=ticket)

    async def CancelLockTicket(self, request: pb.CancelLockTicketRequest, context: Any) -> pb.CancelLockTicketResponse:
        ticket = self.tickets[request.ticket_id]
        if ticket.state == pb.LOCK_TICKET_STATE_WAITING:
            ticket.state = pb.LOCK_TICKET_STATE_CANCELLED
        await self._enter("CancelLockTicket", context)
        return pb.CancelLockTicketResponse(ticket=ticket)

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:
        session = self.sessions.setdefault(request.request_id, pb.LockSession(session_id=f"session_{len(self.calls)}"))
        session.state = pb.LOCK_SESSION_STATE_OPEN
        session.ttl.FromTimedelta(request.ttl.ToTimedelta())
        session.ttl_remaining.FromMilliseconds(int(self.ttl_left * 1000))
        await self._enter("OpenSession", context)
        return pb.OpenSessionResponse(session=session)

    async def RenewSession(self, request: pb.RenewSessionRequest, context: Any) -> pb.RenewSessionResponse:
        await self._enter("RenewSession", context)
        session = self._session(request.session_id)
        if session.state != pb.LOCK_SESSION_STATE_OPEN:
            await context.abort_with_status(refusal("ABORTED", "LOCK_LOST", "the session has expired"))
        return pb.RenewSessionResponse(session=session)

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        session = self._session(request.session_id)
        session.state = pb.LOCK_SESSION_STATE_CLOSED
        await self._enter("CloseSession", context)
        return pb.CloseSessionResponse(session=session)

    # Within.

    async def _enter(self, method: str, context: Any) -> None:
        """Counts the call; fails or keeps silent where the test wants it. What was done stays done."""
        self.calls[method] += 1
        await self._tell()
        if self.refusals.get(method):
            failure = self.refusals[method].pop(0)
            if isinstance(failure, grpc.StatusCode):
                await context.abort(failure, "the test wants it")
            await context.abort_with_status(failure)
        if method in self.silent:
            self.silent.discard(method)
            await asyncio.Event().wait()

    def _session(self, session_id: str) -> pb.LockSession:
        return next(session for session in self.sessions.values() if session.session_id == session_id)

    def _in_the_way(self, paths: Iterable[str]) -> list[pb.Lock]:
        return [lock for lock in self.held.values() if any(_touch(lock.path, path) for path in paths)]

    async def _grant(self, paths: Iterable[str], owner: pb.LockOwner) -> list[pb.Lock]:
        granted = []
        for path in paths:
            self._revision += 1
            number = self._revision
            lock = pb.Lock(lock_id=f"lock_{number}", path=path, fencing_token=number, owner=owner, state=1, mode=1)
            lock.revision = number
            lock.ttl.FromMilliseconds(int(TTL * 1000))
            self.held[lock.lock_id] = lock
            granted.append(self._as_it_is(lock))
        await self._tell()
        return granted

    def _as_it_is(self, lock: pb.Lock) -> pb.Lock:
        shown = pb.Lock()
        shown.CopyFrom(lock)
        shown.ttl_remaining.FromMilliseconds(int(self.ttl_left * 1000))
        return shown

    def _note(self, lock: pb.Lock) -> None:
        self._revision += 1
        self._events.append(pb.LockEvent(revision=self._revision, kind=123, lock=lock))  # type: ignore[arg-type]

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _paths(items: Iterable[pb.LockItem]) -> list[str]:
    return [item.path for item in items]


def _touch(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")
