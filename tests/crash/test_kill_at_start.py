"""kill -9 while the server starts, the very first start included: the next start finds its way.

Tokens, key, database and lock are made in these milliseconds, so a file that is half there, or a
schema that is half made, would show here.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from kapell.v1.task_pb2 import CreateTaskRequest, ListTasksRequest, TaskSpec
from kapell.v1.task_pb2_grpc import TaskServiceStub

from tests.support.server_process import ServerProcess


def start_seconds(data_dir: Path) -> float:
    """How long a first start takes on this machine, now."""
    began = time.monotonic()
    with ServerProcess(data_dir):
        return time.monotonic() - began


def kill_while_starting(data_dir: Path, seconds: float) -> bool:
    """Starts a server and kills it after so long; whether it had not served yet."""
    command = [sys.executable, "-m", "kapell_server", "--log-format", "json", "--grpc-address", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(data_dir)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    output, _ = process.communicate()
    return b'"serving"' not in output


def use(server: ServerProcess) -> int:
    """Creates a task with the token of the directory; how many there are now."""
    bearer = (("authorization", f"Bearer {server.admin_token}"),)
    with grpc.insecure_channel(server.address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        tasks = TaskServiceStub(channel)
        tasks.CreateTask(CreateTaskRequest(task=TaskSpec(agent_type="nobody")), metadata=bearer, timeout=10)
        return len(tasks.ListTasks(ListTasksRequest(), metadata=bearer, timeout=10).tasks)


def survive(tmp_path: Path, directories: int, kills: int) -> None:
    """Kills first and later starts at random moments; each directory must then serve, and keep what it has."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    usual = start_seconds(tmp_path / "usual")
    early = 0

    def kill_early(data_dir: Path) -> None:
        nonlocal usual, early
        if kill_while_starting(data_dir, rng.uniform(0.3, 1.0) * usual):
            early += 1
        else:
            # The machine has become faster.
            usual /= 2

    for number in range(directories):
        data_dir = tmp_path / f"data{number}"
        for _ in range(kills):
            kill_early(data_dir)
        server = ServerProcess(data_dir)
        with server:
            assert use(server) == 1
        token = server.admin_token
        kill_early(data_dir)
        with server:
            assert use(server) == 2
        assert server.admin_token == token
    assert early >= directories, "too few of the kills came before the server served"


@pytest.mark.timeout(120)
def test_a_server_killed_while_it_starts_starts_again(tmp_path: Path) -> None:
    survive(tmp_path, directories=2, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_server_killed_in_a_hundred_starts_starts_again(tmp_path: Path) -> None:
    survive(tmp_path, directories=25, kills=4)
