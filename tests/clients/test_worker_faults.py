"""The worker against a server that loses answers, dies, forgets it, or wants it to end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from google.rpc import code_pb2
from kapell.discovery import Endpoint
from kapell.errors import KapellError, Unauthenticated
from kapell.v1.task_pb2 import Task
from kapell.v1.worker_pb2 import (
    AGENT_DIRECTIVE_DRAIN,
    AGENT_DIRECTIVE_NONE,
    AGENT_DIRECTIVE_REREGISTER,
    AGENT_DIRECTIVE_STOP,
)
from kapell.worker import TaskContext, TaskFailed, Worker

from tests.clients.memory_server import MemoryServer, states
from tests.clients.working import result_of, working
from tests.support.turns import reached


@pytest.fixture
async def server() -> AsyncIterator[MemoryServer]:
    async with MemoryServer() as running:
        yield running


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


async def test_task_that_comes_back_waits_for_the_end_of_its_lost_attempt() -> None:
    attempts: list[str] = []
    ending = asyncio.Event()
    turns = itertools.count()

    # So slow a heartbeat that the offer comes before the worker is told that the lease is lost.
    async with MemoryServer(heartbeat=4) as server:
        worker = Worker(server.endpoint, slots=2)

        @worker.task("work")
        async def work(ctx: TaskContext, task: Task) -> str:
            attempts.append(f"{ctx.attempt} begins")
            try:
                if ctx.attempt == 1:
                    await asyncio.Event().wait()
                return f"attempt {ctx.attempt}"
            finally:
                if ctx.attempt == 1:
                    ending.set()
                    await reached(lambda: next(turns) > 100)
                attempts.append(f"{ctx.attempt} ends")

        async with working(worker):
            job = await server.add()
            await reached(lambda: bool(attempts) and server.calls["LeaseTasks"] == 2)
            await server.supersede(job, offer_again=True)
            await ending.wait()
            await server.ended(job)

    assert attempts == ["1 begins", "1 ends", "3 begins", "3 ends"]
    assert result_of(job) == "attempt 3"


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
