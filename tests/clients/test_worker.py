"""The worker against a server that loses answers, dies, cancels and takes leases away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from google.rpc import code_pb2
from kapell._worker.values import from_value
from kapell.discovery import Endpoint
from kapell.errors import InvalidRequest, KapellError, Unauthenticated
from kapell.v1.common_pb2 import LOG_STREAM_STDERR
from kapell.v1.task_pb2 import Task
from kapell.v1.worker_pb2 import (
    AGENT_DIRECTIVE_DRAIN,
    AGENT_DIRECTIVE_NONE,
    AGENT_DIRECTIVE_REREGISTER,
    AGENT_DIRECTIVE_STOP,
)
from kapell.worker import TaskContext, TaskFailed, Worker

from tests.clients.memory_server import Job, MemoryServer, states

Handler = Callable[[TaskContext, Task], object]


@pytest.fixture
async def server() -> AsyncIterator[MemoryServer]:
    async with MemoryServer() as running:
        yield running


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    """The worker runs; at the end it is stopped, if it has not ended by itself."""
    running = asyncio.create_task(worker.run())
    try:
        yield running
    finally:
        worker.stop(at_once=True)
        async with asyncio.timeout(20):
            await asyncio.wait((running,))
    if not running.cancelled():
        running.result()


def result_of(job: Job) -> object:
    assert job.result is not None
    return from_value(job.result)


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


async def test_nothing_is_lost_when_the_server_dies_and_returns(server: MemoryServer) -> None:
    worker = Worker(server.endpoint, slots=4)
    go = {name: asyncio.Event() for name in ("while away", "after return", "failing")}

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> str:
        ctx.log(f"before {task.prompt}")
        await go[task.prompt].wait()
        ctx.log(f"after {task.prompt}")
        if task.prompt == "failing":
            raise TaskFailed("BROKEN")
        return task.prompt

    async with working(worker):
        jobs = [await server.add(prompt=name) for name in go]
        await server.until(lambda: all(job.beats and job.lines() for job in jobs))
        await server.kill()
        go["while away"].set()
        go["failing"].set()
        # Long enough for gRPC to give up its own retries.
        await asyncio.sleep(0.5)
        await server.revive()
        go["after return"].set()
        await server.ended(*jobs)

    assert states(jobs) == ["succeeded", "succeeded", "failed"]
    assert [job.lines() for job in jobs] == [[f"before {name}", f"after {name}"] for name in go]


@pytest.mark.parametrize("method", ["BatchCompleteTasks", "CompleteTask"])
async def test_completion_whose_answer_is_lost_is_repeated(server: MemoryServer, method: str) -> None:
    worker = Worker(server.endpoint, slots=2)
    go = asyncio.Event()

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> str:
        if method == "BatchCompleteTasks":
            await go.wait()
        return task.prompt

    server.lose_answers(method, 7)
    async with working(worker):
        jobs = [await server.add(prompt="a"), await server.add(prompt="b")]
        if method == "BatchCompleteTasks":
            await server.until(lambda: states(jobs) == ["running", "running"])
        go.set()
        await server.ended(*jobs)
        after = await server.add(prompt="c")
        await server.ended(after)

    assert [result_of(job) for job in jobs] == ["a", "b"]


async def test_offer_whose_answer_is_lost_is_received_by_the_same_poll(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)
    server.lose_answers("LeaseTasks", 7)

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> int:
        return ctx.attempt

    async with working(worker):
        job = await server.add()
        await server.ended(job)

    assert result_of(job) == 1


async def test_forgotten_worker_registers_again_and_keeps_its_leases(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)
    go = asyncio.Event()

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> str:
        await go.wait()
        return "kept"

    async with working(worker):
        job = await server.add()
        await server.until(lambda: job.beats)
        server.forget()
        await server.until(lambda: len(server.registrations) == 2)
        go.set()
        await server.ended(job)

    assert result_of(job) == "kept"
    assert len({registration.instance_key for registration in server.registrations}) == 1


async def test_worker_registers_again_when_told_to(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None: ...

    async with working(worker):
        await server.until(lambda: server.calls["Heartbeat"])
        await server.direct(AGENT_DIRECTIVE_REREGISTER)
        await server.until(lambda: len(server.registrations) >= 2)
        await server.direct(AGENT_DIRECTIVE_NONE)
        job = await server.add()
        await server.ended(job)


async def test_draining_worker_takes_nothing_new_until_it_is_resumed(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)
    go = asyncio.Event()

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        await go.wait()

    async with working(worker):
        first = await server.add()
        await server.until(lambda: first.beats)
        await server.direct(AGENT_DIRECTIVE_DRAIN)
        before = server.calls["Heartbeat"]
        await server.until(lambda: server.calls["Heartbeat"] > before + 1)
        go.set()
        second = await server.add()
        await server.ended(first)
        before = server.calls["Heartbeat"]
        await server.until(lambda: server.calls["Heartbeat"] > before + 2)
        waiting = second.state
        await server.direct(AGENT_DIRECTIVE_NONE)
        await server.ended(second)

    assert waiting == "queued"


async def test_stop_from_the_server_lets_handlers_finish_then_ends(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)
    go = asyncio.Event()

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> str:
        await go.wait()
        return "finished"

    async with working(worker) as running:
        job = await server.add()
        await server.until(lambda: job.beats)
        await server.direct(AGENT_DIRECTIVE_STOP)
        before = server.calls["Heartbeat"]
        await server.until(lambda: server.calls["Heartbeat"] > before + 1)
        go.set()
        async with asyncio.timeout(20):
            await running

    assert result_of(job) == "finished"
    assert server.deregistered == ["the server asked for it"]


async def test_handler_that_outlasts_the_grace_is_stopped_and_left_to_the_server(server: MemoryServer) -> None:
    worker = Worker(server.endpoint, shutdown_grace=0.05)
    stopped: list[str] = []

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ctx.log("last words")
            stopped.append(ctx.task_id)

    async with working(worker) as running:
        job = await server.add()
        await server.until(lambda: job.beats)
        worker.stop("enough")
        async with asyncio.timeout(20):
            await running

    assert stopped == ["task_0"]
    assert (job.state, job.lines(), server.deregistered) == ("running", ["last words"], ["enough"])


async def test_cancelled_run_stops_handlers_and_says_goodbye(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)
    stopped = asyncio.Event()

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    running = asyncio.create_task(worker.run())
    job = await server.add()
    await server.until(lambda: job.beats)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert stopped.is_set()
    assert len(server.deregistered) == 1


async def test_stop_ends_a_worker_whose_server_is_away(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)
    go = asyncio.Event()

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        ctx.log("something")
        await go.wait()

    async with working(worker) as running:
        job = await server.add()
        await server.until(lambda: job.beats)
        await server.kill()
        go.set()
        worker.stop(at_once=True)
        async with asyncio.timeout(30):
            await running


async def test_worker_waits_for_a_server_that_is_not_up_yet(server: MemoryServer) -> None:
    await server.kill()
    worker = Worker(server.endpoint)

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> str:
        return "in the end"

    async with working(worker):
        await asyncio.sleep(0.3)
        await server.revive()
        job = await server.add()
        await server.ended(job)

    assert result_of(job) == "in the end"


async def test_refused_worker_says_why(server: MemoryServer) -> None:
    worker = Worker(Endpoint(address=server.endpoint.address, token="wrong"))

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None: ...

    with pytest.raises(Unauthenticated) as caught:
        await worker.run()

    assert caught.value.reason == "TOKEN_INVALID"


async def test_worker_that_is_refused_later_stops_its_handlers_and_says_why(server: MemoryServer) -> None:
    worker = Worker(server.endpoint)
    stopped = asyncio.Event()

    @worker.task("work")
    async def work(ctx: TaskContext, task: Task) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    running = asyncio.create_task(worker.run())
    job = await server.add()
    await server.until(lambda: job.beats)
    server.refuse("RegisterWorker", code_pb2.UNAUTHENTICATED, "TOKEN_INVALID")
    server.refuse("RegisterWorker", code_pb2.UNAUTHENTICATED, "TOKEN_INVALID")
    server.forget()
    with pytest.raises(KapellError):
        async with asyncio.timeout(20):
            await running

    assert stopped.is_set()


async def test_worker_that_cannot_work_is_refused_with_what_to_do(server: MemoryServer) -> None:
    with pytest.raises(InvalidRequest, match="1 to 256"):
        Worker(server.endpoint, slots=0)
    worker = Worker(server.endpoint)
    with pytest.raises(InvalidRequest, match="no handler"):
        await worker.run()
    with pytest.raises(InvalidRequest, match="async def"):
        worker.task("work")(lambda ctx, task: None)  # type: ignore[type-var]
    worker.task("work")(_nothing)
    with pytest.raises(InvalidRequest, match="has a handler already"):
        worker.task("work")(_nothing)


async def _nothing(ctx: TaskContext, task: Task) -> None: ...
