"""One batch: decide every command in turn, then write all of it in the caller's transaction.

Runs on the event loop, one batch at a time (for PostgreSQL in a greenlet). A refused command is
rolled back alone. If anything here or the commit fails, `undo` puts memory back as it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from google.protobuf.message import Message
from kapell.v1.lock_pb2 import AcquireLocksRequest, AcquireLocksResponse
from kapell.v1.worker_pb2 import LeaseTasksRequest

from kapell_server.domain import closing
from kapell_server.domain.access import Caller, system
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks import grants, lock
from kapell_server.domain.locks.entries import Wait
from kapell_server.domain.locks.grants import Served
from kapell_server.domain.pending import Resource
from kapell_server.domain.queueing import dispatch
from kapell_server.domain.queueing.polls import Poll
from kapell_server.domain.secrets.secret import SealedCommand
from kapell_server.domain.state import State
from kapell_server.domain.tasks.bulk_job import BulkCommand, BulkJob, BulkStep
from kapell_server.domain.times import SECOND
from kapell_server.domain.tokens import audit
from kapell_server.domain.workers import agent
from kapell_server.engine.commands import DECIDERS, QUESTIONS, content_ids_of, look, task_ids_of, tasks_to_look_at
from kapell_server.engine.offers import encode_offers
from kapell_server.store.database import Connection
from kapell_server.store.loads import RowLoader, head, load_due
from kapell_server.store.record import Record
from kapell_server.store.remembered import fingerprint_of, request_key, reused
from kapell_server.store.writes import Answer, Written, encode_changes, write_batch
from kapell_server.wire import field as wire_field
from kapell_server.wire import int_field

_log = structlog.get_logger(__name__)

_REPLAYED = int_field(3, 1)
"""`replayed` has this number in every response that has it; a test holds the protos to it."""
_DUE_AT_ONCE = 500
_DUE_CHUNK = 10_000
_LOOK_AGAIN = 60 * SECOND
_SCHEDULER = system("scheduler")
_TIMER = system("timer")


@dataclass(slots=True, eq=False)
class Command:
    """One sender's wish. `poll` is set while it is a LeaseTasks call that waits, `wait` for AcquireLocks."""

    request: Any
    caller: Caller
    future: asyncio.Future[bytes]
    poll: Poll | None = None
    wait: Wait | None = None


@dataclass(frozen=True, slots=True)
class PollOver:
    """A LeaseTasks or AcquireLocks call has waited enough, or, `abandoned`, its caller is gone."""

    command: Command
    abandoned: bool


