"""The engine as the rest of the server sees it: submit a command, get its answer after the commit.

All methods belong to the event loop. Answers are given, and watchers told, strictly after the
commit and in revision order.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import structlog
from kapell.v1.agent_pb2 import TERMINATE_MODE_FORCE, Agent, AgentProfile, TerminateAgentRequest
from kapell.v1.error_pb2 import ERROR_REASON_QUEUE_FULL, ERROR_REASON_SERVER_DRAINING
from kapell.v1.lock_pb2 import AcquireLocksRequest
from kapell.v1.price_pb2 import Price
from kapell.v1.token_pb2 import Token
from kapell.v1.worker_pb2 import LeaseTasksRequest

from kapell_server.clock import Clock, SystemClock
from kapell_server.domain.access import Caller, Keyring
from kapell_server.domain.errors import KapellError
from kapell_server.domain.secrets.vault import NoVault, Vault
from kapell_server.domain.settings import Settings
from kapell_server.domain.state import State
from kapell_server.domain.tasks.bulk import DEFAULT_AFFECTED
from kapell_server.domain.tasks.bulk_job import RESPONSES, BulkCommand, BulkRequest, BulkStep
from kapell_server.domain.times import SECOND, duration_ns
from kapell_server.domain.transitions import AGENT_FINAL
from kapell_server.engine.batch import Batcher, Command, Outcome, PollOver, StaleMemoryError
from kapell_server.engine.bulk import BulkLine
from kapell_server.engine.facts import Termination
from kapell_server.engine.gather import Gather
from kapell_server.engine.glances import Glances
from kapell_server.engine.resume import resume
from kapell_server.store.cache import TaskCache
from kapell_server.store.database import Connection, Database
from kapell_server.store.loads import forget_answers
from kapell_server.store.reads import Reads
from kapell_server.supervise import Supervisor
from kapell_server.watch.ring import Ring

_log = structlog.get_logger(__name__)

_MAILBOX = 8192
_BATCH = 256
_DEFAULT_WAIT = 30.0
_DEFAULT_GRACE = 5.0
_PREVIEW = 100
_MAINTENANCE_SECONDS = 1.0
_FORGET_EVERY = 5
_FORGET_CHUNK = 500


@dataclass(frozen=True, slots=True)
class EngineDiagnostics:
    """What the engine is busy with. Commit times in seconds, over the latest commits."""

    mailbox_depth: int
    mailbox_capacity: int
    open_polls: int
    commits: int
    commands: int
    commit_p50: float
    commit_p99: float
    ready_tasks: dict[str, int]


class Engine(Glances):
    """Owns the state and the order of all changes. Use after `start`, until `stop`."""

    ring: Ring
    reads: Reads

    def __init__(
        self,
        database: Database,
        *,
        keyring: Keyring,
        clock: Clock | None = None,
        settings: Settings | None = None,
        random: Random | None = None,
        supervisor: Supervisor | None = None,
        prices: Sequence[Price] = (),
        vault: Vault | None = None,
        profiles: Iterable[AgentProfile] = (),
    ) -> None:
        self._vault = vault or NoVault()
        self._profiles = tuple(profiles)
        self._database = database
        self._clock = clock or SystemClock()
        self._settings = settings or Settings()
        self._random = random or Random()
        self._keyring = keyring
        self._prices = prices
        self._supervisor = supervisor or Supervisor()
        self._mailbox: deque[Command] = deque()
        self._gather = Gather()
        self._draining = False
        self._terminations: dict[str, Termination] = {}
        self._cache = TaskCache()
        self._timer: asyncio.TimerHandle | None = None
        self._commit_seconds: deque[float] = deque(maxlen=1000)
        self._commits = 0
        self._commands = 0
        self._aside = 0
        self._quiet: asyncio.Future[None] | None = None
        self.oldest_revision = 0
        """The log holds what came after it: the oldest revision that a watch may start after."""
        self.tokens_version = 0
        """Changes with every token of a user that is made, revoked or forgotten."""
        self.compacted = asyncio.Event()
        """Set when `oldest_revision` has moved, for whoever removes the rows."""
        self._runner: asyncio.Task[Any] | None = None
        self._keeper: asyncio.Task[Any] | None = None

    @property
    def revision(self) -> int:
        """The newest revision that watchers have been told of."""
        return self.ring.head

    async def start(self) -> None:
        """Loads what lives and begins to take commands."""
        self._state = State(settings=self._settings, keyring=self._keyring, random=self._random, log_id="")
        self._state.usage.prices.ship(self._prices)
        self._state.vault = self._vault
        now_ns = self._clock.now_ns()
        await self._database.write(lambda connection: resume(connection, self._state, now_ns))
        self._state.pools.load(self._profiles)
        self.log_id = self._state.log_id
        self.oldest_revision = self._state.oldest_revision
        self._batcher = Batcher(self._state)
        self._bulk = BulkLine(self._state, self._enqueue_step)
        self.ring = Ring(revision=self._state.revision)
        self.reads = Reads(
            self._database,
            self._cache,
            log_id=self.log_id,
            head=lambda: self.ring.head,
            oldest=lambda: self.oldest_revision,
            has_usage=lambda: self._state.usage.last_number > 0,
        )
        self._runner = self._supervisor.spawn(self._run(), name="engine")
        self._keeper = self._supervisor.spawn(self._keep_house(), name="engine-housekeeping")
        self._arm_timer(self._state.next_due_ns())
        self._bulk.go_on()

    async def stop(self) -> None:
        """Refuses new commands, finishes the accepted ones, ends waiting polls empty."""
        if self._draining or self._runner is None:
            return
        self._draining = True
        if self._timer is not None:
            self._timer.cancel()
        if self._keeper is not None:
            self._keeper.cancel()
        self._gather.close()
        await asyncio.wait([self._runner])

    # -- commands ----------------------------------------------------------------------------

    async def submit_aside(self, request: Any, caller: Caller) -> bytes:
        """As `submit`, for housekeeping: nobody is made to wait for company because of it."""
        self._aside += 1
        try:
            return await self.submit(request, caller)
        finally:
            self._aside -= 1

    async def submit(self, request: Any, caller: Caller) -> bytes:
        """Decides and commits one command; returns its encoded response.

        `request` is a validated request message or a fact; `caller` has the scope for it. The same
        request_id gives the first answer again. Raises KapellError. Once this has begun, cancelling
        the caller does not take the command back. LeaseTasks and AcquireLocks wait inside for up to their `wait`.
        """
        command = Command(request, caller, asyncio.get_running_loop().create_future())
        self._enqueue(command)
        if type(request) is LeaseTasksRequest:
            wait = duration_ns(request.wait) / SECOND if request.HasField("wait") else _DEFAULT_WAIT
            return await self._poll(command, wait)
        if type(request) is AcquireLocksRequest and duration_ns(request.wait) > 0:
            return await self._poll(command, duration_ns(request.wait) / SECOND)
        return await command.future

    async def change_tasks(self, request: BulkRequest, caller: Caller) -> bytes:
        """CancelTasks, RetryTasks or ReprioritizeTasks: as `submit`, with the tasks that match found beforehand.

        Finding them may take a while in a large table, so it goes past the writer, which then looks
        again at what has changed since. A preview ends there.
        """
        limit = request.max_affected or DEFAULT_AFFECTED
        selection = await self.reads.select_tasks(request.filter, limit + 1)
        if request.preview:
            response = RESPONSES[type(request)](matched=selection.matched, revision=selection.revision)
            response.preview_task_ids.extend(selection.task_ids[:_PREVIEW])
            return response.SerializeToString()
        return await self.submit(BulkCommand(request, selection), caller)

    def _enqueue_step(self, step: BulkStep) -> None:
        """The next step of a change of many tasks. It was taken in long ago, so no limit holds it back."""
        if self._draining:
            return
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._mailbox.append(Command(step, step.job.caller, future))
        self._gather.arrived(len(self._mailbox))

    def _enqueue(self, command: Command) -> None:
        if self._draining:
            raise _draining()
        if len(self._mailbox) >= _MAILBOX:
            raise KapellError(
                ERROR_REASON_QUEUE_FULL,
                f"The server has {_MAILBOX} writes waiting, its limit. Try again in a moment.",
                retry_after=0.5,
            )
        self._mailbox.append(command)
        self._gather.arrived(len(self._mailbox))

    async def _poll(self, command: Command, wait: float) -> bytes:
        """Waits inside for up to `wait` seconds."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(wait, self._end_poll, command, False)
        try:
            return await command.future
        except asyncio.CancelledError:
            self._end_poll(command, True)
            raise
        finally:
            timer.cancel()

    def _end_poll(self, command: Command, abandoned: bool) -> None:
        if self._draining:
            return
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._mailbox.append(Command(PollOver(command, abandoned), command.caller, future))
        self._gather.arrived(len(self._mailbox))

    async def quiet(self, patience: float) -> None:
        """Returns when no command waits for the writer, or after `patience` seconds."""
        if self._mailbox:
            if self._quiet is None:
                self._quiet = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._quiet], timeout=patience)

    def termination(self, agent_id: str) -> Termination | None:
        """How the agent is to be ended; None where nobody has asked in the life of this process."""
        return self._terminations.get(agent_id)

    def diagnostics(self) -> EngineDiagnostics:
        """What the engine is busy with right now."""
        times = sorted(self._commit_seconds)
        return EngineDiagnostics(
            mailbox_depth=len(self._mailbox),
            mailbox_capacity=_MAILBOX,
            open_polls=len(self._state.polls),
            commits=self._commits,
            commands=self._commands,
            commit_p50=times[len(times) // 2] if times else 0.0,
            commit_p99=times[len(times) * 99 // 100] if times else 0.0,
            ready_tasks=self._state.queues.ready.depths(),
        )

    # -- the writer's loop -------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await self._gather.wait(len(self._mailbox))
            if self._draining and not self._mailbox:
                self._end_waiting_polls()
                return
            mailbox = self._mailbox
            commands = [mailbox.popleft() for _ in range(min(len(mailbox), _BATCH))]
            await self._commit(commands)
            self._gather.done(len(commands) - self._aside, len(mailbox))
            if self._quiet is not None and not mailbox:
                self._quiet.set_result(None)
                self._quiet = None

    async def _commit(self, commands: list[Command]) -> None:
        began = time.perf_counter()
        try:
            outcome = await self._write(commands)
        except KapellError as error:
            for command in commands:
                self._fail(command, error)
        except StaleMemoryError:
            self._give_up(commands)
            raise
        except Exception as error:
            await self._isolate(commands, error)
        else:
            self._batcher.settle()
            self._commits += outcome.wrote
            self._commit_seconds.append(time.perf_counter() - began)
            self._publish(commands, outcome)

    async def _write(self, commands: list[Command]) -> Outcome:
        now_ns = self._clock.now_ns()
        batcher = self._batcher

        def work(connection: Connection) -> Outcome:
            return batcher.run(connection, commands, now_ns)

        try:
            outcome = await self._database.write(work)
        except BaseException:
            batcher.undo()
            self._arm_timer(self._state.next_due_ns())
            raise
        return outcome

    def _give_up(self, commands: list[Command]) -> None:
        """Nothing can be decided any more: refuses everything. The crash of the loop stops the server."""
        self._draining = True
        for command in [*commands, *self._mailbox]:
            self._fail(command, _draining())
        self._end_waiting_polls()

    async def _isolate(self, commands: list[Command], error: Exception) -> None:
        """A batch failed by a defect: each command is tried alone, so only the guilty one fails."""
        if len(commands) <= 1:
            _log.error("a command failed in the writer", exc_info=error)
            for command in commands:
                self._fail(command, error)
            return
        for command in commands:
            await self._commit([command])

    def _fail(self, command: Command, error: Exception) -> None:
        """Answers with the error. A poll that was to end ends by it: nobody would try that again."""
        if type(command.request) is PollOver:
            command = command.request.command
            if command.poll is not None:
                self._state.polls.remove(command.poll)
            if command.wait is not None and command in command.wait.handles:
                command.wait.handles.remove(command)
        if type(command.request) is BulkStep:
            for waiter, _ in self._bulk.failed(command.request.job, error):
                self._fail(waiter, error)
            return
        if not command.future.done():
            command.future.set_exception(error)

    def _publish(self, commands: list[Command], outcome: Outcome) -> None:
        self._commands += len(commands)
        if any(type(command.request) is BulkStep for command in commands):
            self._bulk.stepped()
        self._bulk.go_on()
        for command, answer in outcome.answers:
            if type(command.request) is TerminateAgentRequest and not isinstance(answer, KapellError):
                self._note_termination(command.request)
        self._forget_terminations(outcome)
        if outcome.oldest_revision != self.oldest_revision:
            self.oldest_revision = outcome.oldest_revision
            self.compacted.set()
        if outcome.records:
            self._cache.feed(outcome.records, outcome.contents)
            self.ring.publish(outcome.records)
            if any(type(record.resource) is Token for record in outcome.records):
                self.tokens_version += 1
        for command, answer in outcome.answers:
            if command.future.done():
                continue
            if isinstance(answer, KapellError):
                command.future.set_exception(answer)
            else:
                command.future.set_result(answer)
        self._arm_timer(outcome.next_due_ns)

    def _note_termination(self, request: TerminateAgentRequest) -> None:
        if request.agent_id not in self._state.agents:
            return  # It has ended already, so nobody will ask.
        graceful = duration_ns(request.grace_period) / SECOND if request.HasField("grace_period") else _DEFAULT_GRACE
        force = request.mode == TERMINATE_MODE_FORCE
        known = self._terminations.get(request.agent_id)
        if known is not None and known.force:
            return
        self._terminations[request.agent_id] = Termination(force, 0.0 if force else graceful, request.reason)

    def _forget_terminations(self, outcome: Outcome) -> None:
        if self._terminations:
            for record in outcome.records:
                agent = record.resource
                if isinstance(agent, Agent) and agent.state in AGENT_FINAL and agent.agent_id in self._terminations:
                    del self._terminations[agent.agent_id]

    def _end_waiting_polls(self) -> None:
        """Nobody is left waiting. Changes of many tasks go on at the next start."""
        for job in self._state.bulk_jobs.values():
            for waiter, _ in job.waiters:
                self._fail(waiter, _draining())
        for poll in self._state.polls.all():
            if not poll.handle.future.done():
                poll.handle.future.set_exception(_draining())
        for wait in self._state.locks.waits.values():
            for handle in wait.handles:
                self._fail(handle, _draining())

    # -- time --------------------------------------------------------------------------------

    def _arm_timer(self, due_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_ns and not self._draining:
            delay = max(0.0, (due_ns - self._clock.now_ns()) / SECOND)
            self._timer = asyncio.get_running_loop().call_later(min(delay, 3600.0), self._gather.ring)

    def wake(self) -> None:
        """Looks at what is due, now: for tests that move the clock."""
        self._gather.ring()

    async def _keep_house(self) -> None:
        rounds = 0
        seen = -1
        while True:
            await asyncio.sleep(_MAINTENANCE_SECONDS)
            rounds += 1
            self._bulk.go_on()
            try:
                if self._commits != seen:
                    seen = self._commits
                    await self._database.maintain()
                if rounds % _FORGET_EVERY == 0:
                    await self.forget_answers()
            except KapellError as error:
                _log.warning("housekeeping is put off", reason=error.reason_name)

    async def forget_answers(self) -> None:
        """Drops the answers whose request_id need not be known any more, some at a time between batches."""
        before = self._clock.now_ns() - int(self._settings.request_id_lifetime * SECOND)
        while await self._database.write(lambda connection: forget_answers(connection, before, _FORGET_CHUNK)):
            pass


def _draining() -> KapellError:
    return KapellError(
        ERROR_REASON_SERVER_DRAINING, "The server is stopping. Connect again in a moment.", retry_after=1.0
    )
