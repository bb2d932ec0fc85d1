"""Locks held by blocks of code on the real server: turns, deadlocks, losses, attempts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kapell import Client
from kapell.discovery import Endpoint
from kapell.errors import Deadlock, FencingTokenStale, LockHeld, LockLost
from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED, Task
from kapell.worker import TaskContext, Worker
from kapell_server.testing import TestServer, serve

from tests.clients.working import working


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    async with serve(tmp_path) as running:
        yield running


@pytest.fixture
async def client(server: TestServer) -> AsyncIterator[Client]:
    async with Client(server.address, token=server.admin_token) as connected:
        yield connected


async def until_someone_waits(client: Client, count: int = 1) -> None:
    """Returns when so many wait for locks."""
    async with client.locks.watch(initial_state=True) as events:
        while (await client.locks.list(page_size=1)).waiter_count < count:
            await anext(events)


async def test_locks_are_handed_over_in_the_order_of_arrival(client: Client) -> None:
    order: list[str] = []

    async def take(name: str) -> int:
        async with client.lock("repo/src", note=name) as lock:
            order.append(name)
            await lock.verify()
            return lock.fencing_token

    async with client.lock("repo"):
        tasks = []
        for count, name in enumerate(("one", "two", "three"), 1):
            tasks.append(asyncio.create_task(take(name)))
            await until_someone_waits(client, count)
    tokens = await asyncio.gather(*tasks)

    assert order == ["one", "two", "three"]
    assert tokens == sorted(tokens)
    assert not (await client.locks.list()).locks


async def test_readers_stand_beside_each_other(client: Client) -> None:
    async with client.lock("repo", shared=True), client.lock("repo/src", shared=True, timeout=0):
        with pytest.raises(LockHeld) as refused:
            async with client.lock("repo/src/a", timeout=0.05, note="writer"):
                raise AssertionError("readers are there")

    assert refused.value.held_path in ("repo", "repo/src")
    assert refused.value.since is not None


async def test_a_cancelled_wait_leaves_nothing(client: Client) -> None:
    async with client.lock("repo"):
        waiting = asyncio.create_task(client.lock("repo/src").__aenter__())
        await until_someone_waits(client)
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert (await client.locks.list()).waiter_count == 0
    assert not (await client.locks.list()).locks


async def test_the_wait_that_would_close_a_circle_is_refused_and_named(client: Client) -> None:
    async with client.locks.session("one") as one, client.locks.session("two") as two, one.lock("a"), two.lock("b"):
        waiting = asyncio.create_task(one.lock("b").__aenter__())
        await until_someone_waits(client)

        with pytest.raises(Deadlock) as refused:
            async with two.lock("a"):
                raise AssertionError("it would never end")

        waiting.cancel()
        await asyncio.wait((waiting,))

    assert one.session_id in refused.value.cycle
    assert two.session_id in refused.value.cycle


async def test_a_lock_that_is_taken_away_is_lost_at_once(client: Client) -> None:
    with pytest.raises(LockLost, match="taken away by an administrator: its machine is gone"):
        async with client.lock("repo/src", ttl=600) as lock:
            await client.locks.force_release(path="repo", reason="its machine is gone")
            await lock.lost.wait()
            with pytest.raises(LockLost):
                lock.check()

    with pytest.raises(FencingTokenStale):
        await client.locks.check_fence("repo/src/a", lock.fencing_token)


async def test_a_session_that_asks_once_more_keeps_the_lock_until_the_last_leaves(client: Client) -> None:
    async with client.locks.session() as session, session.lock("repo") as outer:
        async with session.lock("repo") as inner:
            assert inner.fencing_token == outer.fencing_token
        await outer.verify()


async def test_an_attempt_holds_locks_that_end_with_it(server: TestServer, client: Client) -> None:
    worker = Worker(Endpoint(address=server.address, token=server.admin_token))
    seen: list[str] = []

    @worker.task("edit")
    async def edit(ctx: TaskContext, task: Task) -> object:
        async with ctx.lock("repo/src", timeout=0) as lock:
            (held,) = (await client.locks.list()).locks
            seen.append(held.owner.task_id)
            await client.locks.check_fence("repo/src/a.py", lock.fencing_token)
        # Not given back by the handler: the end of the attempt does it.
        await ctx.lock("repo/docs").__aenter__()
        return json.loads(lock.environment)[0]["path"]

    async with working(worker):
        task = await client.tasks.run("edit", "change it")

    assert (task.state, task.result.string_value) == (TASK_STATE_SUCCEEDED, "repo/src")
    assert seen == [task.task_id]
    assert not (await client.locks.list()).locks
