"""The world of the rules, with locks: calls that wait, sessions that are renewed, starts anew."""

from __future__ import annotations

from random import Random
from typing import Any

from google.protobuf.duration_pb2 import Duration
from kapell.v1.lock_pb2 import (
    LOCK_MODE_EXCLUSIVE,
    LOCK_MODE_SHARED,
    AcquireLocksRequest,
    CloseSessionRequest,
    Lock,
    LockItem,
    LockTicket,
    OpenSessionRequest,
    ReleaseLocksRequest,
    RenewSessionRequest,
)
from kapell.v1.task_pb2 import ATTEMPT_STATE_RUNNING
from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks import grants, lock, resumption
from kapell_server.domain.locks.entries import Wait
from kapell_server.domain.state import State
from kapell_server.domain.times import SECOND
from kapell_server.domain.workers.leases import Lease

from tests.domain.world import USER, World


class Call:
    """A call of AcquireLocks. `answer` is what it was answered with; None while it waits."""

    def __init__(self, request: AcquireLocksRequest) -> None:
        self.request = request
        self.answer: Any = None
        self.wait: Wait | None = None

    @property
    def locks(self) -> list[Lock]:
        """What was granted, which must be so."""
        assert self.answer is not None, "the call still waits"
        if isinstance(self.answer, KapellError):
            raise self.answer
        return list(self.answer.locks)


class Over:
    """A waiting call has waited enough, or its caller is gone."""

    def __init__(self, call: Call, *, abandoned: bool = False) -> None:
        self.call = call
        self.abandoned = abandoned


