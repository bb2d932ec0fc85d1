"""Watches through a network that breaks again and again: nothing missed, nothing twice, in order (W1, W2).

A real server, written to directly; each of a test's two watchers sits behind a proxy of its own,
which resets its connection at once, after some bytes of an answer, after a time of silence, or
refuses the next one as well.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest
from kapell import Client
from kapell.discovery import Endpoint
from kapell.v1 import task_pb2
from kapell.v1.task_pb2 import TaskSpec
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_CANCELLED, EVENT_KIND_TASK_DELETED

from tests.crash.audit import Audit
from tests.crash.journal import Journal
from tests.crash.peer import Peer, connected
from tests.crash.watchers import LogWatcher, SdkWatcher, SnapshotWatcher
from tests.support.cutting_proxy import CuttingProxy
from tests.support.server_process import ServerProcess

Watcher = LogWatcher | SnapshotWatcher | SdkWatcher


class Network:
    """A server, an undisturbed connection to write by, and a breaking one for each watcher."""

    def __init__(self, server: ServerProcess, held: AsyncExitStack) -> None:
        self.journal = Journal()
        self.proxies: list[CuttingProxy] = []
        self.writer: Peer
        self._server = server
        self._held = held
        self._rng = random.Random(4)
        self._watching: list[tuple[Watcher, asyncio.Task[None]]] = []

    async def open(self) -> None:
        self.writer = await self._held.enter_async_context(
            connected(self._server.address, self._server.admin_token, self.journal)
        )

    async def breaking(self) -> CuttingProxy:
        """A proxy to the server that will be cut."""
        proxy = await self._held.enter_async_context(CuttingProxy(self._server.address))
        self.proxies.append(proxy)
        return proxy

    async def raw(self) -> Peer:
        """Stubs behind a breaking proxy."""
        proxy = await self.breaking()
        peer = connected(proxy.address, self._server.admin_token, self.journal)
        return await self._held.enter_async_context(peer)

    async def sdk(self) -> Client:
        """The SDK behind a breaking proxy."""
        proxy = await self.breaking()
        endpoint = Endpoint(address=proxy.address, token=self._server.admin_token)
        return await self._held.enter_async_context(Client(endpoint))

    def follow(self, watcher: Watcher) -> None:
        """Starts a watcher."""
        task = asyncio.ensure_future(watcher.run())
        self._watching.append((watcher, task))
        self._held.push_async_callback(self._end, task)

    async def break_often(self, cuts: int) -> None:
        """Writes and breaks; each time every watcher must have a live stream again before the next break."""
        for _ in range(cuts):
            burst = asyncio.ensure_future(self._write())
            await asyncio.gather(*(self._break(proxy, burst) for proxy in self.proxies))
            revision = await self._write_marker()
            for watcher, task in self._watching:
                await self._unless_failed(task, watcher.until(revision))

    async def _break(self, proxy: CuttingProxy, burst: asyncio.Future[None]) -> None:
        """Resets the watcher's connection once, in one of the ways in which networks do."""
        before = proxy.cuts
        match self._rng.randrange(4):
            case 0:
                proxy.cut()
                await burst
            case 1:
                proxy.cut_after(self._rng.randint(1, 4000))
                await burst
            case 2:
                accepted = proxy.accepted
                proxy.refuse()
                proxy.cut()
                await burst
                await proxy.wait_until(lambda it: it.accepted > accepted)
                proxy.accept()
            case 3:
                proxy.freeze()
                await burst
                proxy.cut()
                proxy.thaw()
        if proxy.cuts == before:
            proxy.cut()

    async def _write(self) -> None:
        """A few tasks; some are cancelled, some of those deleted."""
        for _ in range(3):
            task_id = await self._create()
            if self._rng.random() < 0.6:
                await self._cancel(task_id)
                if self._rng.random() < 0.5:
                    request = task_pb2.DeleteTaskRequest(task_id=task_id)
                    await self.writer.ask("delete", self.writer.tasks.DeleteTask, request)

    async def _write_marker(self) -> int:
        """The revision of an event that every watcher wants."""
        return await self._cancel(await self._create())

    async def _create(self) -> str:
        spec = TaskSpec(agent_type="nobody", prompt="x" * self._rng.randint(0, 1500))
        answer = await self.writer.ask("create", self.writer.tasks.CreateTask, task_pb2.CreateTaskRequest(task=spec))
        return str(answer.task.task_id)

    async def _cancel(self, task_id: str) -> int:
        request = task_pb2.CancelTaskRequest(task_id=task_id)
        answer = await self.writer.ask("cancel", self.writer.tasks.CancelTask, request)
        return int(answer.revision)

    async def _unless_failed(self, task: asyncio.Task[None], wait: Coroutine[Any, Any, None]) -> None:
        waiting = asyncio.ensure_future(wait)
        await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            waiting.cancel()
            task.result()

    async def _end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def network(server_process: ServerProcess) -> AsyncIterator[Network]:
    async with AsyncExitStack() as held:
        network = Network(server_process, held)
        await network.open()
        yield network


async def bare_watches_resume(network: Network, cuts: int) -> None:
    watcher, rememberless = LogWatcher(await network.raw()), SnapshotWatcher(await network.raw())
    for each in (watcher, rememberless):
        network.follow(each)
    await watcher.begun.wait()

    await network.break_often(cuts)

    audit = await Audit.take(network.writer, network.journal)
    await watcher.until(audit.head)
    await rememberless.until(audit.head)
    assert watcher.streams > cuts
    assert rememberless.streams > cuts
    assert [*audit.log_has_no_gap(), *audit.every_task_lived_by_the_rules(), *audit.replay_is_the_state()] == []
    assert list(audit.watcher_saw_the_log(watcher.seen, 1)) == []
    assert rememberless.resources == {**audit.tasks, **audit.agents}


async def sdk_watches_resume(network: Network, cuts: int) -> None:
    everything = SdkWatcher(await network.sdk())
    ends = SdkWatcher(await network.sdk(), EVENT_KIND_TASK_CANCELLED, EVENT_KIND_TASK_DELETED)
    for each in (everything, ends):
        await each.watch.ready()
        network.follow(each)

    await network.break_often(cuts)

    audit = await Audit.take(network.writer, network.journal)
    for each in (everything, ends):
        await each.has(sum(map(each.wants, audit.log)))
        assert list(audit.sdk_watcher_saw_its_part(each)) == []
        assert each.watch.reconnects >= cuts
    assert len(everything.revisions) == audit.head


async def test_bare_watches_resume_over_200_disconnects(network: Network) -> None:
    await bare_watches_resume(network, 100)


async def test_watches_of_the_sdk_resume_over_200_disconnects(network: Network) -> None:
    await sdk_watches_resume(network, 100)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_bare_watches_resume_over_2000_disconnects(network: Network) -> None:
    await bare_watches_resume(network, 1000)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_watches_of_the_sdk_resume_over_600_disconnects(network: Network) -> None:
    await sdk_watches_resume(network, 300)
