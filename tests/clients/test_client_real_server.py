"""The client against the real server: cuts, restarts, replays, and what refusals look like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pytest
from kapell import Client, errors
from kapell.connection import Connection
from kapell.discovery import Endpoint
from kapell.task_specs import task_spec
from kapell.v1 import task_pb2, worker_pb2
from kapell.v1.common_pb2 import LogEntry
from kapell.v1.event_pb2 import Event
from kapell.v1.watch_pb2 import EVENT_KIND_SNAPSHOT
from kapell.v1.worker_pb2_grpc import WorkerServiceStub
from kapell_server.testing import TestServer, serve

from tests.support.cutting_proxy import CuttingProxy
from tests.support.server_process import ServerProcess

if TYPE_CHECKING:
    from kapell.v1.worker_pb2_grpc import WorkerServiceAsyncStub


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    # Without templates, so that the log is empty at first.
    async with serve(tmp_path, no_templates=True) as server:
        yield server


@pytest.fixture
async def proxy(server: TestServer) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy(server.address) as proxy:
        yield proxy


@pytest.fixture
async def client(server: TestServer, proxy: CuttingProxy) -> AsyncIterator[Client]:
    async with Client(proxy.address, token=server.admin_token) as client:
        yield client


@pytest.fixture
async def hand(server: TestServer) -> AsyncIterator[Hand]:
    async with Hand(Endpoint(address=server.address, token=server.admin_token)) as hand:
        yield hand


class Hand:
    """A worker moved by hand, one call at a time, so that a test decides when what happens."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._connection = Connection(endpoint)
        self._agent_id = ""

    async def __aenter__(self) -> Self:
        request = worker_pb2.RegisterWorkerRequest(instance_key="hand-of-the-test", agent_types=["hand"])
        registered = await self._connection.call(self._stub.RegisterWorker, request)
        self._agent_id = registered.agent.agent_id
        self._connection.use_token(registered.agent_token)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    @property
    def _stub(self) -> WorkerServiceAsyncStub:
        return self._connection.stub(WorkerServiceStub)

    async def take(self) -> worker_pb2.Offer:
        """Leases the next task."""
        request = worker_pb2.LeaseTasksRequest(agent_id=self._agent_id)
        return (await self._connection.call(self._stub.LeaseTasks, request, timeout=60)).offers[0]

    async def write(self, offer: worker_pb2.Offer, offset: int, *lines: str) -> None:
        """Appends to the log of the attempt."""
        entries = [LogEntry(text=line) for line in lines]
        request = worker_pb2.AppendTaskLogsRequest(lease_token=offer.lease_token, offset=offset, entries=entries)
        await self._connection.call(self._stub.AppendTaskLogs, request)

    async def complete(self, offer: worker_pb2.Offer, text: str) -> None:
        """Ends the attempt with a result."""
        request = worker_pb2.CompleteTaskRequest(lease_token=offer.lease_token)
        request.result.string_value = text
        await self._connection.call(self._stub.CompleteTask, request)

    async def fail(self, offer: worker_pb2.Offer) -> None:
        """Ends the attempt with a failure."""
        failure = task_pb2.TaskFailure(reason="OF_THE_TEST", message="as the test wants it")
        request = worker_pb2.FailTaskRequest(lease_token=offer.lease_token, failure=failure)
        await self._connection.call(self._stub.FailTask, request)


async def test_every_event_arrives_once_and_in_order_over_200_forced_disconnects(
    proxy: CuttingProxy, client: Client
) -> None:
    first = await client.tasks.create("hand")
    seen = [first.revision]

    async with client.watch() as events:
        number = 0
        while proxy.cuts < 200:
            number += 1
            if number % 3 == 1:
                proxy.cut_after(number % 97 * 20)
            await client.tasks.create_batch([task_spec("hand", f"{number} {part}") for part in range(4)])
            if number % 3 == 2:
                proxy.cut()
            while len(seen) < 1 + number * 4:
                event = await anext(events)
                assert event.task.revision == event.revision
                seen.append(event.revision)
            if number % 3 == 0:
                proxy.cut()

    assert seen == list(range(1, 2 + number * 4))
    assert (await client.tasks.count()).counts[0].count == 1 + number * 4


