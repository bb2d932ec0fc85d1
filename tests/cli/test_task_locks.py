"""What a user sees of tasks with locks: one after the other, readers side by side, a deadlock by its name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from kapell import SyncClient
from kapell.v1.task_pb2 import TASK_STATE_RUNNING

from tests.cli.shell import KAPELL, Shell
from tests.cli.test_write import state

GUIDE = Path(__file__).resolve().parents[2] / "server/docs/how-to/give-tasks-locks.md"
UNTIL = "until test -e {}; do sleep 0.05; done"


@pytest.fixture(scope="module")
def team(shell: Shell) -> Shell:
    """The shell, and an agent that does four things at a time."""
    spawned = shell.pipe("agent", "spawn", "--type", "edit", "--slots", "4", "--command", "sh -c {prompt}")
    assert spawned.code == 0, spawned.err
    return shell


def client_of(shell: Shell) -> SyncClient:
    return SyncClient(data_dir=shell.environment["KAPELL_DATA_DIR"])


def until_running(shell: Shell, task_id: str) -> None:
    """Returns when an agent has the task."""
    with client_of(shell) as client, client.tasks.watch(task_ids=[task_id], initial_state=True) as events:
        next(event for event in events if event.task.state == TASK_STATE_RUNNING)


def create(shell: Shell, name: str, *line: str) -> str:
    created = shell.pipe("task", "create", "-t", "edit", "--id", f"task_{name}", *line)
    assert created.code == 0, created.err
    return f"task_{name}"


def test_two_that_overlap_run_one_after_the_other_and_readers_side_by_side(team: Shell, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = create(team, "first", "--lock", "shop/src", UNTIL.format(go))
    second = create(team, "second", "--lock", "shop/src/a.py", "--lock", "port/80", "true")
    readers = [create(team, f"r{number}", "--lock-shared", "shop/docs", UNTIL.format(go)) for number in range(2)]
    for task_id in (first, *readers):
        until_running(team, task_id)

    explained = team.terminal("task", "explain", second, NO_COLOR="1").out
    card = team.pipe("task", "get", first).out
    waiting = team.pipe("task", "get", second).out

    assert state(team, second) == "queued"
    assert re.search(r"It needs shop/src/a\.py: task_first \(agent_\w+\)\s+holds shop/src\.", explained)
    assert re.search(r"^Locks\tshop/src, held with token \d+", card, re.M)
    assert re.search(r"^Locks\tport/80\\nshop/src/a\.py$", waiting, re.M)
    go.touch()
    assert team.pipe("task", "wait", first, second, *readers).code == 0
    with client_of(team) as client:
        ended, started = client.tasks.get(first).end_time, client.tasks.get(second).start_time
    assert ended.ToNanoseconds() <= started.ToNanoseconds()


def test_locks_are_changed_while_no_agent_has_the_task(team: Shell, tmp_path: Path) -> None:
    go = tmp_path / "go"
    holder = create(team, "holder", "--lock", "repo", UNTIL.format(go))
    until_running(team, holder)
    task_id = create(team, "changed", "--lock", "repo", "true")

    tried = team.pipe("task", "update", task_id, "--lock", "docs", "--lock-shared", "x", "--dry-run", "-o", "json")
    changed = team.pipe("task", "update", task_id, "--lock", "other", "--lock-shared", "docs")

    assert (tried.code, '"docs"' in tried.out, '"LOCK_MODE_SHARED"' in tried.out) == (0, True, True)
    assert changed.code == 0, changed.err
    assert team.pipe("task", "wait", task_id).code == 0
    refused = team.pipe("task", "update", holder, "--no-locks")
    assert refused.code == 5
    assert "given other locks" in refused.err
    go.touch()
    assert team.pipe("task", "wait", holder).code == 0


def test_a_path_that_is_none_is_refused_with_the_reason(team: Shell) -> None:
    refused = team.pipe("task", "create", "-t", "edit", "--lock", "/etc/passwd", "true")

    assert refused.code == 2
    assert "--lock: '/etc/passwd'" in refused.err


def test_a_dry_run_of_a_template_says_which_locks_and_who_has_them(team: Shell, tmp_path: Path) -> None:
    go = tmp_path / "go"
    holder = create(team, "writer", "--lock", "shop/src/cart.py", UNTIL.format(go))
    until_running(team, holder)
    parameters = ("--param", "repo=shop", "--param", "files=src/cart.py", "--param", "files=./docs/*.md")

    shown = team.pipe("template", "render", "code-review", *parameters, "-o", "json").out
    card = team.terminal("template", "render", "code-review", *parameters, NO_COLOR="1").out

    assert '"START_BLOCKER_KIND_LOCK"' in shown
    assert re.search(r"Locks +shop/docs \(shared\)\s+shop/src/cart\.py \(shared\)", card)
    assert re.search(r"It needs shop/src/cart\.py: task_writer", card)
    go.touch()
    assert team.pipe("task", "wait", holder).code == 0


def test_every_block_of_the_guide_works(team: Shell, tmp_path: Path) -> None:
    text = GUIDE.read_text(encoding="utf-8")
    [show, parent] = re.findall(r"(?ms)^```sh\n(.*?)^```$", text)
    [worker] = re.findall(r"(?ms)^```python\n(.*?)^```$", text)
    (tmp_path / "worker.py").write_text(worker, encoding="utf-8")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/kapell").write_text(f'#!/bin/sh\nexec {" ".join(KAPELL)} "$@"\n')
    (tmp_path / "bin/kapell").chmod(0o755)
    environment = {**team.environment, "PATH": f"{tmp_path}/bin:{team.environment['PATH']}"}

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=environment,
            cwd=tmp_path,
            text=True,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = run(show)
    serving = subprocess.Popen([sys.executable, "worker.py"], env=environment, cwd=tmp_path)
    try:
        named = run(parent)
    finally:
        serving.terminate()
        serving.wait(30)

    assert "It needs shop/src/cart/sum.py: task_cart" in shown
    assert "task_tidy waits for its child task_" in named
    assert re.search(r"waits for shop/src/cart of task_tidy \(it has shop\)", named)
