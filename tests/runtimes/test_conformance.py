"""What every runtime must do, asked of each one that is registered; see casts for how one joins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from kapell import runtimes
from kapell._locks.environment import KnownLock, parse
from kapell._worker.outcome import TaskFailed
from kapell._worker.values import to_value
from kapell.runtimes import Runtime
from kapell.runtimes._processes import look_at
from kapell.v1.agent_pb2 import AgentLimits, AgentSpec
from kapell.v1.task_pb2 import Task

from tests.host.attempts import RecordedAttempt
from tests.runtimes.casts import CASTS

TASK = Task(task_id="task_one", prompt="hello")

Play = Callable[..., Runtime]


@pytest.fixture(params=CASTS)
async def play(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Play]:
    """Makes the runtime that plays some steps."""
    made: list[Runtime] = []

    def build(*steps: list[Any], **script: Any) -> Runtime:
        limits = AgentLimits(**script.pop("limits", {}))
        spec = CASTS[request.param](tmp_path, {"steps": steps, **script})
        spec.limits.CopyFrom(limits)
        runtime = runtimes.build(spec, agent_id="agent_one", directory=tmp_path / f"agent-{len(made)}")
        made.append(runtime)
        return runtime

    yield build
    for runtime in made:
        await runtime.close()


async def failure_of(running: asyncio.Future[object] | asyncio.Task[object]) -> TaskFailed:
    """The attempt ends, and not well."""
    async with asyncio.timeout(20):
        await asyncio.wait((running,))
    with pytest.raises(TaskFailed) as caught:
        running.result()
    return caught.value


def begun(runtime: Runtime, attempt: RecordedAttempt) -> asyncio.Task[object]:
    return asyncio.create_task(runtime.run(attempt, TASK))


def is_running(pid: str) -> bool:
    process = look_at(int(pid))
    return process is not None and not process.is_zombie


def test_runtime_this_version_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has: acp, command"):
        runtimes.build(AgentSpec(), agent_id="agent_one", directory=tmp_path)


async def test_what_it_says_is_logged_and_is_the_result(play: Play) -> None:
    attempt = RecordedAttempt()

    result = await play(["say", "hello"]).run(attempt, TASK)

    assert result == "hello"
    assert to_value(result) is not None
    assert attempt.stdout == ["hello"]
    assert attempt.has_ended


async def test_failure_is_told_with_its_last_words(play: Play) -> None:
    attempt = RecordedAttempt()

    failure = await failure_of(begun(play(["fail"]), attempt))

    assert failure.reason == "EXIT_CODE"
    assert failure.message.endswith("exited with code 3:\nit went wrong")
    assert attempt.stderr == ["it went wrong"]


async def test_progress_is_told(play: Play) -> None:
    attempt = RecordedAttempt()

    await play(["progress", 50, "half"]).run(attempt, TASK)

    [(fraction, step, message)] = attempt.progress_seen
    assert fraction == 0.5
    assert "half" in (step, message)


async def test_usage_is_reported(play: Play) -> None:
    attempt = RecordedAttempt()

    await play(["usage", 0.25]).run(attempt, TASK)

    assert len(attempt.used) == 1
    assert "0.25" in str(attempt.used)


async def test_files_that_it_leaves_are_kept(play: Play) -> None:
    attempt = RecordedAttempt()

    await play(["artifact", "report.txt", "all is well"]).run(attempt, TASK)

    assert attempt.artifacts == {"report.txt": b"all is well"}


async def test_secrets_reach_the_program_and_are_masked_in_what_it_says(play: Play) -> None:
    attempt = RecordedAttempt(secrets={"API_KEY": "tops3cret-value"})

    result = await play(["environment", "API_KEY"], ["stderr", "it is tops3cret-value"]).run(attempt, TASK)

    assert "tops3cret" not in f"{attempt.lines}{result}"
    assert "(not set)" not in str(result)


async def test_locks_are_told(play: Play) -> None:
    lock = KnownLock(path="shop/src", mode="exclusive", lock_id="lock_1", fencing_token=7)

    result = await play(["environment", "KAPELL_LOCKS"]).run(RecordedAttempt(locks=[lock]), TASK)

    assert parse(str(result)) == [lock]


async def test_cancel_ends_it_also_where_it_ignores_that(play: Play) -> None:
    attempt = RecordedAttempt()
    running = begun(play(["leave"], ["hang"]), attempt)
    pids = (await attempt.until_stdout(3))[:2]

    attempt.cancel()
    failure = await failure_of(running)

    assert failure.reason == "CANCELLED"
    assert [is_running(pid) for pid in pids] == [False, False]


async def test_lost_lease_ends_it_without_grace(play: Play) -> None:
    attempt = RecordedAttempt()
    running = begun(play(["leave"], ["hang"]), attempt)
    pids = (await attempt.until_stdout(3))[:2]

    attempt.lose()
    await failure_of(running)

    assert [is_running(pid) for pid in pids] == [False, False]
    assert not any("cancelled" in remark for remark in attempt.remarks)


async def test_cancelled_caller_stops_the_work(play: Play) -> None:
    attempt = RecordedAttempt()
    running = begun(play(["leave"], ["hang"]), attempt)
    pids = (await attempt.until_stdout(3))[:2]

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 20)

    assert [is_running(pid) for pid in pids] == [False, False]


async def test_two_attempts_run_side_by_side_and_are_stopped_apart(play: Play) -> None:
    runtime = play(["hang"])
    attempts = [RecordedAttempt(task_id="task_one"), RecordedAttempt(task_id="task_two")]
    runs = [begun(runtime, attempt) for attempt in attempts]
    for attempt in attempts:
        await attempt.until_stdout(1)

    attempts[0].cancel()
    await failure_of(runs[0])
    still_runs = not runs[1].done()
    attempts[1].lose()
    await failure_of(runs[1])

    assert still_runs


@pytest.mark.parametrize(("last", "reason"), [(["exit", 0], ""), (["exit", 9], "EXIT_CODE"), (["crash"], "SIGNAL")])
async def test_whatever_it_leaves_behind_ends_with_it(play: Play, last: list[Any], reason: str) -> None:
    attempt = RecordedAttempt()

    running = begun(play(["leave"], last), attempt)
    await asyncio.wait((running,), timeout=20)
    error = running.exception()

    assert [is_running(pid) for pid in attempt.stdout[:2]] == [False, False]
    if reason:
        assert isinstance(error, TaskFailed)
        assert error.reason == reason


async def test_garbage_is_logged_and_does_no_harm(play: Play) -> None:
    attempt = RecordedAttempt()

    await play(["raw", "no message at all\n\xff{]\n"], ["say", "hello"]).run(attempt, TASK)

    said = [*attempt.stdout, *attempt.stderr]
    assert "no message at all" in said
    assert "hello" in said


async def test_what_is_beyond_its_limits_is_ended(play: Play) -> None:
    attempt = RecordedAttempt()

    runtime = play(["flood", 64 * 1024 * 1024], ["hang"], limits={"output_bytes": 1 << 20})
    failure = await failure_of(begun(runtime, attempt))

    assert (failure.reason, failure.retryable) == ("LIMIT_EXCEEDED", False)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flood", "raw_flood"])
async def test_a_gigabyte_of_output_takes_little_memory(play: Play, how: str) -> None:
    attempt = RecordedAttempt(capacity=1024 * 1024)
    before = _resident()

    running = begun(play([how, 1024**3], ["say", "done"]), attempt)
    await asyncio.wait((running,))

    if running.exception() is None:
        assert str(running.result()).endswith("done")
    else:
        # A line without an end is more than the protocol allows.
        assert "line of more than" in str(running.exception())
    assert _resident() - before < 200 * 1024 * 1024


def _resident() -> int:
    """The memory of this process at its peak, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
