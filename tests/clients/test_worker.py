"""The worker and its handlers: tasks, results, failures, logs, progress, cancels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from google.rpc import code_pb2
from kapell.errors import InvalidRequest
from kapell.v1.common_pb2 import LOG_STREAM_STDERR
from kapell.v1.task_pb2 import Task
from kapell.worker import TaskContext, TaskFailed, Worker

from tests.clients.memory_server import MemoryServer, states
from tests.clients.working import result_of, working


@pytest.fixture
async def server() -> AsyncIterator[MemoryServer]:
    async with MemoryServer() as running:
        yield running


async def test_handler_gets_the_task_and_its_return_value_is_the_result(server: MemoryServer) -> None:
    worker = Worker(server.endpoint, slots=2, display_name="w", labels={"a": "b"})

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> object:
        return {"prompt": task.prompt, "n": ctx.input["n"], "id": ctx.task_id, "attempt": ctx.attempt}

    async with working(worker):
        job = await server.add(prompt="do it", n=3)
        await server.ended(job)

    assert result_of(job) == {"prompt": "do it", "n": 3, "id": "task_0", "attempt": 1}
    [registration] = server.registrations
    assert (registration.slots, registration.display_name, list(registration.agent_types)) == (2, "w", ["work"])
    assert server.deregistered == ["stopped"]


async def test_as_many_tasks_run_at_a_time_as_there_are_slots(server: MemoryServer) -> None:
    worker = Worker(server.endpoint, slots=3)
    running, go = 0, asyncio.Event()
    seen: list[int] = []

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        nonlocal running
        running += 1
        seen.append(running)
        await go.wait()
        running -= 1

    async with working(worker):
        jobs = [await server.add() for _ in range(7)]
        await server.until(lambda: len([job for job in jobs if job.beats]) == 3)
        go.set()
        await server.ended(*jobs)

    assert max(seen) == 3


async def test_results_that_are_ready_together_travel_together(server: MemoryServer) -> None:
    worker = Worker(server.endpoint, slots=50)
    go = asyncio.Event()

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        await go.wait()

    async with working(worker):
        jobs = [await server.add() for _ in range(50)]
        await server.until(lambda: states(jobs).count("running") == 50)
        go.set()
        await server.ended(*jobs)

    assert max(server.batches) > 10


async def test_failure_carries_what_the_handler_said(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        raise TaskFailed("OUT_OF_PAPER", "the tray is empty", details={"tray": 2}, retryable=False)

    async with working(worker):
        job = await server.add()
        await server.ended(job)

    assert job.failure is not None
    assert (job.failure.reason, job.failure.message, job.failure.retryable) == (
        "OUT_OF_PAPER",
        "the tray is empty",
        False,
    )
    assert job.failure.details.fields["tray"].number_value == 2


async def test_exception_is_a_failure_and_its_traceback_is_logged(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        raise KeyError("missing\udcff")

    async with working(worker):
        job = await server.add()
        await server.ended(job)

    assert job.failure is not None
    assert job.failure.reason == "EXCEPTION"
    assert job.failure.message.startswith("KeyError: ")
    assert "Traceback (most recent call last):" in job.lines()[0]
    assert {entry.stream for entry in job.logs[1]} == {LOG_STREAM_STDERR}


@pytest.mark.parametrize(
    ("returned", "says"),
    [(object(), "not JSON"), (float("nan"), "not a JSON number"), ("x" * 300_000, "262144 are allowed")],
)
async def test_result_that_cannot_be_sent_is_a_failure(server: MemoryServer, returned: object, says: str) -> None:
    worker = Worker(server.endpoint)

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> object:
        return returned

    async with working(worker):
        job = await server.add()
        await server.ended(job)

    assert job.failure is not None
    assert job.failure.reason == "RESULT_INVALID"
    assert says in job.failure.message


async def test_result_the_server_refuses_spoils_no_other(server: MemoryServer) -> None:
    worker = Worker(server.endpoint, slots=2)
    go = asyncio.Event()

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        await go.wait()

    async with working(worker):
        jobs = [await server.add() for _ in range(2)]
        await server.until(lambda: states(jobs) == ["running", "running"])
        server.refuse("BatchCompleteTasks", code_pb2.INVALID_ARGUMENT, "REQUEST_INVALID")
        server.refuse("CompleteTask", code_pb2.INVALID_ARGUMENT, "REQUEST_INVALID")
        go.set()
        await server.ended(*jobs)

    assert sorted(states(jobs)) == ["failed", "succeeded"]


async def test_logs_arrive_once_and_in_order_though_answers_are_lost(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)
    server.lose_answers("AppendTaskLogs", 3)

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        for number in range(5000):
            ctx.log(f"line {number}")
            if number % 500 == 0:
                await ctx.log_room()
        ctx.log("two\nlines", LOG_STREAM_STDERR)

    async with working(worker):
        job = await server.add()
        await server.ended(job)

    assert job.lines() == [*(f"line {number}" for number in range(5000)), "two", "lines"]


async def test_log_goes_on_where_the_server_has_lost_some_of_it(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)
    first, go = asyncio.Event(), asyncio.Event()

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        ctx.log("one\ntwo")
        await go.wait()
        ctx.log("three")

    async with working(worker):
        job = await server.add()
        await server.until(lambda: len(job.lines()) == 2)
        del job.logs[1][1:]
        go.set()
        first.set()
        await server.ended(job)

    assert job.lines() == ["one", "1 lines that were here are lost", "three"]


async def test_log_that_nobody_takes_does_not_hold_up_the_result(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)
    server.refuse("AppendTaskLogs", code_pb2.RESOURCE_EXHAUSTED, "PAYLOAD_TOO_LARGE")

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> str:
        ctx.log("much")
        return "done"

    async with working(worker):
        job = await server.add()
        await server.ended(job)

    assert (result_of(job), job.lines()) == ("done", [])


async def test_only_the_latest_progress_is_reported_and_the_last_always(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        ctx.progress(None, "starting")
        for hundredth in range(101):
            ctx.progress(hundredth / 100, "counting", f"at {hundredth}")
            await asyncio.sleep(0)

    async with working(worker):
        job = await server.add()
        await server.ended(job)

    assert len(job.progress) < 20
    assert (job.progress[-1].fraction, job.progress[-1].message) == (1.0, "at 100")


@pytest.mark.parametrize("hint", [True, False], ids=["by the stream", "by the heartbeat"])
async def test_cancel_reaches_the_handler(server: MemoryServer, hint: bool) -> None:
    worker = Worker(server.endpoint)
    stopped: list[bool] = []

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(ctx.cancelled.is_set())

    async with working(worker):
        job = await server.add()
        await server.until(lambda: job.beats)
        await server.cancel(job, hint=hint)
        await server.ended(job)

    assert (stopped, job.state) == ([True], "cancelled")


async def test_handler_may_end_a_cancelled_task_by_itself_within_its_grace(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)

    @worker.task("work", cancel_grace=20)
    async def work(ctx: TaskContext, task: Task) -> str:
        await ctx.cancelled.wait()
        return "half of it"

    async with working(worker):
        job = await server.add()
        await server.until(lambda: job.beats)
        await server.cancel(job, hint=True)
        await server.ended(job)

    assert result_of(job) == "half of it"


async def test_lost_lease_stops_the_handler_at_once_and_nothing_is_sent(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)
    stopped = asyncio.Event()

    @worker.task("work", cancel_grace=60)
    async def work(ctx: TaskContext, task: Task) -> None:
        try:
            await ctx.lease_lost.wait()
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with working(worker):
        job = await server.add()
        await server.until(lambda: job.beats)
        await server.supersede(job)
        async with asyncio.timeout(20):
            await stopped.wait()
        before = server.calls["LeaseTasks"]
        await server.until(lambda: server.calls["LeaseTasks"] > before)

    assert (job.state, job.failure, job.result) == ("superseded", None, None)


async def test_worker_that_cannot_work_is_refused_with_what_to_do(server: MemoryServer) -> None:
    with pytest.raises(InvalidRequest, match="1 to 256"):
        Worker(server.endpoint, slots=0)
    worker = Worker(server.endpoint)
    with pytest.raises(InvalidRequest, match="no handler"):
        await worker.run()
    with pytest.raises(InvalidRequest, match="async def"):
        worker.task("work")(lambda ctx, task: None)  # type: ignore[type-var]
    with pytest.raises(InvalidRequest, match=r"async def _forgetful\(ctx, task\)"):
        worker.task("work")(_forgetful)  # type: ignore[type-var]
    worker.task("work")(_nothing)
    with pytest.raises(InvalidRequest, match="has a handler already"):
        worker.task("work")(_nothing)


async def _nothing(ctx: TaskContext, task: Task) -> None: ...


async def _forgetful(ctx: TaskContext) -> None: ...