class LockWorld(World):
    """A World whose batches take Calls and Overs, too."""

    starts = 0

    def _decide(self, command: Any) -> Any:
        if not isinstance(command, (Call, Over)):
            return super()._decide(command)
        mark = self.state.mark()
        try:
            return self._acquire(command) if isinstance(command, Call) else self._end_wait(command)
        except KapellError as error:
            self.state.rollback(mark)
            if isinstance(command, Call):
                command.answer = error
            return error

    def _acquire(self, call: Call) -> Any:
        key = f"user:admin/{call.request.request_id}" if call.request.request_id else ""
        result = lock.acquire(self.state, call.request, handle=call, key=key, fingerprint=key.encode())
        if isinstance(result, Wait):
            call.wait = result
        else:
            call.answer = result
        return result

    def _end_wait(self, over: Over) -> Any:
        assert over.call.wait is not None
        answer = lock.wait_is_over(self.state, over.call.wait, over.call, abandoned=over.abandoned)
        if answer is not None:
            over.call.answer = answer
        return None

    def _commit(self) -> None:
        for served in self.state.locks.served:
            for call in served.handles:
                call.answer = served.answer
        super()._commit()

    def fail_to_commit(self, *commands: Any, caller: Caller = USER) -> None:
        """A batch that is decided and then undone, as when the database refuses it."""
        state = self.state
        state.begin(self.now_ns, self.rows)
        for command in commands:
            state.caller = caller
            answer = command.answer if isinstance(command, Call) else None
            self._decide(command)
            if isinstance(command, Call):
                command.answer = answer
        grants.settle(state)
        state.rollback(0)

    def do_quietly(self, call: Call) -> Any:
        """One batch with one call; its answer, a refusal too, or the Wait."""
        try:
            return self.do(call)
        except KapellError as error:
            return error

    def picture_of_locks(self) -> object:
        """All that the table knows. Trees are told by what they find; what is empty is not there."""
        table = self.state.locks
        return (
            self.state.revision,
            {lock_id: found.lock.SerializeToString() for lock_id, found in table.held.items()},
            sorted(table.by_token),
            {key: (sorted(one.held), sorted(one.by_path), sorted(one.waits)) for key, one in table.owners.items()},
            {wait_id: (wait.order, len(wait.handles)) for wait_id, wait in table.waits.items()},
            [[found.lock_id for found in tree.walk()] for tree in table._held_trees.values()],
            [[wait.wait_id for wait in tree.walk()] for tree in table._wait_trees.values()],
            dict(table._under),
            {under: sorted(waits) for under, waits in table._parked.items()},
            (dict(table.by_key), dict(table.tickets_by_key), sorted(table._stirred), sorted(table.offered)),
        )

    def restart(self) -> None:
        """Another server on the same rows. Leases and ttls get their grace; calls that waited are gone."""
        old = self.state
        self.starts += 1
        random = Random(1_000 + self.starts)
        self.state = State(settings=old.settings, keyring=self.keyring, random=random, log_id="log_world")
        state = self.state
        state.begin(self.now_ns, self.rows)
        state.revision = old.revision
        by_revision = sorted(self.rows.standing.values(), key=lambda found: found.revision)
        state.standing.load(by_revision)
        state.agents.update(self.rows.agents)
        grace = self.now_ns + int(state.settings.lease_duration * SECOND)
        for record in self.rows.attempts.values():
            if record.state == ATTEMPT_STATE_RUNNING:
                state.leases.add(Lease(record=record, expire_ns=grace, poll_id="", confirmed=True))
                state.schedule(grace, record.task_id)
        resumption.load(state, lambda caller, request_id: f"{caller.kind.value}:{caller.name}/{request_id}")
        state.settle()

    # -- locks -------------------------------------------------------------------------------

    def session(self, ttl: int = 3600, caller: Caller = USER) -> str:
        """A new session's id."""
        opened = self.do(OpenSessionRequest(ttl=Duration(seconds=ttl)), caller=caller)
        return str(opened.session.session_id)

    def renew(self, session_id: str, caller: Caller = USER) -> Any:
        return self.do(RenewSessionRequest(session_id=session_id), caller=caller)

    def close(self, session_id: str, caller: Caller = USER) -> Any:
        return self.do(CloseSessionRequest(session_id=session_id), caller=caller)

    def acquire(self, owner: str, *paths: str, caller: Caller = USER, **rest: Any) -> Call:
        """A call for locks; a path that ends with " r" is wanted SHARED. `owner` as in `request`."""
        call = Call(self.request(owner, *paths, **rest))
        answer = self.do(call, caller=caller)
        assert not isinstance(answer, KapellError)
        return call

    def request(self, owner: str, *paths: str, wait: float = 0, ttl: float = 0, **rest: Any) -> AcquireLocksRequest:
        """`owner` is a session, a task, whose attempt's token is sent, or nothing for a plain acquisition."""
        request = AcquireLocksRequest(items=[item(path) for path in paths], **rest)
        request.wait.FromNanoseconds(int(wait * SECOND))
        if owner.startswith("session_"):
            request.session_id = owner
        elif owner:
            request.lease_token = self.token(owner)
        elif ttl:
            request.ttl.FromNanoseconds(int(ttl * SECOND))
        return request

    def give_back(self, *locks: Lock, caller: Caller = USER, keep_shared: bool = False) -> Any:
        return self.do(
            ReleaseLocksRequest(lock_ids=[one.lock_id for one in locks], keep_shared=keep_shared), caller=caller
        )

    def held(self) -> dict[str, str]:
        """The paths that are held, each with its mode and owner, as committed: "x session_…"."""
        found: dict[str, str] = {}
        for one in self.locks():
            letter = "x" if one.mode == LOCK_MODE_EXCLUSIVE else "r"
            owner = one.owner.task_id or one.owner.session_id or one.owner.grant_id
            found[one.path] = " ".join(filter(None, (found.get(one.path, ""), letter, owner)))
        return found

    def locks(self) -> list[Lock]:
        """The locks as committed."""
        return [found for found in self.rows.standing.values() if isinstance(found, Lock)]

    def ticket(self, ticket_id: str) -> LockTicket:
        """A ticket as committed."""
        found = self.rows.standing["ticket", ticket_id]
        assert isinstance(found, LockTicket)
        return found


def item(path: str) -> LockItem:
    """The item that a path stands for."""
    shared = path.endswith(" r")
    return LockItem(path=path.removesuffix(" r"), mode=LOCK_MODE_SHARED if shared else LOCK_MODE_EXCLUSIVE)
