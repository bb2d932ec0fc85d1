"""Where the processes of a benchmark run: the server on one core, everything else on another."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.server_process import ServerProcess

SERVER_CORE, CLIENT_CORE = "0", "1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A running server: where it is, how to get in, and how large its process is."""

    address: str
    pid: int
    token: str = ""

    def memory(self) -> int:
        """Resident bytes of the process."""
        resident: int = psutil.Process(self.pid).memory_info().rss
        return resident


def pinned(core: str) -> list[str]:
    """The words before a command line that keep it on `core`; none on machines with one core."""
    return ["taskset", "-c", core] if can_pin() else []


def can_pin() -> bool:
    """Whether this machine has two cores and the means to choose one."""
    return (os.cpu_count() or 1) > 1 and shutil.which("taskset") is not None


def pin_this_process() -> None:
    """Moves the load generator away from the server's core."""
    if can_pin():
        os.sched_setaffinity(0, {int(CLIENT_CORE)})


@contextmanager
def kapell(directory: Path, *arguments: str) -> Iterator[Target]:
    """A fresh Kapell server with its data below `directory`."""
    data_dir = directory / "data"
    shutil.rmtree(data_dir, ignore_errors=True)
    with ServerProcess(data_dir, arguments=arguments, prefix=pinned(SERVER_CORE)) as server:
        yield Target(address=server.address, pid=server.pid, token=server.admin_token)


@contextmanager
def floor() -> Iterator[Target]:
    """The bare server that floors are measured on; in a session of its own, like the other one."""
    command = [*pinned(SERVER_CORE), sys.executable, "-m", "tests.bench.floor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield Target(address=f"127.0.0.1:{port}", pid=process.pid)
        finally:
            process.terminate()


async def beside(module: str, server: Target, *arguments: object) -> Any:
    """Runs `python -m tests.bench.MODULE` on the clients' core, beside the caller; its last line, as JSON.

    For load that must not wait for the event loop of the process that measures. It finds the server
    by KAPELL_ADDRESS and KAPELL_TOKEN, as every client does: arguments can be read by everybody.
    """
    words: Sequence[str] = [str(argument) for argument in arguments]
    process = await asyncio.create_subprocess_exec(
        *(*pinned(CLIENT_CORE), sys.executable, "-m", f"tests.bench.{module}", *words),
        env=os.environ | {"KAPELL_ADDRESS": server.address, "KAPELL_TOKEN": server.token},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"tests.bench.{module} ended with code {process.returncode}:\n{errors.decode()}")
    return json.loads(output.splitlines()[-1])
