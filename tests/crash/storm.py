"""A storm: a server under load that is killed again and again, and the trial of what it has said.

One data directory from the first process to the last. Clients, workers and watchers live through
all of it with the same connections; only the server dies. The moment of each kill is chosen by
chance: so many marks of one kind in the journal from now on, and then up to ten milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Iterable
from contextlib import AsyncExitStack
from typing import Any, Self

from kapell import Client
from kapell.discovery import Endpoint
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_COMPLETED, EVENT_KIND_TASK_STARTED

from tests.crash.audit import Audit
from tests.crash.creators import Creator
from tests.crash.journal import Journal
from tests.crash.peer import Peer, connected
from tests.crash.watchers import LogWatcher, SdkWatcher, SnapshotWatcher, Standing
from tests.crash.workers import Poacher, StormWorker, Tokens
from tests.support.server_process import ServerProcess

LEASE_SECONDS = 3
HEARTBEAT_SECONDS = 1
ARGUMENTS = ("--lease-duration", f"{LEASE_SECONDS}s", "--heartbeat-interval", f"{HEARTBEAT_SECONDS}s")
DRAIN_SECONDS = 60.0

# What a kill waits for, and at most how many of it: a mark of an answer strikes between two
# requests, one of a request inside.
POINTS = {
    "create sent": 40,
    "create acknowledged": 40,
    "batch sent": 6,
    "gamble sent": 2,
    "update sent": 3,
    "cancel sent": 4,
    "retry acknowledged": 3,
    "lease sent": 30,
    "lease acknowledged": 30,
    "complete sent": 60,
    "complete acknowledged": 60,
    "complete batch sent": 5,
    "fail sent": 6,
    "logs sent": 10,
    "anything": 200,
}


class Storm:
    """Enter it to begin the load, `kill` as often as wanted, then `calm` and `faults`."""

    def __init__(self, server: ServerProcess, seed: int) -> None:
        self.server = server
        self.journal = Journal()
        self.rng = random.Random(seed)
        self.tokens = Tokens()
        self.standing = Standing()
        self.kills = 0
        self.creators: list[Creator] = []
        self.workers: list[StormWorker] = []
        self.log_watchers: list[LogWatcher] = []
        self.sdk_watchers: list[SdkWatcher] = []
        self.snapshot_watcher: SnapshotWatcher
        self.poacher: Poacher
        self._creating_ends = asyncio.Event()
        self._working_ends = asyncio.Event()
        self._load: list[asyncio.Task[None]] = []
        self._work: list[asyncio.Task[None]] = []
        self._watching: list[asyncio.Task[None]] = []
        self._held = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._begin_watching()
        for number in range(3):
            rng = random.Random(self.rng.random())
            peer = await self._peer()
            creator = Creator(f"c{number}", peer, self.journal, self.standing, rng)
            self.creators.append(creator)
            self._load.append(asyncio.create_task(creator.run(self._creating_ends), name=creator.name))
        for number in range(3):
            rng = random.Random(self.rng.random())
            peer = await self._peer()
            worker = StormWorker(
                f"w{number}", peer, self.journal, self.tokens, self.standing, rng, heartbeat=HEARTBEAT_SECONDS
            )
            self.workers.append(worker)
            self._work.append(asyncio.create_task(worker.run(self._working_ends), name=worker.name))
        self.poacher = Poacher(await self._peer(), self.journal, self.tokens, self.rng)
        self._watching.append(asyncio.create_task(self.poacher.run(self._working_ends), name="poacher"))
        return self

    async def __aexit__(self, *_: object) -> None:
        everybody = [*self._load, *self._work, *self._watching]
        for task in everybody:
            task.cancel()
        await asyncio.gather(*everybody, return_exceptions=True)
        for watcher in self.sdk_watchers:
            watcher.watch.close()
        await self._held.aclose()

    async def kill(self, *, frozen: bool = False) -> None:
        """Waits for a moment, kills the server there, and starts it again on the same directory.

        `frozen`: stops it first, so that requests pile up in a server that does nothing; then it
        either dies so, or wakes up, begins to answer, and dies then.
        """
        point, most = self.rng.choice(list(POINTS.items()))
        await self._while_all_is_well(self.journal.after(point, self.rng.randint(1, most)))
        await _elapsed(self.rng.uniform(0, 0.01))
        if frozen:
            os.kill(self.server.pid, signal.SIGSTOP)
            await self._while_all_is_well(self.journal.after("anything", self.rng.randint(1, 3)))
            if self.rng.random() < 0.5:
                os.kill(self.server.pid, signal.SIGCONT)
                await self._while_all_is_well(self.journal.after("anything", self.rng.randint(1, 3)))
        self.server.kill()
        self.kills += 1
        await asyncio.to_thread(self.server.start)

    async def calm(self) -> None:
        """Ends the creating, lets workers finish every task, and kills the server a last time."""
        self._creating_ends.set()
        await self.standing.look_again()
        await self._while_all_is_well(asyncio.gather(*self._load))
        for worker in self.workers:
            worker.diligent = True
        await self._drained()
        self._working_ends.set()
        await asyncio.gather(*self._work)
        self.server.kill()
        self.kills += 1
        await asyncio.to_thread(self.server.start)

    async def _drained(self) -> None:
        """Returns when every task has ended: none may be forgotten, however often the server died."""
        standing = self.standing
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._while_all_is_well(standing.until(lambda: not standing.open))
        except TimeoutError:
            left = [str(standing.tasks[task_id]) for task_id in standing.open]
            raise AssertionError(f"{len(left)} tasks never ended, such as {left[:3]}") from None

    async def faults(self) -> list[str]:
        """Everything that is wrong, in words; empty when every promise was kept."""
        peer = await self._peer()
        await self._repeat_old_requests()
        for offer in self.rng.sample(list(self.tokens.dead.values()), min(20, len(self.tokens.dead))):
            await self.poacher.poach(offer)
        audit = await Audit.take(peer, self.journal)
        await self._watchers_caught_up(audit)
        found: list[str] = list(self.journal.broken)
        found += audit.log_has_no_gap()
        found += audit.every_task_lived_by_the_rules()
        found += audit.replay_is_the_state()
        found += audit.nothing_acknowledged_is_lost()
        found += await audit.acknowledged_completions_stay(peer)
        found += audit.every_request_had_one_effect()
        for creator in self.creators:
            found += audit.gambles_are_all_or_nothing(creator.gambles)
        sample = self.rng.sample(sorted(audit.tasks), min(200, len(audit.tasks)))
        found += await audit.attempts_agree_with_the_log(peer, sample)
        found += await audit.acknowledged_logs_are_there(peer)
        found += self._watchers_faults(audit)
        return found

    def _watchers_faults(self, audit: Audit) -> Iterable[str]:
        for watcher in self.log_watchers:
            yield from audit.watcher_saw_the_log(watcher.seen, 1)
        for sdk_watcher in self.sdk_watchers:
            yield from audit.sdk_watcher_saw_its_part(sdk_watcher)
        snapshot = self.snapshot_watcher.resources
        for key, resource in {**audit.tasks, **audit.agents}.items():
            if snapshot.get(key) != resource:
                yield f"W2: {key} is {resource}, snapshot and events say {snapshot.get(key)}"
        for key in snapshot.keys() - audit.tasks.keys() - audit.agents.keys():
            yield f"W2: {key} is gone, snapshot and events have it"

    async def _repeat_old_requests(self) -> None:
        for creator in self.creators:
            await creator.repeat_all(60)
            reason = await creator.reuse_a_request_id()
            if reason != "REQUEST_ID_REUSED":
                self.journal.broken.append(f"D3: another body under a used request_id was answered with {reason}")

    async def _watchers_caught_up(self, audit: Audit) -> None:
        await self._while_all_is_well(self.standing.until(lambda: self.standing.revision >= audit.head))
        await self._while_all_is_well(self.snapshot_watcher.until(audit.head))
        for watcher in self.log_watchers:
            await self._while_all_is_well(watcher.until(audit.head))
        for sdk_watcher in self.sdk_watchers:
            await self._while_all_is_well(sdk_watcher.has(sum(map(sdk_watcher.wants, audit.log))))

    async def _begin_watching(self) -> None:
        for standing in (self.standing, None):
            log_watcher = LogWatcher(await self._peer(), standing)
            self.log_watchers.append(log_watcher)
            self._watching.append(asyncio.create_task(log_watcher.run(), name="log watcher"))
            await log_watcher.begun.wait()
        self.snapshot_watcher = SnapshotWatcher(await self._peer())
        self._watching.append(asyncio.create_task(self.snapshot_watcher.run(), name="snapshot watcher"))
        for kinds in ((), (EVENT_KIND_TASK_COMPLETED, EVENT_KIND_TASK_STARTED)):
            endpoint = Endpoint(address=self.server.address, token=self.server.admin_token)
            client = await self._held.enter_async_context(Client(endpoint))
            sdk_watcher = SdkWatcher(client, *kinds)
            await sdk_watcher.watch.ready()
            self.sdk_watchers.append(sdk_watcher)
            self._watching.append(asyncio.create_task(sdk_watcher.run(), name="sdk watcher"))

    async def _peer(self) -> Peer:
        return await self._held.enter_async_context(
            connected(self.server.address, self.server.admin_token, self.journal)
        )

    async def _while_all_is_well(self, wait: Awaitable[object]) -> None:
        """Awaits; fails at once where a client, a worker or a watcher has died meanwhile."""
        waiting: asyncio.Future[Any] = asyncio.ensure_future(wait)
        others: list[asyncio.Future[Any]] = [
            task for task in (*self._load, *self._work, *self._watching) if not _ended_well(task)
        ]
        try:
            while not waiting.done():
                await asyncio.wait([waiting, *others], return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in others if task.done()]:
                    task.result()
                    others.remove(task)
            await waiting
        finally:
            waiting.cancel()


def _ended_well(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def _elapsed(seconds: float) -> None:
    """The random part of a moment: no other part of the system waits for this time."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await over.wait()