@dataclass(slots=True)
class Outcome:
    """What a batch did, for the loop to publish and answer after the commit."""

    answers: list[tuple[Command, bytes | KapellError]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    next_due_ns: int = 0
    oldest_revision: int = 0
    wrote: bool = False


@dataclass(slots=True)
class _Remembered:
    """A request_id of this batch: its fingerprint and the command that has it first."""

    fingerprint: bytes
    command: Command


class StaleMemoryError(Exception):
    """The database has more than memory knows: a commit that seemed to fail did not. Only a restart mends it."""


class Batcher:
    """Decides and writes batches over one State. Belongs to the writer."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._due: list[str] = []
        self._in_doubt = False

    def run(self, connection: Connection, commands: Sequence[Command], now_ns: int) -> Outcome:
        """Decides all commands and what is due, and writes the result. The caller commits."""
        state = self._state
        if self._in_doubt:
            self._compare(connection)
        loader = RowLoader(connection)
        state.begin(now_ns, loader)
        self._load_horizon(connection)
        self._prefetch(commands)
        run = _Run(state, loader, commands)
        self._look_at_due()
        questions = []
        for command in commands:
            if type(command.request) in QUESTIONS:
                questions.append(command)
            else:
                run.decide(command)
        state.caller = _SCHEDULER
        run.served(closing.close(state))
        for command in questions:
            run.decide(command)
        state.caller = _SCHEDULER
        run.end_polls()
        run.hand_over(state.locks.served)
        agent.describe_busy(state)
        written = encode_changes(state.pending.changes, now_ns)
        outcome = run.finish(written)
        write_batch(connection, state.pending, written, run.given, now_ns)
        outcome.contents = state.pending.contents
        outcome.next_due_ns = state.next_due_ns()
        pending = state.pending
        outcome.oldest_revision = state.oldest_revision
        facts = pending.shipped_digest or pending.oldest_revision or pending.bulk or pending.audit or pending.usage
        outcome.wrote = bool(pending.changes or pending.heartbeats or facts or run.given)
        return outcome

    def settle(self) -> None:
        """After the commit: nothing can be undone any more."""
        self._due.clear()
        self._state.settle()

    def undo(self) -> None:
        """After a failure: memory is as it was before the batch; what was due stays due."""
        self._in_doubt = True
        state = self._state
        state.rollback(0)
        for subject_id in self._due:
            state.schedule(state.now_ns + 1_000_000_000, subject_id)
        self._due.clear()

    def _compare(self, connection: Connection) -> None:
        """A connection that broke during the commit leaves open whether it was done."""
        found = head(connection)
        if found != self._state.revision:
            raise StaleMemoryError(f"the database is at revision {found}, memory at {self._state.revision}")
        self._in_doubt = False

    def _prefetch(self, commands: Sequence[Command]) -> None:
        task_ids: set[str] = set()
        content_ids: set[str] = set()
        for command in commands:
            task_ids.update(task_ids_of(command.request))
            content_ids.update(content_ids_of(command.request))
        if task_ids:
            self._state.prefetch_tasks(task_ids)
        if content_ids:
            self._state.prefetch_contents(content_ids)

    def _load_horizon(self, connection: Connection) -> None:
        """Deadlines far away stay in the database; the next ones come when their time is near."""
        state = self._state
        horizon_ns = state.due.horizon_ns
        if 0 < horizon_ns <= state.now_ns and not state.due.has(state.now_ns):
            load_deadlines(connection, state, horizon_ns)

    def _look_at_due(self) -> None:
        state = self._state
        self._due = state.due.take(state.now_ns, _DUE_AT_ONCE)
        state.caller = _TIMER
        state.prefetch_tasks(tasks_to_look_at(state, self._due))
        for subject_id in self._due:
            mark = state.mark()
            try:
                look(state, subject_id)
            except Exception as error:
                # A defect in the look at one must not stop the time of all others.
                state.rollback(mark)
                _log.error("what is due could not be done", subject=subject_id, exc_info=error)
                state.schedule(state.now_ns + _LOOK_AGAIN, subject_id)


def load_deadlines(connection: Connection, state: State, after_ns: int) -> None:
    """Schedules the next deadlines of the database, up to a new horizon."""
    rows = load_due(connection, after_ns, _DUE_CHUNK)
    state.due.horizon_ns = rows[-1][0] if len(rows) == _DUE_CHUNK else 0
    for due_ns, task_id in rows:
        state.schedule(due_ns, task_id)


class _Run:
    """The decisions of one batch, until their answers can be encoded."""

    def __init__(self, state: State, loader: RowLoader, commands: Sequence[Command]) -> None:
        self._state = state
        self._decided: list[tuple[Command, Any]] = []
        self._fresh: dict[str, _Remembered] = {}
        self._keys: dict[Command, str] = {}
        self._over: list[Command] = []
        self._jobs_done: dict[str, BulkJob] = {}
        self.given: list[Answer] = []
        for command in commands:
            request_id = getattr(command.request, "request_id", "")
            if request_id:
                key = request_key(command.caller, request_id)
                self._keys[command] = key
                if type(command.request) is BulkCommand:
                    command.request.key = key
        self._known = loader.load_answers(set(self._keys.values())) if self._keys else {}

    def decide(self, command: Command) -> None:
        """Decides one command; what it has written is undone where it is refused."""
        state = self._state
        state.caller = command.caller
        mark = state.mark()
        try:
            result = self._decide(command)
        except KapellError as error:
            state.rollback(mark)
            result = error
        if result is not _WAITING:
            self._decided.append((command, result))

    def _decide(self, command: Command) -> Any:
        request = command.request
        if type(request) is LeaseTasksRequest:
            command.poll = dispatch.poll(self._state, request, command)
            self.served(dispatch.superseded(self._state, command.poll))
            return command.poll if command.poll.taken else _WAITING
        if type(request) is AcquireLocksRequest:
            return self._acquire(command, request)
        if type(request) is PollOver:
            return self._end_poll(request)
        key = self._keys.get(command)
        if key is not None:
            fingerprint = fingerprint_of(request if isinstance(request, Message) else request.request)
            replay = self._replay(key, fingerprint)
            if replay is not None:
                return self._join(command, replay) if isinstance(replay, BulkJob) else replay
        decide = DECIDERS.get(type(request)) or QUESTIONS[type(request)]
        result = decide(self._state, request)
        if isinstance(result, BulkJob):
            return self._go_on(command, result)
        audit.note(self._state, request.request if isinstance(request, SealedCommand) else request)
        if key is not None:
            self._fresh[key] = _Remembered(fingerprint, command)
        return result

    def _acquire(self, command: Command, request: AcquireLocksRequest) -> Any:
        """Remembered under its request_id is a grant, never that somebody waits."""
        state = self._state
        key = self._keys.get(command, "")
        fingerprint = _fingerprint_of_acquire(request) if key else b""
        grants.settle(state)
        if key:
            replay = self._replay(key, fingerprint)
            if replay is not None:
                return replay
            for served in state.locks.served:
                if served.key == key:
                    return self._repeat_of(served, key, fingerprint)
            waiting = state.locks.by_key.get(key)
            if waiting is not None and waiting.fingerprint not in (b"", fingerprint):
                raise reused(key.partition("/")[2])
        result = lock.acquire(state, request, handle=command, key=key, fingerprint=fingerprint)
        if isinstance(result, Wait):
            command.wait = result
            return _WAITING
        if key and result.locks:
            self._fresh[key] = _Remembered(fingerprint, command)
        return result

    def _repeat_of(self, served: Served, key: str, fingerprint: bytes) -> bytes:
        """The answer that a call which waited was given in this very batch."""
        if served.fingerprint != fingerprint:
            raise reused(key.partition("/")[2])
        assert isinstance(served.answer, AcquireLocksResponse), "a refusal is not remembered"
        return served.answer.SerializeToString() + _REPLAYED

    def _go_on(self, command: Command, job: BulkJob) -> Any:
        """A change of many tasks has done a step. Who asked for it is answered after the last one."""
        if type(command.request) is not BulkStep:
            return self._join(command, job, repeats=False)
        if job.done:
            self._jobs_done[job.key] = job
        return None

    def _join(self, command: Command, job: BulkJob, *, repeats: bool = True) -> _Waiting:
        """Has the command wait for the end of the job; a repeat gets one that came to a halt going again."""
        waiter = (command, repeats)
        job.waiters.append(waiter)
        self._state.on_rollback(job.waiters.remove, waiter)
        job.stalled = False
        return _WAITING

    def _replay(self, key: str, fingerprint: bytes) -> bytes | _Remembered | BulkJob | None:
        """The first answer to this request_id; the command or the job that will have it, where it is not given yet."""
        known = self._known.get(key)
        fresh = self._fresh.get(key)
        job = self._state.bulk_jobs.get(key) or self._jobs_done.get(key)
        if known is not None:
            first = known[0]
        elif fresh is not None:
            first = fresh.fingerprint
        elif job is not None:
            first = fingerprint_of(job.request)
        else:
            return None
        if first != fingerprint:
            raise reused(key.partition("/")[2])
        return known[1] + _REPLAYED if known is not None else fresh or job

    def _end_poll(self, over: PollOver) -> Any:
        wait = over.command.wait
        if wait is not None:
            answer = lock.wait_is_over(self._state, wait, over.command, abandoned=over.abandoned)
            if answer is not None:
                self._decided.append((over.command, answer))
            return None
        poll = over.command.poll
        if poll is not None and over.abandoned:
            dispatch.give_up(self._state, poll)
            dispatch.hand_back(self._state, poll)
        elif poll is not None:
            self._over.append(over.command)
        return None

    def served(self, polls: list[Poll]) -> None:
        """Polls that are answered: dispatch has found tasks for them, or a repeat has taken their place."""
        self._decided.extend((poll.handle, poll) for poll in polls)

    def hand_over(self, served: list[Served]) -> None:
        """Calls for locks that waited and have an end now."""
        for one in served:
            self._decided.extend((handle, one.answer) for handle in one.handles)
            if one.key:
                assert isinstance(one.answer, AcquireLocksResponse), "a refusal is not remembered"
                self.given.append(Answer(one.key, one.fingerprint, one.answer.SerializeToString()))

    def end_polls(self) -> None:
        """Polls whose time is over: empty-handed only if dispatch, which comes first, had nothing for them."""
        for command in self._over:
            if command.poll is not None and self._state.polls.contains(command.poll):
                dispatch.give_up(self._state, command.poll)
                self._decided.append((command, command.poll))

    def finish(self, written: Written) -> Outcome:
        """Encodes every answer, and remembers those with a request_id."""
        outcome = Outcome(records=written.records)
        done: dict[Command, bytes] = {}
        for command, result in self._decided:
            if isinstance(result, KapellError):
                outcome.answers.append((command, result))
                continue
            if isinstance(result, _Remembered):
                data = done[result.command] + _REPLAYED
            else:
                data = self._encode(result, written)
                key = self._keys.get(command)
                fresh = self._fresh.get(key) if key is not None else None
                if key is not None and fresh is not None and fresh.command is command:
                    self.given.append(Answer(key, fresh.fingerprint, data))
            done[command] = data
            outcome.answers.append((command, data))
        for job in self._jobs_done.values():
            self._finish_job(job, outcome)
        return outcome

    def _finish_job(self, job: BulkJob, outcome: Outcome) -> None:
        """Answers all who wait for the job; a request_id remembers it as any other answer."""
        data = job.response(self._state.revision).SerializeToString()
        if job.request.request_id:
            self.given.append(Answer(job.key, fingerprint_of(job.request), data))
        for command, repeats in job.waiters:
            outcome.answers.append((command, data + _REPLAYED if repeats else data))

    def _encode(self, result: Any, written: Written) -> bytes:
        """A response: resources go into field 1 as they were encoded, the revision into field 2."""
        if isinstance(result, bytes):
            return result
        if isinstance(result, Resource):
            return _resource(result, written) + int_field(2, result.revision)
        if isinstance(result, Message):
            return result.SerializeToString()
        if isinstance(result, Poll):
            return encode_offers(self._state, result, written)
        if isinstance(result, list):
            newest = max(item.revision for item in result)
            return b"".join(_resource(item, written) for item in result) + int_field(2, newest)
        assert result is None, f"a decision answered with {type(result).__name__}"
        return b""


def _fingerprint_of_acquire(request: AcquireLocksRequest) -> bytes:
    """A repeat may have less time left to wait."""
    lasting = AcquireLocksRequest()
    lasting.CopyFrom(request)
    lasting.ClearField("wait")
    return fingerprint_of(lasting)


class _Waiting:
    """Marks a command that is answered later."""


_WAITING = _Waiting()


def _resource(resource: Resource, written: Written) -> bytes:
    encoded = written.encoded.get(resource.revision)
    return wire_field(1, encoded if encoded is not None else resource.SerializeToString())
