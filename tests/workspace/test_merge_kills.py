"""Merges that are killed before any step, and merges at the same time: real processes, real repositories."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from kapell.v1.workspace_pb2 import MERGE_OUTCOME_MERGED

from tests.workspace.desk import Desk, writes
from tests.workspace.repositories import git, show
from tests.workspace.test_merging import desk, merged

__all__ = ["desk"]

KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from kapell._workspace import git, merging
from kapell._workspace.registry import Registry
root, at = Path(sys.argv[1]), int(sys.argv[2])
seen = 0
run = git.Git._run
def counting(self, args, timeout):
    global seen
    seen += 1
    if seen == at:
        os.kill(os.getpid(), signal.SIGKILL)
    done = run(self, args, timeout)
    return done
git.Git._run = counting
registry = Registry(root)
async def yes():
    pass
async def main():
    plan = merging.planned(registry.find("task_one", "shop"), check=["true"])
    await merging.merge(registry, plan, yes)
    print(seen)
asyncio.run(main())
"""


def run_killed(desk: Desk, at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, str(desk.root), str(at)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("checked_out", [False, True])
async def test_killed_before_any_step_the_base_is_before_or_after_and_the_next_try_ends_it(
    desk: Desk, checked_out: bool
) -> None:
    if checked_out:
        git(desk.shop, "switch", "--quiet", "main")
    await desk.attempt(writes(mine="1"))
    before = git(desk.shop, "rev-parse", "main")
    record = desk.record()

    steps = 0
    while True:
        steps += 1
        done = run_killed(desk, steps)
        now = git(desk.shop, "rev-parse", "main")
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert now == before or show(desk.shop, "main:mine") == "1"
        if checked_out:
            assert git(desk.shop, "status", "--porcelain") == ""
        # Back to where it was, so that each step is tried with everything before it.
        if now != before:
            ended = await merged(desk)
            assert (ended.outcome, ended.commit) == (MERGE_OUTCOME_MERGED, now)
            git(desk.shop, "reset", "--quiet", "--hard", before) if checked_out else git(
                desk.shop, "update-ref", "refs/heads/main", before
            )
            desk.registry.put(record)

    assert steps > 8
    assert show(desk.shop, "main:mine") == "1"
    assert len(git(desk.shop, "worktree", "list").splitlines()) == 2


PARALLEL = """
import asyncio, sys
from pathlib import Path
from kapell._workspace import merging
from kapell._workspace.registry import Registry
registry = Registry(Path(sys.argv[1]))
async def yes():
    pass
plan = merging.planned(registry.find(sys.argv[2], "shop"), rebase=sys.argv[3] == "rebase")
ended = asyncio.run(merging.merge(registry, plan, yes))
sys.exit(0 if ended.commit else 1)
"""


@pytest.mark.parametrize("how", ["merge", "rebase"])
async def test_merges_at_the_same_time_lose_nothing_even_without_locks(desk: Desk, how: str) -> None:
    names = ["task_one", "task_two", "task_three"]
    for name in names:
        await desk.attempt(writes(**{name: name}), task_id=name)

    running = [subprocess.Popen([sys.executable, "-c", PARALLEL, str(desk.root), name, how]) for name in names]  # noqa: ASYNC220
    codes = [process.wait(60) for process in running]

    assert codes == [0, 0, 0]
    assert set(names) <= set(git(desk.shop, "ls-tree", "--name-only", "main").split())
