"""LockService on a real server: tickets as they move, lists in pages, the graph, watches, waiting parents."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from kapell.v1 import lock_pb2, lock_pb2_grpc, worker_pb2
from kapell.v1.lock_pb2 import LockFilter, LockItem
from kapell.v1.watch_pb2 import EVENT_KIND_LOCK_GRANTED, EVENT_KIND_SNAPSHOT, WatchOptions

from tests.rpc.conftest import failure
from tests.rpc.services import Services, create, register

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return lock_pb2_grpc.LockServiceStub(channel)


class Locks:
    """The verbs that these tests need, of one caller."""

    def __init__(self, call: Services, stub: Any) -> None:
        self.call = call
        self.stub = stub

    async def acquire(self, *paths: str, **fields: Any) -> lock_pb2.AcquireLocksResponse:
        request = lock_pb2.AcquireLocksRequest(items=[LockItem(path=path) for path in paths], **fields)
        answer: lock_pb2.AcquireLocksResponse = await self.call(self.stub.AcquireLocks, request, timeout=30)
        return answer

    async def release(self, lock: lock_pb2.Lock) -> None:
        await self.call(self.stub.ReleaseLocks, lock_pb2.ReleaseLocksRequest(lock_ids=[lock.lock_id]))

    async def list(self, **fields: Any) -> lock_pb2.ListLocksResponse:
        answer: lock_pb2.ListLocksResponse = await self.call(self.stub.ListLocks, lock_pb2.ListLocksRequest(**fields))
        return answer


@pytest.fixture
def locks(owner: Services, stub: Any) -> Locks:
    return Locks(owner, stub)


async def test_a_ticket_is_followed_from_its_place_to_its_grant(locks: Locks) -> None:
    [first] = (await locks.acquire("p")).locks
    await locks.acquire("p", keep_queued=True)
    ticket = (await locks.acquire("p", keep_queued=True)).ticket
    request = lock_pb2.WatchLockTicketRequest(ticket_id=ticket.ticket_id)
    seen: list[lock_pb2.LockTicket] = []

    async for message in locks.call(locks.stub.WatchLockTicket, request, timeout=30):
        seen.append(message.ticket)
        if message.ticket.position == 2:
            await locks.release(first)
        elif message.ticket.position == 1:
            [second] = (await locks.list()).locks
            await locks.release(second)

    assert [one.position for one in seen] == [2, 1, 0]
    assert seen[0].blockers[0].owner == first.owner
    assert seen[-1].state == lock_pb2.LOCK_TICKET_STATE_GRANTED
    assert seen[-1].locks[0].fencing_token > second.fencing_token


async def test_locks_are_listed_by_path_in_pages_with_their_waiters(locks: Locks) -> None:
    for path in ("b/2", "a", "b/10", "b/1/x", "c d", "é"):
        await locks.acquire(path)
    await locks.acquire("b", "z", keep_queued=True, note="everything")
    found: list[str] = []
    token = ""
    while True:
        page = await locks.list(page_size=2, page_token=token)
        assert page.waiter_count == (0 if token else 1)
        found += [lock.path for lock in page.locks]
        token = page.next_page_token
        if not token:
            break

    assert found == ["a", "b/1/x", "b/10", "b/2", "c d", "é"]
    below = await locks.list(filter=LockFilter(path="b/1"))
    assert [lock.path for lock in below.locks] == ["b/1/x"]
    assert [len(waiter.blockers) for waiter in below.waiters] == [3]


async def test_the_graph_shows_who_waits_for_whom(locks: Locks) -> None:
    await locks.acquire("x", note="the holder")
    ticket = (await locks.acquire("x/1", keep_queued=True)).ticket
    await locks.acquire("x/1/2", keep_queued=True)

    graph = await locks.call(locks.stub.GetLockGraph, lock_pb2.GetLockGraphRequest())

    assert len(graph.nodes) == 3
    kinds = sorted(edge.kind for edge in graph.edges)
    assert kinds == [
        lock_pb2.LOCK_WAIT_KIND_HELD,
        lock_pb2.LOCK_WAIT_KIND_HELD,
        lock_pb2.LOCK_WAIT_KIND_BEFORE,
    ]
    [behind] = [edge for edge in graph.edges if edge.kind == lock_pb2.LOCK_WAIT_KIND_BEFORE]
    assert (behind.to_node_id, behind.wanted_path, behind.path) == (ticket.owner.grant_id, "x/1/2", "x/1")


async def test_a_watch_begins_with_what_is_held_and_tells_what_is_lost(locks: Locks) -> None:
    await locks.acquire("elsewhere")
    [held] = (await locks.acquire("repo/a", ttl={"seconds": 1})).locks
    request = lock_pb2.WatchLocksRequest(filter=LockFilter(path="repo"), options=WatchOptions(send_initial_state=True))
    stream = locks.call(locks.stub.WatchLocks, request, timeout=30)
    events = []
    async for message in stream:
        events += message.events
        if any(event.lock.state == lock_pb2.LOCK_STATE_EXPIRED for event in events):
            break
    stream.cancel()

    assert [(event.kind, event.lock.path) for event in events[:1]] == [(EVENT_KIND_SNAPSHOT, "repo/a")]
    assert {event.lock.path for event in events} == {"repo/a"}
    assert not any(event.kind == EVENT_KIND_LOCK_GRANTED for event in events)
    lost = events[-1]
    assert (lost.lock.lock_id, lost.actor.id) == (held.lock_id, "timer")
    late = lost.event_time.ToNanoseconds() - held.expire_time.ToNanoseconds()
    assert 0 <= late < 1_000_000_000


async def test_a_parent_that_waits_for_a_child_that_waits_for_it_is_told(
    locks: Locks, owner: Services, channel: grpc.aio.Channel
) -> None:
    worker = await register(owner, channel)
    await create(owner)
    parent = await worker.lease()
    mine = Locks(worker.call, locks.stub)
    await mine.acquire("repo", lease_token=parent.lease_token)
    child_spec = {"agent_type": "test", "prompt": "edit a"}
    await worker.call(
        worker.call.workers.CreateChildTasks,
        worker_pb2.CreateChildTasksRequest(lease_token=parent.lease_token, tasks=[child_spec]),
    )
    child = await worker.lease()
    waiting = asyncio.ensure_future(
        mine.acquire("repo/a", lease_token=child.lease_token, wait={"seconds": 20}, request_id="child")
    )
    while not (await locks.list()).waiters:
        assert not waiting.done()

    refused = await failure(
        worker.call(
            worker.call.workers.WaitChildTasks,
            worker_pb2.WaitChildTasksRequest(lease_token=parent.lease_token, wait={"seconds": 20}),
        )
    )

    assert refused.info.reason == "DEADLOCK"
    assert f"{parent.task.task_id} waits for its child {child.task.task_id}" in refused.text
    await worker.complete(parent)
    assert (await waiting).locks[0].path == "repo/a"
