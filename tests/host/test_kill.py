"""Whichever way an attempt ends, nothing of its program is left: real processes, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kapell._worker.outcome import TaskFailed
from kapell.runtimes._processes import look_at
from kapell.runtimes.command import Command
from kapell.v1.agent_pb2 import CommandRuntime

from tests.host.attempts import RecordedAttempt
from tests.host.test_command import a_task, run, sh

# Runs a grandchild in another session, with an empty environment, reparented to whoever reaps orphans.
RUN_AWAY = """
import os, sys
if os.fork() == 0:
    os.setsid()
    begun, beginning = os.pipe()  # The system closes it when the orphan has become the other program.
    orphan = os.fork()
    if orphan == 0:
        os.execve("/bin/sleep", ["sleep", "300"], dict() if "bare" in sys.argv else dict(os.environ))
    os.close(beginning)
    os.read(begun, 1)
    print(orphan, flush=True)
    os._exit(0)
os.wait()
"""


def is_running(pid: int) -> bool:
    process = look_at(pid)
    return process is not None and not process.is_zombie


async def started(tmp_path: Path, spec: CommandRuntime, lines: int = 1) -> tuple[asyncio.Task[object], RecordedAttempt]:
    """A program that has written so many lines and runs on."""
    attempt = RecordedAttempt()
    running = asyncio.create_task(run(tmp_path, spec, attempt=attempt))
    seen = asyncio.create_task(attempt.until_stdout(lines))
    await asyncio.wait((running, seen), return_when=asyncio.FIRST_COMPLETED)
    assert not running.done(), running.result()
    await seen
    return running, attempt


async def cancelled_failure(running: asyncio.Task[object]) -> TaskFailed:
    with pytest.raises(TaskFailed) as caught:
        await asyncio.wait_for(running, 20)
    return caught.value


async def test_cancel_asks_the_whole_group_to_end(tmp_path: Path) -> None:
    script = "trap 'echo tidied; exit 0' TERM; sleep 300 & echo $!; wait"
    running, attempt = await started(tmp_path, sh(script))

    attempt.cancel()
    failure = await cancelled_failure(running)

    assert failure.reason == "CANCELLED"
    assert attempt.stdout[1:] == ["tidied"]
    assert not is_running(int(attempt.stdout[0]))


async def test_child_may_tidy_up_within_the_grace_after_its_parent_has_ended(tmp_path: Path) -> None:
    child = "trap 'echo child tidied; exit' TERM; echo up; while :; do sleep 0.05; done"
    running, attempt = await started(tmp_path, sh(f'sh -c "{child}" & wait'))

    attempt.cancel()
    await cancelled_failure(running)

    assert attempt.stdout == ["up", "child tidied"]


async def test_program_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    spec = sh("trap '' TERM; echo $$; while :; do sleep 0.05; done")
    spec.kill_grace.FromMilliseconds(200)
    running, attempt = await started(tmp_path, spec)

    attempt.cancel()
    await cancelled_failure(running)

    assert not is_running(int(attempt.stdout[0]))


async def test_grace_of_zero_kills_at_once(tmp_path: Path) -> None:
    spec = sh("trap 'echo asked' TERM; echo $$; while :; do sleep 0.05; done")
    spec.kill_grace.FromMilliseconds(0)
    running, attempt = await started(tmp_path, spec)

    attempt.cancel()
    await cancelled_failure(running)

    assert len(attempt.stdout) == 1


async def test_lost_lease_kills_without_grace(tmp_path: Path) -> None:
    spec = sh("trap 'echo asked' TERM; echo $$; while :; do sleep 0.05; done")
    running, attempt = await started(tmp_path, spec)

    attempt.lose()
    await cancelled_failure(running)

    assert len(attempt.stdout) == 1
    assert not is_running(int(attempt.stdout[0]))


async def test_lost_lease_ends_the_grace_of_a_cancel(tmp_path: Path) -> None:
    spec = sh("trap 'echo asked' TERM; echo $$; while :; do sleep 0.05; done")
    spec.kill_grace.FromSeconds(60)
    running, attempt = await started(tmp_path, spec)
    attempt.cancel()
    await attempt.until_stdout(2)

    attempt.lose()
    await cancelled_failure(running)

    assert not is_running(int(attempt.stdout[0]))


async def test_cancelled_caller_leaves_no_program(tmp_path: Path) -> None:
    running, attempt = await started(tmp_path, sh("echo $$; sleep 300"))

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert not is_running(int(attempt.stdout[0]))


@pytest.mark.parametrize("how", ["exit 0", "exit 1", "kill -KILL $$"])
async def test_background_children_end_with_the_program(tmp_path: Path, how: str) -> None:
    attempt = RecordedAttempt()

    with contextlib.suppress(TaskFailed):
        await run(tmp_path, sh(f"sleep 300 & echo $!; setsid sleep 300 & echo $!; {how}"), attempt=attempt)

    assert [is_running(int(pid)) for pid in attempt.stdout] == [False, False]


async def test_orphan_in_another_session_is_found_by_its_mark(tmp_path: Path) -> None:
    attempt = RecordedAttempt()

    await run(tmp_path, CommandRuntime(argv=[sys.executable, "-c", RUN_AWAY]), attempt=attempt)

    assert not is_running(int(attempt.stdout[0]))
    assert any("left behind" in remark for remark in attempt.remarks)


async def test_programs_of_other_slots_are_left_alone(tmp_path: Path) -> None:
    runtime = Command(sh("echo $$; sleep 300 & echo $!; wait"), agent_id="a", directory=tmp_path)
    one, other = RecordedAttempt(task_id="task_one"), RecordedAttempt(task_id="task_two")
    runs = [asyncio.create_task(runtime.run(attempt, a_task())) for attempt in (one, other)]
    await one.until_stdout(2)
    await other.until_stdout(2)

    one.cancel()
    await cancelled_failure(runs[0])

    assert [is_running(int(pid)) for pid in one.stdout] == [False, False]
    assert [is_running(int(pid)) for pid in other.stdout] == [True, True]
    other.cancel()
    await cancelled_failure(runs[1])
    await runtime.close()


# What follows needs a process that is a subreaper and may be killed: a small host of its own.
SUBREAPER = """
import asyncio, sys
from pathlib import Path
from kapell.runtimes import build
from kapell.v1.agent_pb2 import AgentSpec, CommandRuntime
from kapell.v1.task_pb2 import Task
from tests.host.attempts import RecordedAttempt

