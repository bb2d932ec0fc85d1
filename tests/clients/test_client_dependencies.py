"""Graphs of tasks through the SDK: said in short, worked off by real workers, children waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell import Client, Connection, SyncClient, errors
from kapell._worker.values import from_value
from kapell.dependencies import dependencies
from kapell.discovery import Endpoint
from kapell.task_specs import task_spec
from kapell.v1 import worker_pb2
from kapell.v1.dependency_pb2 import (
    DEPENDENCY_CONDITION_FINISHED,
    DEPENDENCY_CONDITION_STARTED,
    DEPENDENCY_CONDITION_SUCCEEDED,
    DEPENDENCY_FAILURE_ACTION_RUN,
    TaskDependency,
)
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_QUEUED,
    TASK_STATE_SUCCEEDED,
    Task,
)
from kapell.v1.worker_pb2_grpc import WorkerServiceStub
from kapell.worker import TaskContext, TaskFailed, Worker
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


def worker_of(server: TestServer, slots: int = 1) -> Worker:
    return Worker(Endpoint(address=server.address, token=server.admin_token), slots=slots)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("build", TaskDependency(client_key="build")),
        ("task_01k", TaskDependency(task_id="task_01k")),
        ("task_01k:started", TaskDependency(task_id="task_01k", condition=DEPENDENCY_CONDITION_STARTED)),
        ("build:finished", TaskDependency(client_key="build", condition=DEPENDENCY_CONDITION_FINISHED)),
        ("build:succeeded", TaskDependency(client_key="build", condition=DEPENDENCY_CONDITION_SUCCEEDED)),
        (TaskDependency(client_key="x", name="y"), TaskDependency(client_key="x", name="y")),
    ],
)
def test_a_dependency_is_said_in_short(said: str | TaskDependency, meant: TaskDependency) -> None:
    assert dependencies([said]) == [meant]


@pytest.mark.parametrize("said", ["", ":started", "build:done", "Build", "a b"])
def test_what_is_no_dependency_is_refused_before_it_is_sent(said: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="is no dependency"):
        dependencies([said])


@pytest.mark.timeout(180)
async def test_a_graph_with_2000_children_completes(server: TestServer, client: Client) -> None:
    """One builds, 2,000 use its result, 40 gather 50 each, one gathers those."""
    worker = worker_of(server, slots=128)
    order: list[str] = []

    @worker.task("step")
    async def step(ctx: TaskContext, task: Task) -> object:
        order.append(task.display_name)
        return {"said": task.prompt, "n": 1}

    graph = [task_spec("step", "base", client_key="build", display_name="build")]
    for index in range(2000):
        graph.append(
            task_spec(
                "step",
                f"{index}: {{deps.build.result.said}}",
                client_key=f"part-{index}",
                display_name="part",
                dependencies=["build"],
            )
        )
    for index in range(40):
        parts = [f"part-{part}" for part in range(index, 2000, 40)]
        graph.append(task_spec("step", client_key=f"sum-{index}", display_name="sum", dependencies=parts))
    graph.append(
        task_spec("step", "{deps.sum-7.result.n}", display_name="all", dependencies=[f"sum-{i}" for i in range(40)])
    )

    created = await client.tasks.create_batch(graph)
    async with working(worker):
        last = await client.tasks.wait(created.tasks[-1].task_id, timeout=150)

    assert last.state == TASK_STATE_SUCCEEDED
    assert last.prompt == "1"
    assert (order[0], order[-1], len(order)) == ("build", "all", 2042)
    part = await client.tasks.get(created.tasks[1 + 1999].task_id)
    assert from_value(part.result) == {"said": "1999: base", "n": 1}


async def test_children_are_created_and_waited_for(server: TestServer, client: Client) -> None:
    worker = worker_of(server, slots=4)

    @worker.task("parent")
    async def parent(ctx: TaskContext, task: Task) -> object:
        created = await ctx.create_children([task_spec("child", f"{number}") for number in (1, 2, 3)])
        await ctx.create_children([task_spec("child", "bad")])
        ended = await ctx.wait_children()
        assert [child.task_id for child in ended[:3]] == [child.task_id for child in created]
        return [from_value(child.result) for child in ended if child.state == TASK_STATE_SUCCEEDED]

    @worker.task("child")
    async def child(ctx: TaskContext, task: Task) -> object:
        if task.prompt == "bad":
            raise TaskFailed("BAD", "as told", retryable=False)
        return int(task.prompt) * 10

    async with working(worker):
        done = await client.tasks.run("parent", priority=700)
    tree = await client.tasks.tree(done.task_id)

    assert from_value(done.result) == [10, 20, 30]
    assert [node.depth for node in tree.nodes] == [0, 1, 1, 1, 1]
    assert tree.nodes[-1].task.state == TASK_STATE_FAILED
    assert {node.task.priority for node in tree.nodes} == {700}
    assert tree.nodes[1].task.creator.id == worker.agent_id


@pytest.mark.parametrize("most", [0, 1, 150_000, 1024 * 1024])
async def test_no_result_of_a_child_is_missing(
    server: TestServer, client: Client, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Whatever has room in the server's answer: nothing, a few, or all."""
    monkeypatch.setattr("kapell_server.rpc.children._MOST_BYTES", most)
    worker = worker_of(server, slots=4)
    given: list[int] = []

    @worker.task("parent")
    async def parent(ctx: TaskContext, task: Task) -> object:
        sizes = (100_000, 100_000, 0, 10)
        created = await ctx.create_children([task_spec("child", str(size), display_name="c") for size in sizes])
        ended = await ctx.wait_children()
        assert [child.task_id for child in ended] == [child.task_id for child in created]
        assert {(child.prompt, child.display_name, child.state) for child in ended} == {("", "c", TASK_STATE_SUCCEEDED)}
        given.extend(len(child.result.string_value) for child in ended)
        return None

    @worker.task("child")
    async def child(ctx: TaskContext, task: Task) -> object:
        return "x" * int(task.prompt)

    async with working(worker):
        done = await client.tasks.run("parent")

    assert (done.state, given) == (TASK_STATE_SUCCEEDED, [100_000, 100_000, 0, 10])


