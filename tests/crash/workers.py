"""Workers of a storm: they speak the bare protocol, and some of them behave badly.

Most attempts are completed, one by one or in batches; others fail, are handed back, are never
taken up, or fall silent until their lease is lost and then try to complete all the same. Tokens
that are known to be dead are used on purpose: each use must be refused and change nothing (T5).
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from google.protobuf.struct_pb2 import Value
from kapell.errors import KapellError
from kapell.v1 import worker_pb2
from kapell.v1.common_pb2 import LogEntry
from kapell.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_SUCCEEDED, TaskFailure, TaskProgress
from kapell.v1.worker_pb2 import LEASE_DIRECTIVE_LOST, Offer

from tests.crash.creators import AGENT_TYPE
from tests.crash.journal import Journal
from tests.crash.peer import Peer
from tests.crash.watchers import Standing

SLOTS = 8
POACHED = "POACHED"


def result_of(task_id: str, attempt: int) -> Value:
    """What an attempt answers; says whose work it is."""
    return Value(string_value=f"{task_id} by attempt {attempt}")


class Tokens:
    """Every lease token of the storm, and which of them must not work any more."""

    def __init__(self) -> None:
        self.dead: dict[str, worker_pb2.Offer] = {}
        self.succeeded: set[str] = set()
        self.holders: dict[str, str] = {}
        self._latest: dict[str, Offer] = {}

    def offered(self, offer: Offer, agent_id: str) -> str:
        """Notes an offer; what is wrong with it, or nothing. A newer attempt kills the token of the older."""
        known = self.holders.setdefault(offer.lease_token, agent_id)
        before = self._latest.get(offer.task.task_id)
        if known != agent_id:
            return f"T2: attempt {offer.attempt} of {offer.task.task_id} was given to {known} and {agent_id}"
        if before is not None and before.attempt < offer.attempt:
            self.dead[before.lease_token] = before
        if before is None or before.attempt < offer.attempt:
            self._latest[offer.task.task_id] = offer
        return ""

    def ended(self, offer: Offer) -> None:
        """The server has said that the attempt is over, or lost."""
        self.dead[offer.lease_token] = offer


class StormWorker:
    """One agent with `SLOTS` slots. `agent_id` is set once it has registered."""

    def __init__(
        self,
        name: str,
        user: Peer,
        journal: Journal,
        tokens: Tokens,
        standing: Standing,
        rng: random.Random,
        *,
        heartbeat: float,
    ) -> None:
        self.name = name
        self.agent_id = ""
        self.diligent = False
        self._user = user
        self._peer = user
        self._journal = journal
        self._tokens = tokens
        self._standing = standing
        self._rng = rng
        self._heartbeat = heartbeat
        self._polls = itertools.count(1)
        self._working: dict[str, Offer] = {}
        self._batch: list[Offer] = []
        self._free = asyncio.Semaphore(SLOTS)

    async def run(self, stop: asyncio.Event) -> None:
        """Works until asked to stop, finishes what it has, and says goodbye."""
        await self._register()
        async with asyncio.TaskGroup() as group:
            beats = group.create_task(self._beat(), name=f"{self.name} heartbeat")
            await self._poll(stop, group)
            await self._complete_batch()
            for _ in range(SLOTS):
                await self._free.acquire()
            beats.cancel()
        await self._peer.ask(
            "goodbye", self._peer.worker.Deregister, worker_pb2.DeregisterRequest(agent_id=self.agent_id)
        )

    async def _register(self) -> None:
        request = worker_pb2.RegisterWorkerRequest(
            instance_key=f"storm-worker-{self.name}", agent_types=[AGENT_TYPE], slots=SLOTS
        )
        answer = await self._user.ask("register", self._user.worker.RegisterWorker, request)
        self.agent_id = answer.agent.agent_id
        self._peer = self._user.with_token(answer.agent_token, agent_id=self.agent_id)

    async def _poll(self, stop: asyncio.Event, group: asyncio.TaskGroup) -> None:
        while not stop.is_set():
            await self._free.acquire()
            self._free.release()
            request = worker_pb2.LeaseTasksRequest(
                agent_id=self.agent_id, max_tasks=4, poll_id=f"{self.name}-{next(self._polls)}"
            )
            request.wait.FromMilliseconds(1000)
            answer = await self._peer.ask("lease", self._peer.worker.LeaseTasks, request)
            for offer in answer.offers:
                self._take(offer, group)
            if not answer.offers:
                await self._complete_batch()

    def _take(self, offer: Offer, group: asyncio.TaskGroup) -> None:
        if trouble := self._tokens.offered(offer, self.agent_id):
            self._journal.broken.append(trouble)
        if offer.lease_token in self._working:
            return
        self._working[offer.lease_token] = offer
        group.create_task(self._work(offer), name=f"{self.name} {offer.task.task_id}")

    async def _work(self, offer: Offer) -> None:
        await self._free.acquire()
        ways: dict[Callable[[Offer], Awaitable[None]], int] = {
            self._complete: 60,
            self._complete_later: 14,
            self._report_and_complete: 8,
            self._fail: 7,
            self._give_up: 2,
            self._release: 4,
            self._ignore: 2,
            self._fall_silent: 3,
        }
        [way] = self._rng.choices(list(ways), weights=list(ways.values()))
        try:
            await (self._complete if self.diligent else way)(offer)
        except KapellError as error:
            if error.reason != "LEASE_LOST":
                raise
            self._tokens.ended(offer)
        finally:
            self._working.pop(offer.lease_token, None)
            self._free.release()

    async def _complete(self, offer: Offer) -> None:
        request = worker_pb2.CompleteTaskRequest(
            lease_token=offer.lease_token, result=result_of(offer.task.task_id, offer.attempt)
        )
        answer = await self._peer.ask("complete", self._peer.worker.CompleteTask, request)
        self._note_end(offer, answer.state)

    async def _complete_later(self, offer: Offer) -> None:
        self._batch.append(offer)
        if len(self._batch) >= 3:
            await self._complete_batch()
        else:
            # Until the batch is full, or a poll has found nothing more to fill it with.
            await self._standing.until(lambda: offer not in self._batch)

    async def _complete_batch(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        await self._standing.look_again()
        request = worker_pb2.BatchCompleteTasksRequest()
        for offer in batch:
            request.completions.add(lease_token=offer.lease_token, result=result_of(offer.task.task_id, offer.attempt))
        answer = await self._peer.ask("complete batch", self._peer.worker.BatchCompleteTasks, request)
        for offer, outcome in zip(batch, answer.outcomes, strict=True):
            if outcome.lease_lost:
                self._tokens.ended(offer)
            else:
                self._note_end(offer, outcome.state)

    async def _report_and_complete(self, offer: Offer) -> None:
        progress = TaskProgress(fraction=self._rng.random(), step="half-way")
        await self._peer.ask(
            "progress",
            self._peer.worker.ReportProgress,
            worker_pb2.ReportProgressRequest(lease_token=offer.lease_token, progress=progress),
        )
        offset = 0
        for size in (3, 1, 5):
            entries = [LogEntry(text=f"line {offset + number} of {offer.lease_token}") for number in range(size)]
            request = worker_pb2.AppendTaskLogsRequest(lease_token=offer.lease_token, offset=offset, entries=entries)
            answer = await self._peer.ask("logs", self._peer.worker.AppendTaskLogs, request)
            offset = answer.next_offset
        await self._complete(offer)

    async def _fail(self, offer: Offer, *, retryable: bool = True) -> None:
        failure = TaskFailure(reason="UNLUCKY", message=f"attempt {offer.attempt}", retryable=retryable)
        request = worker_pb2.FailTaskRequest(lease_token=offer.lease_token, failure=failure)
        await self._peer.ask("fail", self._peer.worker.FailTask, request)
        self._tokens.ended(offer)

    async def _give_up(self, offer: Offer) -> None:
        await self._fail(offer, retryable=False)

    async def _release(self, offer: Offer) -> None:
        request = worker_pb2.ReleaseTaskRequest(lease_token=offer.lease_token)
        try:
            await self._peer.ask("release", self._peer.worker.ReleaseTask, request)
        finally:
            self._tokens.ended(offer)

    async def _ignore(self, offer: Offer) -> None:
        """Never a word about it: the offer goes back by itself."""
        self._working.pop(offer.lease_token, None)
        await self._until_taken_away(offer)

    async def _fall_silent(self, offer: Offer) -> None:
        """Confirms, is not heard of, and completes when the attempt is no longer its own."""
        progress = TaskProgress(fraction=0.1, step="about to fall silent")
        await self._peer.ask(
            "progress",
            self._peer.worker.ReportProgress,
            worker_pb2.ReportProgressRequest(lease_token=offer.lease_token, progress=progress),
        )
        self._working.pop(offer.lease_token, None)
        await self._until_taken_away(offer)
        request = worker_pb2.CompleteTaskRequest(lease_token=offer.lease_token, result=Value(string_value=POACHED))
        answer = await self._peer.ask("complete late", self._peer.worker.CompleteTask, request)
        # Where the task was cancelled meanwhile it is told so; anything else would be a breach.
        if answer.state != TASK_STATE_CANCELLED:
            self._journal.broken.append(f"T5: {offer.task.task_id} was completed by an attempt that had lost it")

    async def _until_taken_away(self, offer: Offer) -> None:
        """Waits for the event that ends the attempt."""

        def gone() -> bool:
            task = self._standing.tasks.get(offer.task.task_id)
            return task is None or task.attempt > offer.attempt or not task.HasField("lease")

        await self._standing.until(lambda: self._standing.revision >= offer.task.revision and gone())
        self._tokens.ended(offer)

    def _note_end(self, offer: Offer, state: int) -> None:
        self._tokens.ended(offer)
        if state == TASK_STATE_SUCCEEDED:
            self._tokens.succeeded.add(offer.lease_token)

    async def _beat(self) -> None:
        """Names every lease it holds, each `heartbeat` seconds."""
        tick = asyncio.Event()
        loop = asyncio.get_running_loop()
        while True:
            named = dict(self._working)
            request = worker_pb2.HeartbeatRequest(agent_id=self.agent_id)
            for token in named:
                request.leases.add(lease_token=token)
            answer = await self._peer.ask("heartbeat", self._peer.worker.Heartbeat, request)
            for status in answer.leases:
                if status.directive == LEASE_DIRECTIVE_LOST:
                    self._tokens.ended(named[status.lease_token])
            loop.call_later(self._heartbeat, tick.set)
            await tick.wait()
            tick.clear()


class Poacher:
    """Uses dead tokens, as their former holder and as an administrator."""

    def __init__(self, user: Peer, journal: Journal, tokens: Tokens, rng: random.Random) -> None:
        self.tried = 0
        self._user = user
        self._journal = journal
        self._tokens = tokens
        self._rng = rng

    async def run(self, stop: asyncio.Event) -> None:
        """One try after every tenth lease, until asked to stop."""
        while not stop.is_set():
            await self._journal.after("lease acknowledged", 10)
            if self._tokens.dead:
                await self.poach(self._rng.choice(list(self._tokens.dead.values())))

    async def poach(self, offer: Offer) -> None:
        """Tries every verb with the dead token of the offer."""
        self.tried += 1
        token = offer.lease_token
        worker = self._user.worker
        progress = TaskProgress(fraction=0.9, step=POACHED)
        failure = TaskFailure(reason=POACHED)
        await self._refused(
            worker.ReportProgress, worker_pb2.ReportProgressRequest(lease_token=token, progress=progress)
        )
        await self._refused(worker.FailTask, worker_pb2.FailTaskRequest(lease_token=token, failure=failure))
        await self._refused(worker.ReleaseTask, worker_pb2.ReleaseTaskRequest(lease_token=token))
        logs = worker_pb2.AppendTaskLogsRequest(lease_token=token, entries=[LogEntry(text=POACHED)])
        await self._refused(worker.AppendTaskLogs, logs)
        completion = worker_pb2.CompleteTaskRequest(lease_token=token, result=Value(string_value=POACHED))
        # The attempt that did succeed gets its first answer again, that of a cancelled task is told so.
        ends = [TASK_STATE_SUCCEEDED] if token in self._tokens.succeeded else [TASK_STATE_CANCELLED]
        await self._refused(worker.CompleteTask, completion, unless=ends)

    async def _refused(self, method: Any, request: Any, *, unless: Collection[int] = ()) -> None:
        try:
            answer = await self._user.ask("poach", method, request)
        except KapellError as error:
            if error.reason != "LEASE_LOST":
                self._journal.broken.append(f"T5: a dead token was refused with {error.reason}: {error}")
            return
        if not unless or answer.state not in unless:
            self._journal.broken.append(f"T5: {type(request).__name__} with a dead token was answered with {answer}")