class Printed(RecordedAttempt):
    def log(self, text, stream=1, *, time_ns=0):
        super().log(text, stream, time_ns=time_ns)
        if stream == 1:
            print(text, flush=True)

async def main():
    spec = AgentSpec(command=CommandRuntime(argv=sys.argv[2:]))
    runtime = build(spec, agent_id="a", directory=Path(sys.argv[1]))
    await runtime.run(Printed(), Task(task_id="task_one"))
    print("done", flush=True)
    sys.stdin.read()
asyncio.run(main())
"""


@contextlib.contextmanager
def subreaper(tmp_path: Path, *argv: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SUBREAPER, str(tmp_path), *argv]
    host = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield host
    finally:
        host.kill()
        host.communicate(timeout=10)


@pytest.mark.skipif(sys.platform != "linux", reason="subreapers are Linux's")
def test_orphan_without_mark_and_session_cannot_slip_from_a_subreaper(tmp_path: Path) -> None:
    with subreaper(tmp_path, sys.executable, "-c", RUN_AWAY, "bare") as host:
        assert host.stdout is not None
        orphan = int(host.stdout.readline())
        assert host.stdout.readline() == "done\n"

        assert look_at(orphan) is None, "neither running nor a zombie"


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_program_dies_with_its_host(tmp_path: Path) -> None:
    with subreaper(tmp_path, "sh", "-c", "echo $$; exec sleep 300") as host:
        assert host.stdout is not None
        program = int(host.stdout.readline())
        watched = os.pidfd_open(program)

        host.send_signal(signal.SIGKILL)

        assert_ends(watched)


def assert_ends(pidfd: int) -> None:
    import select

    readable, _, _ = select.select([pidfd], [], [], 10)
    os.close(pidfd)
    assert readable, "the process runs on"
