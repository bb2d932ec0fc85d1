"""From a profile to a merge by the command line: a real server, a real host, real locks, real processes."""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from kapell import SyncClient
from kapell.v1.workspace_pb2 import MERGE_OUTCOME_CHECK_FAILED, MERGE_OUTCOME_CONFLICT, MERGE_OUTCOME_MERGED
from kapell_server.config import load

from tests.cli.conftest import shell_environment
from tests.cli.shell import Shell
from tests.support.server_process import ServerProcess
from tests.workspace.repositories import git, repository, show

GUIDE = Path(__file__).resolve().parents[2] / "server/docs/how-to/give-tasks-worktrees.md"
PROFILE = """
[profiles.coder]
slots = 3
command = {{ argv = ["sh", "-c", "{{prompt}}"] }}
[profiles.coder.workspace.git_worktree]
repositories = [{{ path = "{shop}" }}]
merge = {{ check = ["sh", "-c", "test -e README.md"] }}
"""


class Town:
    """A server with an agent that works in a repository."""

    def __init__(self, server: ServerProcess, shell: Shell, shop: Path) -> None:
        self.server, self.shell, self.shop = server, shell, shop

    def done(self, prompt: str, task_id: str) -> str:
        """A task that has succeeded."""
        ran = self.shell.pipe("task", "run", "--type", "coder", "--id", task_id, prompt)
        assert ran.code == 0, ran.err
        return task_id

    def client(self) -> SyncClient:
        return SyncClient(self.server.address, token=self.server.admin_token)

    def outcome(self, task_id: str) -> int:
        with self.client() as client:
            return client.tasks.get(task_id).workspaces[0].merge.outcome


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """One for the module: each test has tasks and files of its own."""
    tmp_path = tmp_path_factory.mktemp("town")
    shop = repository(tmp_path / "shop")
    config = tmp_path / "kapell.toml"
    config.write_text(PROFILE.format(shop=shop))
    with ServerProcess(tmp_path / "data", arguments=("--config", str(config))) as server:
        home = tmp_path / "home"
        home.mkdir()
        shell = Shell(shell_environment(home, KAPELL_DATA_DIR=str(server.data_dir)))
        spawned = shell.pipe("agent", "spawn", "coder", "--wait", "30s", "-o", "id")
        assert spawned.code == 0, spawned.err
        yield Town(server, shell, shop)


