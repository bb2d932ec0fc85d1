"""Getting locks: one call where they are free, a durable place in the queue where they are not.

Only the first call could be lost half-way, and it is repeatable: it never waits, so that its repeat
answers at once with the locks or the ticket. That is how a cancelled or failed acquisition finds out
what it has got, and gives it back: a ticket is cancelled, and where the grant came first, released.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kapell.connection import Connection
from kapell.errors import DeadlineExceeded, Deadlock, KapellError, LockHeld, LockLost, Unavailable
from kapell.messages import new_request_id
from kapell.reconnect import Reconnect
from kapell.v1 import lock_pb2 as pb
from kapell.v1.lock_pb2_grpc import LockServiceStub

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

_log = logging.getLogger("kapell.locks")

UNDO_TIMEOUT = 5.0
"""Seconds to give back what a failed acquisition may have got; what cannot be given back ends with its owner."""

_T = TypeVar("_T")
_undoing: set[asyncio.Task[Any]] = set()


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """Locks that were granted."""

    locks: list[pb.Lock]
    revision: int
    sent_at: float | None
    """When, by the loop's clock, the call was sent that granted them; None where a ticket did, some time ago."""


async def acquire(connection: Connection, wanted: pb.AcquireLocksRequest, timeout: float | None) -> Grant:
    """Acquires all of them, waiting up to `timeout` seconds (None: for ever, 0: not at all).

    Raises LockHeld, Deadlock, LockLost where the owner has ended, and what else the server refuses.
    Cancelled or failed, nothing stays held and no place in the queue is kept.
    """
    loop = asyncio.get_running_loop()
    until = None if timeout is None else loop.time() + timeout
    request = pb.AcquireLocksRequest()
    request.CopyFrom(wanted)
    request.keep_queued = timeout is None or timeout > 0
    request.request_id = request.request_id or new_request_id()
    stub = connection.stub(LockServiceStub)
    sent_at = loop.time()
    try:
        answer = await connection.call(stub.AcquireLocks, request)
    except (asyncio.CancelledError, Unavailable, DeadlineExceeded):
        await finish(_undo(connection, request), "give locks back")
        raise
    if not answer.HasField("ticket"):
        return Grant(locks=list(answer.locks), revision=answer.revision, sent_at=sent_at)
    return await _queue(connection, answer.ticket, until)


async def release_quietly(connection: Connection, lock_ids: list[str]) -> list[str]:
    """Releases locks; which of them had ended before. What cannot be released now ends with its owner."""
    request = pb.ReleaseLocksRequest(lock_ids=lock_ids, request_id=new_request_id())
    stub = connection.stub(LockServiceStub)
    try:
        answer = await connection.call(stub.ReleaseLocks, request, timeout=UNDO_TIMEOUT)
    except KapellError as error:
        _log.warning("locks could not be released, they end with their owner: %s", error)
        return []
    return list(answer.lost_lock_ids)


async def _queue(connection: Connection, ticket: pb.LockTicket, until: float | None) -> Grant:
    """Stands in the queue to the end of the ticket, and turns that into a grant or an error."""
    ending = _Ending(ticket)
    try:
        async with asyncio.timeout_at(until):
            await ending.follow(connection)
    except TimeoutError:
        left = await finish(_leave(connection, ticket.ticket_id), "leave the queue")
        ending.ticket = left if left is not None else ending.ticket
    except BaseException:
        await finish(_abandon(connection, ticket.ticket_id), "leave the queue")
        raise
    ended = ending.ticket
    if ended.state == pb.LOCK_TICKET_STATE_GRANTED:
        return Grant(locks=list(ended.locks), revision=ended.revision, sent_at=None)
    raise _refusal(ended, ending.blockers)


class _Ending:
    """Follows a ticket, through lost connections."""

    def __init__(self, ticket: pb.LockTicket) -> None:
        self.ticket = ticket
        self.blockers = list(ticket.blockers)
        """What it waited for last: an ended ticket has none."""

    async def follow(self, connection: Connection) -> None:
        """Returns when the ticket has ended."""
        reconnect = Reconnect(None)
        request = pb.WatchLockTicketRequest(ticket_id=self.ticket.ticket_id)
        while not self._has_ended():
            stream = connection.stream(connection.stub(LockServiceStub).WatchLockTicket, request)
            try:
                async with contextlib.aclosing(stream):
                    async for message in stream:
                        reconnect.succeeded()
                        self.ticket = message.ticket
                        self.blockers = list(message.ticket.blockers) or self.blockers
                if not self._has_ended():
                    raise Unavailable("the server ended the stream of the ticket")
            except KapellError as error:
                pause = reconnect.pause_after(error)
                if pause is None:
                    raise
                await asyncio.sleep(pause)

    def _has_ended(self) -> bool:
        return self.ticket.state not in (pb.LOCK_TICKET_STATE_UNSPECIFIED, pb.LOCK_TICKET_STATE_WAITING)