async def test_the_answer_names_the_children_it_has_no_room_for(
    server: TestServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(Endpoint(address=server.address, token=server.admin_token))
    call, stub = connection.call, connection.stub(WorkerServiceStub)
    registration = worker_pb2.RegisterWorkerRequest(instance_key="a-process", agent_types=["parent"])
    agent_id = (await call(stub.RegisterWorker, registration)).agent.agent_id
    await client.tasks.create("parent")
    [offer] = (await call(stub.LeaseTasks, worker_pb2.LeaseTasksRequest(agent_id=agent_id))).offers
    request = worker_pb2.CreateChildTasksRequest(lease_token=offer.lease_token, tasks=[task_spec("nobody")] * 3)
    made = (await call(stub.CreateChildTasks, request)).tasks
    monkeypatch.setattr("kapell_server.rpc.children._MOST_BYTES", made[0].ByteSize() + 10)

    ask = worker_pb2.WaitChildTasksRequest(lease_token=offer.lease_token, wait=Duration())
    answer = await call(stub.WaitChildTasks, ask)
    await connection.close()

    assert [task.task_id for task in answer.tasks] == [task.task_id for task in made]
    assert list(answer.left_out_task_ids) == [task.task_id for task in made[1:]]
    assert answer.tasks[0].agent_type == "nobody"
    assert answer.tasks[1] == Task(task_id=made[1].task_id, state=TASK_STATE_QUEUED)


async def test_a_wait_for_children_ends_with_its_time(server: TestServer, client: Client) -> None:
    worker = worker_of(server)

    @worker.task("parent")
    async def parent(ctx: TaskContext, task: Task) -> object:
        await ctx.create_children([task_spec("nobody")])
        [child] = await ctx.wait_children(timeout=0)
        return child.state

    async with working(worker):
        done = await client.tasks.run("parent")

    assert from_value(done.result) == TASK_STATE_QUEUED


async def test_a_cancel_ends_the_wait_and_the_children(server: TestServer, client: Client) -> None:
    worker = worker_of(server)
    waiting = asyncio.Event()

    @worker.task("parent")
    async def parent(ctx: TaskContext, task: Task) -> None:
        await ctx.create_children([task_spec("nobody")])
        waiting.set()
        await ctx.wait_children()

    async with working(worker):
        task = await client.tasks.create("parent")
        await waiting.wait()
        await client.tasks.cancel(task.task_id)
        ended = await client.tasks.wait(task.task_id, timeout=20)
        tree = await client.tasks.tree(task.task_id)

    assert ended.state == TASK_STATE_CANCELLED
    assert [node.task.state for node in tree.nodes] == [TASK_STATE_CANCELLED] * 2


async def test_a_superseded_attempt_is_told_while_it_waits(server: TestServer, client: Client) -> None:
    connection = Connection(Endpoint(address=server.address, token=server.admin_token))
    call, stub = connection.call, connection.stub(WorkerServiceStub)
    registration = worker_pb2.RegisterWorkerRequest(instance_key="a-process", agent_types=["parent"])
    agent_id = (await call(stub.RegisterWorker, registration)).agent.agent_id
    await client.tasks.create("parent")
    [offer] = (await call(stub.LeaseTasks, worker_pb2.LeaseTasksRequest(agent_id=agent_id))).offers
    token = offer.lease_token
    child = worker_pb2.CreateChildTasksRequest(lease_token=token, tasks=[task_spec("nobody")])
    await call(stub.CreateChildTasks, child)

    waiting = asyncio.create_task(call(stub.WaitChildTasks, worker_pb2.WaitChildTasksRequest(lease_token=token)))
    await call(stub.ReleaseTask, worker_pb2.ReleaseTaskRequest(lease_token=token))

    with pytest.raises(errors.LeaseLost):
        await waiting
    await connection.close()


async def test_filters_find_children(server: TestServer, client: Client) -> None:
    root = await client.tasks.create("nobody")
    child = await client.tasks.create("nobody", parent_task_id=root.task_id)
    grandchild = await client.tasks.create("nobody", parent_task_id=child.task_id)

    below = [task.task_id async for task in client.tasks.iterate(root_task_id=root.task_id)]
    children = [task.task_id async for task in client.tasks.iterate(parent_task_id=root.task_id)]

    assert below == [grandchild.task_id, child.task_id]
    assert children == [child.task_id]


async def test_the_blocking_client_says_it_too(server: TestServer) -> None:
    def work() -> tuple[Task, int]:
        with SyncClient(server.address, token=server.admin_token) as client:
            first = client.tasks.create("nobody")
            wanted = TaskDependency(task_id=first.task_id, name="first", on_failure=DEPENDENCY_FAILURE_ACTION_RUN)
            second = client.tasks.create(
                "nobody", "{deps.first.result}", dependencies=[wanted], parent_task_id=first.task_id
            )
            client.tasks.cancel(first.task_id, leave_children=True)
            return client.tasks.get(second.task_id), len(client.tasks.tree(first.task_id).nodes)

    task, nodes = await asyncio.to_thread(work)

    assert (task.state, nodes) == (TASK_STATE_QUEUED, 2)
    assert task.prompt == "(no result: first is CANCELLED)"
