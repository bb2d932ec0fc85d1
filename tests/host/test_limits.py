"""Limits with real programs: what uses more than it may is ended, and told why; what keeps within them runs on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell._worker.outcome import TaskFailed
from kapell.runtimes._family import Families
from kapell.runtimes._output import Kept
from kapell.runtimes._program import Ending
from kapell.runtimes._running import died
from kapell.runtimes.command import build
from kapell.v1.agent_pb2 import AgentLimits, AgentSpec, CommandRuntime

from tests.host.attempts import RecordedAttempt
from tests.host.test_command import a_task

MIB = 1 << 20
HUNGRY = f"data = bytearray(256 * {MIB}); data[::4096] = b'x' * len(data[::4096]); import time; time.sleep(300)"


async def run(tmp_path: Path, limits: AgentLimits, *argv: str) -> object:
    command = CommandRuntime(argv=[part.replace("{", "{{").replace("}", "}}") for part in argv])
    runtime = build(
        AgentSpec(agent_types=["x"], command=command, limits=limits), agent_id="agent_one", directory=tmp_path
    )
    try:
        async with asyncio.timeout(60):
            return await runtime.run(RecordedAttempt(), a_task())
    finally:
        await runtime.close()


@pytest.mark.parametrize(
    ("limits", "script", "words"),
    [
        (AgentLimits(cpu_time=Duration(seconds=1)), "while :; do :; done", "processor time, and may use 1 s"),
        (AgentLimits(wall_time=Duration(seconds=1)), "sleep 300", "ran for longer than 1 s"),
        (AgentLimits(processes=10), "for i in $(seq 20); do sleep 300 & done; wait", "and may have 10"),
        (AgentLimits(output_bytes=100_000), "yes", "wrote more than 98 KiB"),
    ],
    ids=["cpu", "wall", "processes", "output"],
)
async def test_a_program_beyond_a_limit_is_ended(tmp_path: Path, limits: AgentLimits, script: str, words: str) -> None:
    with pytest.raises(TaskFailed) as caught:
        await run(tmp_path, limits, "sh", "-c", script)

    assert caught.value.reason == "LIMIT_EXCEEDED"
    assert words in str(caught.value)
    assert caught.value.retryable is False


async def test_memory_is_that_of_all_together(tmp_path: Path) -> None:
    script = f'{sys.executable} -c "{HUNGRY}" & wait'

    with pytest.raises(TaskFailed, match="of memory, and may use 100 MiB"):
        await run(tmp_path, AgentLimits(memory_bytes=100 * MIB), "sh", "-c", script)


async def test_open_files_are_kept_by_the_system(tmp_path: Path) -> None:
    assert await run(tmp_path, AgentLimits(open_files=64), "sh", "-c", "ulimit -n; ulimit -Hn") == "64\n64"


async def test_within_its_limits_a_program_runs_on(tmp_path: Path) -> None:
    limits = AgentLimits(
        memory_bytes=500 * MIB,
        cpu_time=Duration(seconds=30),
        wall_time=Duration(seconds=30),
        processes=50,
        output_bytes=1000,
    )

    assert await run(tmp_path, limits, "sh", "-c", "sleep 0.6; echo done") == "done"


def test_a_program_that_the_system_killed_for_want_of_memory_says_so() -> None:
    ending = Ending(code=0, signal=signal.SIGKILL, leftovers=0, immortal=(), out_of_memory=True)

    failure = died("hungry", ending, Kept(100))

    assert str(failure).startswith("SIGNAL: hungry was ended by SIGKILL: the system had no memory left")
    assert failure.details == {"signal": "SIGKILL", "number": 9, "out_of_memory": True}


async def test_time_of_those_that_ended_out_of_sight_counts(tmp_path: Path) -> None:
    orphans = """
import os, time
while True:
    if not os.fork():
        os.setsid()
        if not os.fork():
            while time.process_time() < 0.8:
                pass
            open("ended", "w").close()
        os._exit(0)
    os.wait()
    while not os.path.exists("ended"):
        time.sleep(0.01)
    os.remove("ended")
"""

    with pytest.raises(TaskFailed, match="of processor time, and may use 2 s"):
        await run(tmp_path, AgentLimits(cpu_time=Duration(seconds=2)), sys.executable, "-c", orphans)


async def test_the_time_in_which_a_budget_stops_a_program_does_not_count(tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    limits = AgentLimits(wall_time=Duration(seconds=3))
    command = CommandRuntime(argv=["sh", "-c", "read line <go; echo done"], working_directory=str(tmp_path))
    os.mkfifo(tmp_path / "go")
    runtime = build(
        AgentSpec(agent_types=["x"], command=command, limits=limits), agent_id="agent_one", directory=tmp_path
    )
    work = asyncio.create_task(runtime.run(attempt, a_task()))
    try:
        async with asyncio.timeout(60):
            attempt.paused.set()
            await attempt.until_remark("(SIGSTOP)")
            await (await asyncio.create_subprocess_exec("sleep", "4")).wait()
            attempt.continued.set()
            await attempt.until_remark("(SIGCONT)")
            await asyncio.to_thread((tmp_path / "go").write_text, "on\n")
            assert await work == "done"
    finally:
        work.cancel()
        await runtime.close()


def test_a_program_that_has_ended_meanwhile_has_no_processes() -> None:
    assert Families(is_subreaper=False).members(os.getpid()) == []