async def test_a_watch_of_an_empty_log_resumes_without_a_gap(
    server: TestServer, proxy: CuttingProxy, client: Client
) -> None:
    async with (
        Client(server.address, token=server.admin_token) as elsewhere,
        client.watch() as events,
        asyncio.timeout(2),
    ):
        proxy.refuse()
        proxy.cut()
        await elsewhere.tasks.create("hand")
        proxy.accept()
        event = await anext(events)

    assert event.revision == 1


async def test_snapshot_and_events_make_up_the_state(proxy: CuttingProxy, client: Client) -> None:
    ids = {(await client.tasks.create("hand")).task_id for _ in range(30)}
    state: dict[str, int] = {}
    proxy.cut_after(3_000)

    async with client.watch(initial_state=True) as events:
        while len(state) < 30:
            event = await anext(events)
            assert event.kind == EVENT_KIND_SNAPSHOT
            state[event.task.task_id] = event.task.state
        victim = min(ids)
        await client.tasks.cancel(victim)
        proxy.cut()
        event = await anext(events)

    assert set(state) == ids
    assert (event.task.task_id, event.task.state) == (victim, task_pb2.TASK_STATE_CANCELLED)


async def test_a_watch_that_compaction_has_overtaken_takes_a_new_snapshot(
    server: TestServer, proxy: CuttingProxy, client: Client
) -> None:
    state: dict[str, int] = {}
    resets = asyncio.Event()

    def forget() -> None:
        state.clear()
        resets.set()

    async with (
        Client(server.address, token=server.admin_token) as elsewhere,
        client.watch(initial_state=True, on_compacted="snapshot", on_reset=forget) as events,
    ):
        doomed = await client.tasks.create("hand")
        state[doomed.task_id] = (await anext(events)).revision
        proxy.refuse()
        proxy.cut()
        await elsewhere.tasks.cancel(doomed.task_id)
        await elsewhere.tasks.delete(doomed.task_id)
        kept = await elsewhere.tasks.create("hand")
        compacted = await elsewhere.admin.compact_events(before_revision=kept.revision)
        proxy.accept()
        while kept.task_id not in state:
            event = await anext(events)
            state[event.task.task_id] = event.revision

    assert compacted.oldest_revision == kept.revision - 1
    assert resets.is_set()
    assert state == {kept.task_id: kept.revision}


async def test_a_watch_that_compaction_has_overtaken_says_so_where_no_snapshot_was_asked_for(client: Client) -> None:
    for _ in range(5):
        await client.tasks.create("hand")
    await client.admin.compact_events(older_than=0)

    with pytest.raises(errors.RevisionCompacted) as caught:
        async with client.watch(after_revision=2) as events:
            await anext(events)

    assert caught.value.metadata["oldest"] == "4"
    assert (await client.events.log_info()).oldest_revision == 4


async def test_a_task_is_run_to_its_result(client: Client, hand: Hand) -> None:
    running = asyncio.ensure_future(client.tasks.run("hand", "write something", timeout=30))
    offer = await hand.take()
    await hand.complete(offer, "done")
    task = await running

    assert offer.task.prompt == "write something"
    assert task.state == task_pb2.TASK_STATE_SUCCEEDED
    assert task.result.string_value == "done"


async def test_a_log_is_followed_through_cuts_and_attempts(proxy: CuttingProxy, client: Client, hand: Hand) -> None:
    task = await client.tasks.create("hand", retry_policy=task_pb2.RetryPolicy(max_attempts=2))
    seen: list[str] = []

    async with client.tasks.logs(task.task_id, follow=True) as lines:
        for attempt in (1, 2):
            offer = await hand.take()
            for number in range(10):
                await hand.write(offer, number, f"{attempt} {number}")
                if number % 3 == 1:
                    proxy.cut()
                seen.append((await anext(lines)).text)
            await (hand.fail(offer) if attempt == 1 else hand.complete(offer, ""))
        rest = [line.text async for line in lines]

    assert seen == [f"{attempt} {number}" for attempt in (1, 2) for number in range(10)]
    assert rest == []