def blocks(language: str) -> list[str]:
    """The blocks of the guide in one language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def test_the_profile_of_the_guide_is_one(tmp_path: Path) -> None:
    (tmp_path / "kapell.toml").write_text("".join(blocks("toml")))

    [profile] = [one for one in load(flags={}, env={}, directory=tmp_path).profiles.values() if one.profile == "coder"]

    assert list(profile.spec.workspace.git_worktree.merge.check) == ["make", "test"]


def test_the_commands_of_the_guide_work(town: Town) -> None:
    lines = [line.partition(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    assert lines[0] == "kapell agent spawn coder"

    # The last one has nothing left to release: the one before has pruned it.
    ended = [(line, town.shell.pipe(*shlex.split(line)[1:])) for line in lines[1:]]

    assert [(line, result.code, result.err) for line, result in ended if result.code][:-1] == []
    assert ended[-1][1].code == 3
    assert "hello.txt" in git(town.shop, "ls-tree", "--name-only", "main")


def test_a_task_is_merged_and_its_worktree_removed(town: Town) -> None:
    task_id = town.done("echo 1 > mine", "task_one")
    shown = town.shell.pipe("task", "get", task_id)
    dry = town.shell.pipe("task", "merge", task_id, "--dry-run")
    before = town.shell.pipe("workspace", "prune", "--yes")
    assert (town.server.data_dir / "workspaces" / "registry" / task_id / "shop.json").exists()

    merged = town.shell.pipe("task", "merge", task_id)
    listed = town.shell.pipe("workspace", "list", "-o", "json")
    pruned = town.shell.pipe("workspace", "prune", "--yes")
    events = town.shell.pipe("event", "list", "--task", task_id)

    assert "shop: 1 files +1 -0 on kapell/task_one" in shown.out
    assert "would lock shop/.git/refs/heads/main, shop/mine; merge kapell/task_one into main, check sh -c" in dry.err
    assert before.code == 0
    assert merged.code == 0, merged.err
    assert merged.lines == [f"shop\tmerged\tmain\t{git(town.shop, 'rev-parse', 'main')}\tkapell/task_one"]
    assert (town.shop / "mine").read_text() == "1\n"
    assert '"state": "clean"' in listed.out
    assert pruned.out.startswith("Removed "), pruned.err
    assert git(town.shop, "branch", "--list", "kapell/task_one") == ""
    assert not (town.server.data_dir / "workspaces" / "registry" / task_id).exists()
    assert not (town.server.data_dir / "workspaces" / "trees" / task_id).exists()
    assert "task.workspace" in events.out
    assert "task.merged" in events.out


def test_conflicts_and_checks_are_refused_and_recorded(town: Town) -> None:
    one = town.done("echo 1 > same", "task_c_one")
    two = town.done("echo 2 > same", "task_c_two")

    failed = town.shell.pipe("task", "merge", one, "--check", "sh -c 'echo bad; exit 3'")
    outcome = town.outcome(one)
    first = town.shell.pipe("task", "merge", one)
    second = town.shell.pipe("task", "merge", two)

    assert (failed.code, outcome) == (1, MERGE_OUTCOME_CHECK_FAILED)
    assert "the check has failed" in failed.err
    assert first.code == 0, first.err
    assert (second.code, town.outcome(two)) == (5, MERGE_OUTCOME_CONFLICT)
    assert "task_c_two was not merged: main has changed the same: same" in second.err
    assert show(town.shop, "main:same") == "1"
    kept = town.shell.pipe("workspace", "show", two)
    assert "its branch is neither merged nor pushed" in kept.out


def test_merges_at_the_same_time_are_one_after_the_other(town: Town, tmp_path: Path) -> None:
    tasks = [town.done(f"echo {name} > {name}", f"task_d_{name}") for name in ("one", "two", "three")]
    # mkdir refuses a second one, so the check fails where two of them overlap.
    alone = f"sh -c 'mkdir {tmp_path}/busy && rmdir {tmp_path}/busy'"

    running = [town.shell.process("task", "merge", task_id, "--check", alone) for task_id in tasks]
    ended = [process.communicate(timeout=90) for process in running]

    assert [process.returncode for process in running] == [0, 0, 0], ended
    assert [town.outcome(task_id) for task_id in tasks] == [MERGE_OUTCOME_MERGED] * 3
    for name in ("one", "two", "three"):
        assert (town.shop / name).read_text() == f"{name}\n"
    assert git(town.shop, "status", "--porcelain") == ""


def test_only_what_has_succeeded_is_merged_and_only_where_it_is_known(town: Town, tmp_path: Path) -> None:
    failed = town.shell.pipe(
        "task", "run", "--type", "coder", "--id", "task_e_bad", "--max-attempts", "1", "touch x; exit 3"
    )
    one = town.done("echo 1 > mine_e", "task_e_one")
    elsewhere = Shell(
        {
            **town.shell.environment,
            "KAPELL_DATA_DIR": str(tmp_path / "elsewhere"),
            "KAPELL_ADDRESS": town.server.address,
            "KAPELL_TOKEN": town.server.admin_token,
        }
    )

    bad = town.shell.pipe("task", "merge", "task_e_bad")
    unknown = elsewhere.pipe("task", "merge", one)
    missing = town.shell.pipe("workspace", "show", "task_nobody")

    assert failed.code == 7
    assert (bad.code, unknown.code, missing.code) == (5, 5, 3)
    assert "task_e_bad has not succeeded" in bad.err
    assert "knows no worktree shop of task_e_one" in unknown.err
    # What it has left is on its branch all the same.
    assert show(town.shop, "kapell/task_e_bad:x") == ""


def test_release_keeps_what_is_nowhere_else(town: Town) -> None:
    one = town.done("echo 1 > mine_f", "task_f_one")
    directory = town.server.data_dir / "workspaces" / "trees" / one / "shop"
    (directory / "later").write_text("by hand")

    dirty = town.shell.pipe("workspace", "release", one, "--yes")
    (directory / "later").unlink()
    released = town.shell.pipe("workspace", "release", one, "--yes")

    assert dirty.code == 5
    assert "has changes that are in no commit: 'later'" in dirty.err
    assert released.out == f"Removed {directory}.\n"
    assert not directory.exists()
    assert show(town.shop, "kapell/task_f_one:mine_f") == "1"


@pytest.mark.slow
def test_a_killed_merge_frees_its_locks_and_the_next_one_ends(town: Town, tmp_path: Path) -> None:
    one, two = town.done("echo 1 > first", "task_g_one"), town.done("echo 2 > second", "task_g_two")
    before = git(town.shop, "rev-parse", "main")
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    merging = town.shell.process("task", "merge", one, "--check", f"sh -c 'echo $$ > {gate}; exec sleep 300'")
    check = os.pidfd_open(int(gate.read_text()))

    os.killpg(merging.pid, signal.SIGKILL)
    signal.pidfd_send_signal(check, signal.SIGKILL)
    os.close(check)
    merging.communicate(timeout=30)
    assert git(town.shop, "rev-parse", "main") == before
    ended = [town.shell.pipe("task", "merge", task_id) for task_id in (two, one)]

    assert [result.code for result in ended] == [0, 0], ended
    assert {(town.shop / name).read_text() for name in ("first", "second")} == {"1\n", "2\n"}