async def _undo(connection: Connection, request: pb.AcquireLocksRequest) -> None:
    """Finds out by the same request what it has got, and gives that back."""
    stub = connection.stub(LockServiceStub)
    with contextlib.suppress(KapellError):
        answer = await connection.call(stub.AcquireLocks, request, timeout=UNDO_TIMEOUT)
        if answer.HasField("ticket"):
            await _abandon(connection, answer.ticket.ticket_id)
        else:
            await release_quietly(connection, [lock.lock_id for lock in answer.locks])


async def _leave(connection: Connection, ticket_id: str) -> pb.LockTicket | None:
    """Cancels a ticket; as it is then, GRANTED where the grant came first. None where nobody could be asked."""
    request = pb.CancelLockTicketRequest(ticket_id=ticket_id, request_id=new_request_id())
    stub = connection.stub(LockServiceStub)
    try:
        return (await connection.call(stub.CancelLockTicket, request, timeout=UNDO_TIMEOUT)).ticket
    except KapellError as error:
        _log.warning("the place in the queue for locks could not be given up: %s", error)
        return None


async def _abandon(connection: Connection, ticket_id: str) -> None:
    """Cancels a ticket, and releases its locks where the grant came first."""
    ticket = await _leave(connection, ticket_id)
    if ticket is not None and ticket.state == pb.LOCK_TICKET_STATE_GRANTED:
        await release_quietly(connection, [lock.lock_id for lock in ticket.locks])


async def finish(work: Coroutine[Any, Any, _T], name: str) -> _T:
    """Runs `work` to its end even if the caller is cancelled, once more; then it ends without him."""
    task = asyncio.create_task(work, name=name)
    _undoing.add(task)
    task.add_done_callback(_undoing.discard)
    return await asyncio.shield(task)


def _refusal(ticket: pb.LockTicket, blockers: list[pb.LockBlocker]) -> KapellError:
    """Why a ticket was not granted."""
    told = ticket.state_reason
    match ticket.state:
        case pb.LOCK_TICKET_STATE_REFUSED:
            return Deadlock(told or "waiting on would be a deadlock", reason="DEADLOCK", metadata={"cycle": told})
        case pb.LOCK_TICKET_STATE_EXPIRED:
            text = "the owner of the request has expired while it waited - open a new session"
            return LockLost(told or text, reason="LOCK_LOST", metadata={"session_id": ticket.owner.session_id})
    return _held(ticket, blockers)


def _held(ticket: pb.LockTicket, blockers: list[pb.LockBlocker]) -> LockHeld:
    """The time to wait is over."""
    first = blockers[0] if blockers else pb.LockBlocker(path=ticket.items[0].path if ticket.items else "")
    holder = owner_text(first.owner)
    has = "holds" if first.kind != pb.LOCK_BLOCKER_KIND_BEFORE else "asked before for"
    wanted = first.wanted_path or first.path
    return LockHeld(
        f"{wanted} was not free in time - {holder} {has} {first.path} - wait longer, or ask them",
        reason="LOCK_HELD",
        metadata={
            "path": wanted,
            "held_path": first.path,
            "holder": holder,
            "since": _rfc3339(first.since_time),
            "expire_time": _rfc3339(first.expire_time),
            "lock_id": first.id,
        },
    )


def owner_text(owner: pb.LockOwner) -> str:
    """Who it is, in words."""
    if owner.task_id:
        by = f" by {owner.agent_id}" if owner.agent_id else ""
        who = f"{owner.task_id}, attempt {owner.attempt}{by}" if owner.attempt else owner.task_id
    elif owner.session_id:
        who = f"{owner.session_id} of {owner.actor.id}" if owner.actor.id else owner.session_id
    else:
        who = owner.actor.id or owner.grant_id or "somebody"
    return f"{who} ({owner.note})" if owner.note else who


def _rfc3339(moment: Timestamp) -> str:
    return moment.ToJsonString() if moment.seconds else ""
