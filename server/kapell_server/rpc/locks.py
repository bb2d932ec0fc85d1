"""LockService: all but the fence is the engine's to decide; tickets are followed by asking it again.

Who waits is known to the writer alone, so lists and graphs are questions to it. CheckFence reads its memory
between two batches: a guard asks before each effect, and must not wait for commits.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from google.protobuf.message import Message
from kapell.v1 import lock_pb2
from kapell.v1.error_pb2 import ERROR_REASON_PAGE_TOKEN_INVALID

from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks.lock import path_of
from kapell_server.domain.locks.views import GraphQuestion, LocksQuestion, SessionsQuestion
from kapell_server.rpc.durations import seconds
from kapell_server.rpc.pipeline import waits
from kapell_server.watch.filters import for_locks
from kapell_server.watch.follow import Watches

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine

DEFAULT_SIZE = 50
RECHECK = 2.0
"""A place may change without an event, when somebody joins before it: so often it is looked at, seconds."""
SOON = 0.2
READ_LIMIT = 512
_OF_LOCKS = (lock_pb2.Lock, lock_pb2.LockTicket, lock_pb2.LockSession)


class LockServicer:
    """The methods of LockService."""

    def __init__(self, engine: Engine, watches: Watches) -> None:
        self._engine = engine
        self._watches = watches
        self.RenewLocks = engine.submit
        self.ReleaseLocks = engine.submit
        self.ForceReleaseLocks = engine.submit
        self.GetLockTicket = engine.submit
        self.CancelLockTicket = engine.submit
        self.OpenSession = engine.submit
        self.RenewSession = engine.submit
        self.CloseSession = engine.submit

    @waits
    async def AcquireLocks(self, request: lock_pb2.AcquireLocksRequest, caller: Caller, patience: float) -> bytes:
        """The engine waits. A client whose deadline is shorter than its wait is answered before it."""
        if patience < seconds(request.wait):
            request.wait.FromNanoseconds(int(max(0.0, patience) * 1e9))
        return await self._engine.submit(request, caller)

    async def CheckFence(self, request: lock_pb2.CheckFenceRequest, caller: Caller) -> lock_pb2.CheckFenceResponse:
        return self._engine.check_fence(request, caller)

    async def ListLocks(self, request: lock_pb2.ListLocksRequest, caller: Caller) -> lock_pb2.ListLocksResponse:
        wanted = _canonical(request.filter)
        size = request.page_size or DEFAULT_SIZE
        after = _read_token(request.page_token, wanted, 2) if request.page_token else None
        question = LocksQuestion(wanted, size, (after[0], after[1]) if after is not None else None)
        answer = lock_pb2.ListLocksResponse.FromString(await self._engine.submit(question, caller))
        if len(answer.locks) > size:
            del answer.locks[size:]
            answer.next_page_token = _token(wanted, answer.locks[-1].path, answer.locks[-1].lock_id)
        return answer

    async def ListSessions(
        self, request: lock_pb2.ListSessionsRequest, caller: Caller
    ) -> lock_pb2.ListSessionsResponse:
        size = request.page_size or DEFAULT_SIZE
        bound_to = lock_pb2.ListSessionsRequest()
        [after] = _read_token(request.page_token, bound_to, 1) if request.page_token else [""]
        data = await self._engine.submit(SessionsQuestion(size, after), caller)
        answer = lock_pb2.ListSessionsResponse.FromString(data)
        if len(answer.sessions) > size:
            del answer.sessions[size:]
            answer.next_page_token = _token(bound_to, answer.sessions[-1].session_id)
        return answer

    async def GetLockGraph(self, request: lock_pb2.GetLockGraphRequest, caller: Caller) -> bytes:
        return await self._engine.submit(GraphQuestion(_canonical(request.filter)), caller)

    def WatchLocks(self, request: lock_pb2.WatchLocksRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        return self._watches.follow(for_locks(_canonical(request.filter)), request.options)

    async def WatchLockTicket(
        self, request: lock_pb2.WatchLockTicketRequest, caller: Caller
    ) -> AsyncGenerator[lock_pb2.WatchLockTicketResponse, None]:
        """First the ticket as it is, then every change of its place, until it has ended."""
        question = lock_pb2.GetLockTicketRequest(ticket_id=request.ticket_id)
        told = None
        while True:
            revision = self._engine.ring.head
            data = await self._engine.submit(question, caller)
            answer = lock_pb2.GetLockTicketResponse.FromString(data)
            place = _place(answer.ticket)
            if place != told:
                yield lock_pb2.WatchLockTicketResponse(ticket=answer.ticket, revision=answer.revision)
                told = place
            if answer.ticket.state != lock_pb2.LOCK_TICKET_STATE_WAITING:
                return
            await self._change_of_locks(revision, answer.ticket)

    async def _change_of_locks(self, revision: int, ticket: lock_pb2.LockTicket) -> None:
        """Returns at once when the ticket has ended; soon after anything else of locks has changed; or after a while.

        Soon, and not at once, since each who looks costs the writer a count of those before it.
        """
        ring = self._engine.ring
        while await ring.wait_beyond(revision, RECHECK):
            records = ring.after(revision, READ_LIMIT)
            if records is None or any(isinstance(record.resource, _OF_LOCKS) for record in records):
                await ring.wait_resource(ticket.ticket_id, ticket.revision, SOON)
                return
            revision = records[-1].revision if records else ring.head


def _place(ticket: lock_pb2.LockTicket) -> bytes:
    """What a watcher of a ticket wants to be told of: not that somebody was renewed."""
    place = lock_pb2.LockTicket()
    place.CopyFrom(ticket)
    for blocker in place.blockers:
        blocker.ClearField("expire_time")
    for lock in place.locks:
        lock.ClearField("ttl_remaining")
    return place.SerializeToString(deterministic=True)


def _canonical(wanted: lock_pb2.LockFilter) -> lock_pb2.LockFilter:
    """The filter with its path as it is written. Raises REQUEST_INVALID."""
    if wanted.path:
        wanted.path = path_of(wanted.path, "filter.path")
    return wanted


def _token(bound_to: Message, *after: str) -> str:
    """The token of the page that follows."""
    text = json.dumps([_binding(bound_to), *after], ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def _read_token(token: str, bound_to: Message, parts: int) -> list[str]:
    """Where the page before ended. Raises PAGE_TOKEN_INVALID."""
    try:
        raw = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        said = json.loads(raw)
    except (ValueError, binascii.Error) as error:
        raise _invalid_token("it is damaged") from error
    if not isinstance(said, list) or len(said) != parts + 1 or not all(isinstance(part, str) for part in said):
        raise _invalid_token("it is damaged")
    if said[0] != _binding(bound_to):
        raise _invalid_token("it belongs to another filter")
    return said[1:]


def _binding(bound_to: Message) -> str:
    """What tells the filter that a token was made for."""
    data = bound_to.DESCRIPTOR.full_name.encode() + bound_to.SerializeToString(deterministic=True)
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _invalid_token(why: str) -> KapellError:
    return KapellError(
        ERROR_REASON_PAGE_TOKEN_INVALID,
        f"page_token cannot be used: {why}. Start again without a page_token.",
        violations=(("page_token", why),),
    )
