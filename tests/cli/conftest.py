"""A server for each module, a shell on it, and a fixed cast of tasks and agents."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.shell import Shell
from tests.support.server_process import ServerProcess


def shell_environment(home: Path, **more: str) -> dict[str, str]:
    """A clean environment: nothing of the developer's own server or terminal is seen."""
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **kept,
        "PATH": path,
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONDONTWRITEBYTECODE": "",
        "KAPELL_HTTP_ADDRESS": "127.0.0.1:0",
        **more,
    }


@pytest.fixture(scope="module")
def cli_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server for the tests of one module."""
    with ServerProcess(tmp_path_factory.mktemp("cli") / "data") as server:
        yield server


@pytest.fixture(scope="module")
def shell(cli_server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A shell that finds the module's server by its data directory."""
    home = tmp_path_factory.mktemp("home")
    return Shell(shell_environment(home, KAPELL_DATA_DIR=str(cli_server.data_dir)))


@pytest.fixture(scope="module")
def agent(shell: Shell) -> str:
    """The id of an active agent that serves "shell"."""
    spawned = shell.pipe("agent", "spawn", "shell", "--id", "agent_shell", "--name", "worker", "-o", "id")
    assert spawned.code == 0, spawned.err
    return spawned.out.strip()


@pytest.fixture(scope="module")
def cast(shell: Shell, agent: str) -> Shell:
    """The shell, with task_good, task_bad, task_stopped and task_waiting in states that last; a schedule, backup."""
    for line in (
        ("task", "run", "-t", "shell", "--id", "task_good", "--name", "Say hello", "echo hello; echo oops >&2"),
        ("task", "run", "-t", "shell", "--id", "task_bad", "--max-attempts", "1", "--", "sh", "-c", "exit 3"),
        ("task", "create", "-t", "nobody", "--id", "task_stopped", "--label", "team=web", "stop me"),
        ("task", "cancel", "task_stopped", "--reason", "not needed"),
        ("task", "create", "-t", "nobody", "--id", "task_waiting", "-p", "900", "-i", "pr=17", "Review the change"),
        (
            *("schedule", "create", "backup", "--cron", "0 3 * * *", "-z", "Europe/Berlin", "--overlap", "queue"),
            *("-t", "nobody", "--prompt", "make backup", "--jitter", "5m", "--paused", "--reason", "the disk is full"),
        ),
    ):
        result = shell.pipe(*line)
        assert result.code == (7 if "task_bad" in line else 0), result.err
    return shell


@pytest.fixture
def no_server(tmp_path: Path) -> Shell:
    """A shell on a machine where no server runs."""
    return Shell(shell_environment(tmp_path))
