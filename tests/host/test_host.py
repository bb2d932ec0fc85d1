"""`python -m kapell.host` as a process: the whole agent, against a server that can die and return."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc import code_pb2
from kapell._worker.values import from_value
from kapell.runtimes._processes import look_at
from kapell.v1.agent_pb2 import AgentSpec, CommandRuntime
from kapell.v1.worker_pb2 import AGENT_DIRECTIVE_STOP

from tests.clients.memory_server import BOOTSTRAP_TOKEN, MemoryServer

SHELL = AgentSpec(agent_types=["work"], slots=4, command=CommandRuntime(argv=["sh", "-c", "{prompt}"]))


@pytest.fixture
async def server() -> AsyncIterator[MemoryServer]:
    async with MemoryServer(slots=4) as running:
        yield running


class Host:
    """A running host and what it wrote so far."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def ended(self) -> int:
        """Waits for its exit code."""
        return await asyncio.wait_for(self.process.wait(), 30)


@asynccontextmanager
async def host(tmp_path: Path, server: MemoryServer, spec: AgentSpec = SHELL, **environ: str) -> AsyncIterator[Host]:
    """Starts a host as the spawner does, and kills it at the end if it still runs."""
    spec_file, log = tmp_path / "spec.json", tmp_path / "host.log"
    spec_file.write_text(json_format.MessageToJson(spec))
    environment = {
        "PATH": os.environ["PATH"],
        "KAPELL_ADDRESS": server.endpoint.address,
        "KAPELL_TICKET": BOOTSTRAP_TOKEN,
        "KAPELL_AGENT_ID": "agent_one",
        "KAPELL_MARK": "log_test/agent_one",
        "KAPELL_SPEC_FILE": str(spec_file),
        **environ,
    }
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-u", "-m", "kapell.host"),
            cwd=tmp_path,
            env={name: value for name, value in environment.items() if value},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    running = Host(process, log)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        print(running.log)


def is_running(pid: int) -> bool:
    process = look_at(pid)
    return process is not None and not process.is_zombie


async def test_host_runs_tasks_and_reports_them(tmp_path: Path, server: MemoryServer) -> None:
    async with host(tmp_path, server):
        good = await server.add(prompt="echo hello; echo '::progress 50% half'; echo oops >&2")
        bad = await server.add(prompt="echo why >&2; exit 7")
        await server.ended(good, bad)

    assert good.result is not None
    assert from_value(good.result) == "hello"
    assert sorted(good.lines()[1:]) == ["hello", "oops"]
    assert good.lines()[0].startswith("started sh, process ")
    assert [(p.fraction, p.message) for p in good.progress] == [(0.5, "half")]
    assert bad.failure is not None
    assert (bad.failure.reason, bad.failure.message) == ("EXIT_CODE", "sh exited with code 7:\nwhy")


async def test_programs_run_on_while_the_server_is_dead_and_nothing_is_lost(
    tmp_path: Path, server: MemoryServer
) -> None:
    flag = tmp_path / "go"
    os.mkfifo(flag)
    async with host(tmp_path, server):
        job = await server.add(prompt=f"echo before; cat {flag}; echo after; seq 1 3000")
        await server.until(lambda: len(job.lines()) == 2 and job.beats)
        await server.kill()
        await asyncio.to_thread(flag.write_text, "while away\n")
        await asyncio.sleep(0.5)
        await server.revive()
        await server.ended(job)

    assert job.attempt == 1
    assert job.lines()[1:] == ["before", "while away", "after", *map(str, range(1, 3001))]


async def test_flood_does_not_grow_the_host(tmp_path: Path, server: MemoryServer) -> None:
    async with host(tmp_path, server) as running:
        warm = await server.add(prompt="true")
        await server.ended(warm)
        job = await server.add(prompt=f"yes '{'flood ' * 80}' | head -c 150000000; echo; echo end")
        await server.ended(job)
        status = Path(f"/proc/{running.process.pid}/status").read_text()

    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < 150 * 1024, f"the host took {peak} KiB"
    assert job.result is not None
    result = from_value(job.result)
    assert isinstance(result, str)
    assert result.endswith("\nend")
    assert job.lines()[-1].startswith("the log is full (15 MiB)")
    assert sum(len(line) for line in job.lines()) > 4_000_000