async def test_callbacks_follow_a_task_through_its_life(client: Client, hand: Hand) -> None:
    heard: list[str] = []
    done = asyncio.Event()

    @client.on("task.created")
    @client.on("task.started")
    def note(event: Event) -> None:
        heard.append(event.task.task_id)

    @client.on("task.completed")
    async def finish(event: Event) -> None:
        heard.append(event.task.task_id)
        done.set()

    await client.listening()
    task = await client.tasks.create("hand")
    await hand.complete(await hand.take(), "")
    await done.wait()

    assert heard == [task.task_id] * 3


async def test_the_same_request_id_has_one_effect(client: Client) -> None:
    first = await client.tasks.create("hand", "once", request_id="of-the-test")
    second = await client.tasks.create("hand", "once", request_id="of-the-test")

    assert first == second
    with pytest.raises(errors.InvalidRequest) as caught:
        await client.tasks.create("hand", "something else", request_id="of-the-test")
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert caught.value.from_server


async def test_refusals_of_the_server_are_typed(client: Client) -> None:
    task = await client.tasks.create("hand", task_id="task_mine")
    await client.tasks.update("task_mine", priority=900, etag=task.etag)

    with pytest.raises(errors.AlreadyExists) as taken:
        await client.tasks.create("hand", task_id="task_mine")
    with pytest.raises(errors.Aborted) as stale:
        await client.tasks.update("task_mine", priority=1, etag=task.etag)
    with pytest.raises(errors.PreconditionFailed) as wrong_state:
        await client.tasks.retry("task_mine")
    with pytest.raises(errors.NotFound) as unknown:
        await client.agents.get("agent_none")
    with pytest.raises(errors.InvalidRequest) as invalid:
        await client.tasks.create("No Such Type!")
    with pytest.raises(errors.OutOfRange) as future:
        await client.watch(after_revision=1_000_000).ready()
    with pytest.raises(errors.RevisionCompacted) as other_log:
        await client.watch(after_revision=1, log_id="log_of_another_server").ready()

    caught = [error.value for error in (taken, stale, wrong_state, unknown, invalid, future, other_log)]
    assert [error.reason for error in caught] == [
        "ID_TAKEN",
        "ETAG_MISMATCH",
        "TASK_STATE_CONFLICT",
        "AGENT_NOT_FOUND",
        "REQUEST_INVALID",
        "REVISION_IN_FUTURE",
        "REVISION_COMPACTED",
    ]
    assert all(error.from_server for error in caught)
    assert wrong_state.value.metadata["task_id"] == "task_mine"
    assert [violation.field for violation in invalid.value.violations] == ["task.agent_type"]


async def test_a_missing_or_wrong_token_is_told_as_such(server: TestServer) -> None:
    for token, reason in (("", "TOKEN_MISSING"), ("wrong", "TOKEN_INVALID")):
        async with Client(server.address, token=token) as client:
            with pytest.raises(errors.Unauthenticated) as caught:
                await client.tasks.list()
            assert caught.value.reason == reason


async def test_the_server_of_a_data_directory_is_found(server: TestServer, tmp_path: Path) -> None:
    async with Client(data_dir=tmp_path / "data") as client:
        info = await client.admin.server_info()

    assert info.principal == "admin"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "data") as process:
        yield process


async def test_watch_wait_and_callbacks_outlive_a_killed_server(process: ServerProcess) -> None:
    async with Client(process.address, token=process.admin_token) as client:
        heard: asyncio.Queue[str] = asyncio.Queue()
        client.on("task.created", lambda event: heard.put(event.task.task_id))
        await client.listening()
        task = await client.tasks.create("hand")
        waiting = asyncio.ensure_future(client.tasks.wait(task.task_id, connect_timeout=None))
        async with client.watch() as events:
            await asyncio.to_thread(process.restart)
            later = await client.tasks.create("hand")
            await client.tasks.cancel(task.task_id)
            created, cancelled = await anext(events), await anext(events)
        ended = await waiting

        assert [await heard.get(), await heard.get()] == [task.task_id, later.task_id]
    assert created.task.task_id == later.task_id
    assert cancelled.revision == created.revision + 1
    assert ended.state == task_pb2.TASK_STATE_CANCELLED
