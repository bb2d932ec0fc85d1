"""Commands that stay: logs, watches and waiting, on a pipe and when they are stopped."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cli.shell import Shell


@contextmanager
def following(shell: Shell, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A command that stays, killed at the end if it still does."""
    with shell.process(*args) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line of its stdout."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_watch_shows_what_is_and_then_what_happens(cast: Shell) -> None:
    with following(cast, "task", "watch", "--initial", "--state", "queued", "-o", "jsonl") as process:
        first = json.loads(line_of(process))
        while first["task"]["taskId"] != "task_waiting":
            first = json.loads(line_of(process))

        cast.pipe("task", "update", "task_waiting", "--label", "seen=yes")
        change = json.loads(line_of(process))

    assert first["kind"] == "EVENT_KIND_SNAPSHOT"
    assert change["kind"] == "EVENT_KIND_TASK_UPDATED"
    assert change["task"]["labels"] == {"seen": "yes"}


def test_a_stopped_watch_tells_where_it_goes_on(cast: Shell) -> None:
    with following(cast, "event", "watch", "--after", "1", "-o", "jsonl") as process:
        revisions = [int(json.loads(line_of(process))["revision"]) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)

    assert revisions == [2, 3, 4]
    assert process.returncode == 130
    assert "kapell event watch --after" in err


def test_a_watch_of_tasks_ends_with_them(cast: Shell) -> None:
    result = cast.pipe("task", "watch", "task_good", "task_bad")

    assert result.code == 0
    assert {line.split("\t")[3] for line in result.lines} == {"task_good", "task_bad"}


def test_a_watch_of_agents_shows_them(cast: Shell) -> None:
    with following(cast, "agent", "watch", "--initial", "agent_shell") as process:
        line = line_of(process)

    assert "agent_shell\tactive" in line


def test_logs_are_followed_to_the_end_of_the_task(shell: Shell, agent: str) -> None:
    assert agent
    shell.pipe("task", "create", "-t", "shell", "--id", "task_logged", "echo one; sleep 0.3; echo two")

    result = shell.pipe("task", "logs", "--follow", "task_logged")

    assert result.code == 0
    assert result.out == "one\ntwo\n"


def test_logs_of_an_earlier_attempt(shell: Shell, agent: str) -> None:
    assert agent
    shell.pipe(
        "task", "run", "-t", "shell", "--id", "task_twice", "--max-attempts", "2", "echo $KAPELL_ATTEMPT; exit 1"
    )

    assert shell.pipe("task", "logs", "--attempt", "1", "task_twice").out == "1\n"
    assert shell.pipe("task", "logs", "task_twice").out == "2\n"
    assert "TIME" not in shell.pipe("task", "logs", "--times", "task_twice").out
    assert shell.pipe("task", "logs", "--times", "task_twice").out.endswith("Z  2\n")


@pytest.mark.parametrize(
    ("ids", "code"),
    [(("task_good",), 0), (("task_good", "task_bad"), 7), (("task_stopped",), 7), (("task_nobody_knows",), 3)],
)
def test_wait_gives_the_outcome(cast: Shell, ids: tuple[str, ...], code: int) -> None:
    assert cast.pipe("task", "wait", *ids).code == code


def test_wait_gives_8_when_the_time_is_up(cast: Shell) -> None:
    result = cast.pipe("task", "wait", "task_waiting", "--timeout", "200ms")

    assert result.code == 8
    assert "kapell task wait task_waiting" in result.err


@pytest.mark.parametrize("server_process", [("--no-templates",)], indirect=True)
def test_a_watch_survives_a_restart_of_the_server(server_process: object, no_server: Shell) -> None:
    from tests.support.server_process import ServerProcess

    assert isinstance(server_process, ServerProcess)
    shell = Shell({**no_server.environment, "KAPELL_DATA_DIR": str(server_process.data_dir)})
    shell.pipe("task", "create", "-t", "nobody", "--id", "task_first", "x")
    with following(shell, "event", "watch", "--after", "0", "--initial", "-o", "id") as process:
        before = line_of(process)

        server_process.restart()
        shell.pipe("task", "create", "-t", "nobody", "--id", "task_second", "x")

        assert (before, line_of(process)) == ("task_first\n", "task_second\n")