async def test_cancel_ends_the_program_and_the_task(tmp_path: Path, server: MemoryServer) -> None:
    async with host(tmp_path, server):
        job = await server.add(prompt="echo $$; sleep 300 & echo $!; wait")
        await server.until(lambda: len(job.lines()) == 3)
        pids = [int(line) for line in job.lines()[1:]]
        await server.cancel(job, hint=True)
        await server.ended(job)

        assert [is_running(pid) for pid in pids] == [False, False]
    assert job.state == "cancelled"


async def test_lost_lease_kills_the_program_at_once(tmp_path: Path, server: MemoryServer) -> None:
    async with host(tmp_path, server):
        job = await server.add(prompt="trap '' TERM; echo $$; while :; do sleep 0.1; done")
        await server.until(lambda: len(job.lines()) == 2 and job.beats)
        program = os.pidfd_open(int(job.lines()[1]))
        await server.supersede(job)

        await ends(program)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signalled_host_ends_its_programs_and_says_goodbye(
    tmp_path: Path, server: MemoryServer, number: signal.Signals
) -> None:
    async with host(tmp_path, server) as running:
        job = await server.add(prompt="echo $$; sleep 300")
        await server.until(lambda: len(job.lines()) == 2)
        running.process.send_signal(number)

        assert await running.ended() == 0
        assert not is_running(int(job.lines()[1]))
    assert server.deregistered == [f"got {number.name}"]


async def test_host_told_to_stop_finishes_its_tasks_first(tmp_path: Path, server: MemoryServer) -> None:
    flag = tmp_path / "go"
    os.mkfifo(flag)
    async with host(tmp_path, server) as running:
        job = await server.add(prompt=f"echo up; cat {flag}")
        await server.until(lambda: len(job.lines()) == 2)
        await server.direct(AGENT_DIRECTIVE_STOP)
        before = server.calls["Heartbeat"]
        await server.until(lambda: server.calls["Heartbeat"] > before + 1)
        await asyncio.to_thread(flag.write_text, "done\n")

        assert await running.ended() == 0
    assert job.state == "succeeded"


async def test_programs_die_with_a_killed_host(tmp_path: Path, server: MemoryServer) -> None:
    async with host(tmp_path, server) as running:
        job = await server.add(prompt="echo $$; exec sleep 300")
        await server.until(lambda: len(job.lines()) == 2)
        program = os.pidfd_open(int(job.lines()[1]))
        running.process.kill()

        await ends(program)


async def test_host_that_is_no_longer_known_ends_with_its_programs(tmp_path: Path, server: MemoryServer) -> None:
    async with host(tmp_path, server) as running:
        job = await server.add(prompt="echo $$; sleep 300")
        await server.until(lambda: len(job.lines()) == 2)
        program = os.pidfd_open(int(job.lines()[1]))
        for _ in range(5):
            server.refuse("RegisterWorker", code_pb2.UNAUTHENTICATED, "TOKEN_INVALID")
        server.forget()

        assert await running.ended() == 1
        await ends(program)
        assert "refuses this agent" in running.log


async def test_ticket_reaches_neither_programs_nor_the_log(tmp_path: Path, server: MemoryServer) -> None:
    async with host(tmp_path, server) as running:
        job = await server.add(prompt="env; cat /proc/$$/environ | tr '\\0' '\\n'; echo $PPID")
        await server.ended(job)

        shown = "\n".join(job.lines()) + running.log
        assert BOOTSTRAP_TOKEN not in shown
        assert server.agent_token not in shown
        assert "KAPELL_MARK=log_test/agent_one" in job.lines()


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"KAPELL_TICKET": ""}, "KAPELL_TICKET not set"),
        ({"KAPELL_SPEC_FILE": "/no/such/file"}, "/no/such/file cannot be used"),
    ],
)
async def test_host_started_the_wrong_way_says_so(
    tmp_path: Path, server: MemoryServer, environ: dict[str, Any], says: str
) -> None:
    async with host(tmp_path, server, **environ) as running:
        assert await running.ended() == 2
        assert says in running.log
        assert "Traceback" not in running.log


async def test_template_that_cannot_work_is_refused_at_the_start(tmp_path: Path, server: MemoryServer) -> None:
    spec = AgentSpec(agent_types=["work"], command=CommandRuntime(argv=["echo", "{promt}"]))
    async with host(tmp_path, server, spec) as running:
        assert await running.ended() == 2
        assert "{promt}" in running.log


async def ends(pidfd: int) -> None:
    """Waits until the process has ended."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), 20)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
