"""Locks and sessions that are held by a block of code: `async with client.lock(...)`.

States: new → acquiring → held → lost or released. What is renewed by others (locks of a session, by
it; those of an attempt, by the heartbeats of its worker) is only watched here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

from kapell._locks import environment
from kapell._locks.acquiring import UNDO_TIMEOUT, Grant, acquire, finish, release_quietly
from kapell._locks.renewing import Loss, Renewal, end
from kapell.connection import Connection
from kapell.errors import InvalidRequest, KapellError, LockLost
from kapell.messages import Seconds, duration, new_request_id, seconds
from kapell.v1 import lock_pb2 as pb
from kapell.v1.lock_pb2_grpc import LockServiceStub
from kapell.watch import Watch, WatchStart

if TYPE_CHECKING:
    from kapell.v1.watch_pb2 import WatchOptions


_LISTENS_AFTER = 0.5
"""Seconds after which a holder listens for the loss of its locks; who is done before pays for no stream."""


class HeldLocks:
    """Locks for the length of a block. Made by `client.lock`, `session.lock` and `ctx.lock`; serves once.

    Entering waits for the locks and raises LockHeld, Deadlock, or LockLost where their owner has
    ended. Leaving releases them, and raises LockLost if they were lost before, unless the block
    itself has raised.
    """

    def __init__(
        self,
        connection: Connection,
        wanted: pb.AcquireLocksRequest,
        *,
        timeout: Seconds | None,
        owner: Loss | None = None,
        owner_lost: asyncio.Event | None = None,
        uses: Counter[str] | None = None,
    ) -> None:
        self._connection = connection
        self._wanted = wanted
        self._timeout = None if timeout is None else seconds(timeout)
        self._owner = owner
        # An owner that asks for a lock once more has the same one: the last to leave gives it back.
        self._uses = Counter[str]() if uses is None else uses
        self._owner_lost = owner.event if owner is not None else owner_lost
        self.loss = Loss(f"the lock of {wanted.items[0].path}" if wanted.items else "the lock")
        self._renewal: Renewal | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._entered = False
        self._is_held = False
        self.locks: list[pb.Lock] = []
        """What is held, in the order it was asked for; empty before."""

    @property
    def is_held(self) -> bool:
        """Whether the block has begun and not ended; see `lost` for whether it still protects."""
        return self._is_held

    @property
    def fencing_token(self) -> int:
        """The token to show at every effect: of the first lock; `token_of` has those of the others."""
        assert self.locks, "nothing is held yet: use `async with`"
        return self.locks[0].fencing_token

    def token_of(self, path: str) -> int:
        """The fencing token of the lock that was asked for as `path`. Raises KeyError."""
        for item, lock in zip(self._wanted.items, self.locks, strict=True):
            if path in (item.path, lock.path):
                return lock.fencing_token
        raise KeyError(path)

    @property
    def lost(self) -> asyncio.Event:
        """Set when a lock is no longer ours: not renewed in time, taken away, or ended with its owner."""
        return self.loss.event

    @property
    def environment(self) -> str:
        """The value of KAPELL_LOCKS for a program that works under these locks; see `kapell lock guard`."""
        return environment.dump(environment.known(self.locks))

    def check(self) -> None:
        """Raises LockLost once a lock is no longer ours. Asks nobody, so call it before each effect."""
        self.loss.check(self._renewal)

    async def verify(self) -> None:
        """As `check`, and asks the server about each lock. Raises FencingTokenStale."""
        self.check()
        stub = self._connection.stub(LockServiceStub)
        for lock in self.locks:
            request = pb.CheckFenceRequest(path=lock.path, fencing_token=lock.fencing_token, mode=lock.mode)
            await self._connection.call(stub.CheckFence, request)

    async def __aenter__(self) -> Self:
        if self._entered:
            raise InvalidRequest("these locks were held already - ask for them again", reason="ARGUMENT_INVALID")
        self._entered = True
        if self._owner is not None and self._owner.error is not None:
            raise self._owner.error
        until = None if self._timeout is None else asyncio.get_running_loop().time() + self._timeout
        grant = await acquire(self._connection, self._wanted, self._timeout)
        while not await self._take(grant):
            left = None if until is None else max(0.0, until - asyncio.get_running_loop().time())
            self._wanted.request_id = ""
            grant = await acquire(self._connection, self._wanted, left)
        self._is_held = True
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._is_held = False
        # Now: once nobody renews, the time may run out while the release is under way.
        self.loss.look(self._renewal)
        try:
            await end(*self._tasks)
        finally:
            lost_ids = await finish(self._release(), "release locks")
        if kind is None:
            self.loss.check()
            if lost_ids:
                text = f"{self.loss.what} had ended before it was released - its work was not protected to the end"
                raise LockLost(text, reason="LOCK_LOST", metadata={"lock_id": lost_ids[0]})

    async def _release(self) -> list[str]:
        """Gives back what nobody else of the same owner uses; which locks had ended before."""
        last = [lock.lock_id for lock in self.locks if self._uses[lock.lock_id] == 1]
        self._uses.subtract(lock.lock_id for lock in self.locks)
        if not last or (self._owner is not None and self._owner.error is not None):
            return []
        return await release_quietly(self._connection, last)

    async def _take(self, grant: Grant) -> bool:
        """Begins to hold what was granted; False where it has expired before we heard of it."""
        self.locks = grant.locks
        self._uses.update(lock.lock_id for lock in grant.locks)
        try:
            if not self._wanted.HasField("lease_token") and not self._wanted.HasField("session_id"):
                try:
                    await self._begin_renewing(grant)
                except LockLost:
                    await self._release()
                    return False
        except BaseException:
            await finish(self._release(), "release locks")
            raise
        if self._owner_lost is not None:
            self._start(self._follow_owner(self._owner_lost), "owner of locks")
        self._start(self._listen(grant.revision), "loss of locks")
        return True

    async def _begin_renewing(self, grant: Grant) -> None:
        ttl = min(seconds(lock.ttl) for lock in grant.locks)
        self._renewal = Renewal(self.loss, self._renew)
        if grant.sent_at is None:
            # How old the grant of a ticket is nobody can say; renewed, it has a beginning.
            self._renewal.granted(asyncio.get_running_loop().time(), ttl)
            await self._renewal.once()
        else:
            self._renewal.granted(grant.sent_at, min(map(_left, grant.locks)))
        self._start(self._renewal.run(), "renewal of locks")

    async def _renew(self, timeout: float) -> float:
        request = pb.RenewLocksRequest(lock_ids=[lock.lock_id for lock in self.locks])
        stub = self._connection.stub(LockServiceStub)
        answer = await self._connection.call(stub.RenewLocks, request, timeout=timeout)
        return min(map(_left, answer.locks))

    async def _follow_owner(self, lost: asyncio.Event) -> None:
        await lost.wait()
        known = self._owner.error if self._owner is not None else None
        text = f"{self.loss.what} has ended: the attempt is no longer ours"
        self.loss.lose(known or LockLost(text, reason="LOCK_LOST"))

    async def _listen(self, revision: int) -> None:
        """Hears of a lock that was taken away before the next renewal would tell."""
        await asyncio.sleep(_LISTENS_AFTER)
        ours = {lock.lock_id for lock in self.locks}
        first = self.locks[0]
        wanted = pb.LockFilter(path=first.path, session_id=first.owner.session_id, task_id=first.owner.task_id)
        if wanted.session_id or wanted.task_id:
            wanted.ClearField("path")

        def open_stream(options: WatchOptions) -> Any:
            request = pb.WatchLocksRequest(filter=wanted, options=options)
            return self._connection.stream(self._connection.stub(LockServiceStub).WatchLocks, request)

        # Where the server does not let us listen, renewals and fences tell, only later.
        with contextlib.suppress(KapellError):
            async with contextlib.aclosing(
                Watch[pb.LockEvent](open_stream, WatchStart(after_revision=revision or None, connect_timeout=None))
            ) as events:
                async for event in events:
                    if event.HasField("lock") and event.lock.lock_id in ours and event.lock.state != pb.LOCK_STATE_HELD:
                        self.loss.lose(_ended(event.lock))

    def _start(self, work: Any, name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))


class HeldSession:
    """A session for the length of a block: an owner of many locks, renewed in the background. Serves once.

    Leaving closes it, which releases its locks, and raises LockLost if it was lost before, unless
    the block itself has raised.
    """

    def __init__(self, connection: Connection, *, ttl: Seconds | None, display_name: str) -> None:
        self._connection = connection
        self._request = pb.OpenSessionRequest(ttl=duration(ttl), display_name=display_name, request_id=new_request_id())
        self.loss = Loss("the session of locks")
        self._renewal: Renewal | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._uses = Counter[str]()
        self.session_id = ""
        """The id; empty before the block is entered."""

    @property
    def is_held(self) -> bool:
        """Whether the block has begun and not ended."""
        return bool(self._tasks)

    @property
    def lost(self) -> asyncio.Event:
        """Set when the session, and with it every lock of it, is no longer ours."""
        return self.loss.event

    def check(self) -> None:
        """Raises LockLost once the session is no longer ours. Asks nobody."""
        self.loss.check(self._renewal)

    def lock(
        self,
        *paths: str | pb.LockItem,
        shared: bool = False,
        timeout: Seconds | None = None,
        priority: int | None = None,
        note: str = "",
    ) -> HeldLocks:
        """Locks of this session for the length of a block; see `Client.lock`."""
        assert self.session_id, "the session is not open: use `async with`"
        wanted = wanted_locks(paths, shared=shared, priority=priority, note=note)
        wanted.session_id = self.session_id
        return HeldLocks(self._connection, wanted, timeout=timeout, owner=self.loss, uses=self._uses)

    async def __aenter__(self) -> Self:
        stub = self._connection.stub(LockServiceStub)
        sent_at = asyncio.get_running_loop().time()
        try:
            session = (await self._connection.call(stub.OpenSession, self._request)).session
        except BaseException:
            await finish(self._undo(), "undo locks")
            raise
        self.session_id = session.session_id
        self.loss.what = f"the session {session.session_id}"
        self._renewal = Renewal(self.loss, self._renew)
        self._renewal.granted(sent_at, _left(session))
        self._tasks.append(asyncio.create_task(self._renewal.run(), name="renewal of a session"))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        tasks, self._tasks = self._tasks, []
        self.loss.look(self._renewal)
        try:
            await end(*tasks)
        finally:
            await finish(self._close(), "close the session of locks")
        if kind is None:
            self.loss.check()

    async def _renew(self, timeout: float) -> float:
        request = pb.RenewSessionRequest(session_id=self.session_id)
        stub = self._connection.stub(LockServiceStub)
        answer = await self._connection.call(stub.RenewSession, request, timeout=timeout)
        return _left(answer.session)

    async def _undo(self) -> None:
        """Closes what a failed call may have opened: its repeat tells the id."""
        stub = self._connection.stub(LockServiceStub)
        with contextlib.suppress(KapellError):
            answer = await self._connection.call(stub.OpenSession, self._request, timeout=UNDO_TIMEOUT)
            self.session_id = answer.session.session_id
            await self._close()

    async def _close(self) -> None:
        request = pb.CloseSessionRequest(session_id=self.session_id, request_id=new_request_id())
        stub = self._connection.stub(LockServiceStub)
        try:
            await self._connection.call(stub.CloseSession, request, timeout=UNDO_TIMEOUT)
        except LockLost as error:
            self.loss.lose(error)
        except KapellError:
            # Nobody renews it any more: it ends by itself.
            return


def wanted_locks(
    paths: tuple[str | pb.LockItem, ...], *, shared: bool, priority: int | None = None, note: str = ""
) -> pb.AcquireLocksRequest:
    """The request for some locks, still without an owner."""
    return pb.AcquireLocksRequest(items=lock_items(paths, shared=shared), priority=priority, note=note)


def lock_items(paths: tuple[str | pb.LockItem, ...], *, shared: bool) -> list[pb.LockItem]:
    """Paths as they are asked for; items stay as they are. Raises InvalidRequest where there is none."""
    if not paths:
        raise InvalidRequest("no path to lock - name at least one", reason="ARGUMENT_INVALID")
    mode = pb.LOCK_MODE_SHARED if shared else pb.LOCK_MODE_EXCLUSIVE
    return [pb.LockItem(path=path, mode=mode) if isinstance(path, str) else path for path in paths]


def _left(leased: pb.Lock | pb.LockSession) -> float:
    """The seconds that were left when the server answered."""
    return seconds(leased.ttl_remaining if leased.HasField("ttl_remaining") else leased.ttl)


def _ended(lock: pb.Lock) -> LockLost:
    words = {
        pb.LOCK_STATE_RELEASED: "was released by somebody else",
        pb.LOCK_STATE_EXPIRED: "has expired",
        pb.LOCK_STATE_REVOKED: "was taken away by an administrator",
    }
    why = f": {lock.state_reason}" if lock.state_reason else ""
    text = f"the lock of {lock.path} {words.get(lock.state, 'has ended')}{why} - what it protects may be another's"
    return LockLost(text, reason="LOCK_LOST", metadata={"lock_id": lock.lock_id})
