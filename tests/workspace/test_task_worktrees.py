"""Worktrees of tasks as a host makes them: real git, a stand-in for the attempt."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell._worker.outcome import TaskFailed
from kapell._workspace import worktrees
from kapell._workspace.git import Git
from kapell.errors import Exhausted
from kapell.runtimes.contract import Workspace
from kapell.v1.workspace_pb2 import WorkspaceRepository, WorkspaceSetup

from tests.host.attempts import RecordedAttempt
from tests.workspace.desk import Desk, exit_code, writes
from tests.workspace.repositories import commit, git, repository, show, write


async def test_a_task_gets_a_worktree_and_a_branch_of_its_own(desk: Desk) -> None:
    base = git(desk.shop, "rev-parse", "main")

    attempt = await desk.attempt(lambda place: commit(place.directory, {"new.txt": "new"}, "By the agent"))

    assert attempt.workspace is not None
    place = attempt.workspace
    told = {name: place.environment[name] for name in ("KAPELL_WORKSPACE", "KAPELL_BRANCH", "KAPELL_BASE")}
    assert told == {"KAPELL_WORKSPACE": str(place.directory), "KAPELL_BRANCH": "kapell/task_one", "KAPELL_BASE": base}
    assert show(desk.shop, "kapell/task_one:new.txt") == "new"
    assert git(desk.shop, "rev-parse", "main") == base
    assert git(desk.shop, "status", "--porcelain") == ""
    assert attempt.remarks[0].startswith(f"made {place.directory} on kapell/task_one from {base[:12]}")
    assert set(attempt.artifacts) == {"diff.patch", "commits.txt"}


async def test_what_is_not_committed_is_committed_as_the_agents_work(desk: Desk) -> None:
    await desk.attempt(writes(**{"a b\n'ü\\.txt": "odd", "src/a.py": "a = 2\n"}))

    assert git(desk.shop, "log", "-1", "--format=%an <%ae> %cn|%s", "kapell/task_one") == (
        "Kapell agent agent_one <agent_one@kapell.invalid> Kapell agent agent_one|Work of task_one, attempt 1"
    )
    assert show(desk.shop, "kapell/task_one:a b\n'ü\\.txt") == "odd"
    assert not desk.record().dirty


async def test_the_task_is_told_what_its_branch_changes(desk: Desk) -> None:
    binary = bytes(range(256))
    attempt = await desk.attempt(
        lambda place: write(place.directory, {"src/a.py": "a = 2\nb = 3\n", "README.md": "", "x.bin": binary})
    )

    [told] = attempt.workspaces
    assert (told.name, told.branch, told.base_ref) == ("shop", "kapell/task_one", "refs/heads/main")
    assert (told.base_commit, told.head_commit) == (
        git(desk.shop, "rev-parse", "main"),
        git(desk.shop, "rev-parse", "kapell/task_one"),
    )
    assert (told.files_changed, told.insertions, told.deletions, told.dirty) == (3, 2, 2, False)


async def test_a_failed_attempt_loses_nothing(desk: Desk) -> None:
    def fails(place: Workspace) -> object:
        write(place.directory, {"half.txt": "half"})
        raise TaskFailed("EXIT_CODE", "it broke")

    with pytest.raises(TaskFailed, match="it broke"):
        await desk.attempt(fails)

    assert show(desk.shop, "kapell/task_one:half.txt") == "half"


async def test_a_lost_lease_leaves_all_as_it_is_and_the_next_attempt_goes_on(desk: Desk) -> None:
    class Lost(BaseException):
        pass

    def leaves(place: Workspace) -> object:
        write(place.directory, {"half.txt": "half"})
        raise Lost

    with pytest.raises(Lost):
        await desk.attempt(leaves)
    assert desk.record().state == "working"
    seen: list[bool] = []
    await desk.attempt(lambda place: seen.append((place.directory / "half.txt").exists()), number=2)

    assert seen == [True]
    assert show(desk.shop, "kapell/task_one:half.txt") == "half"


async def test_an_agent_that_was_killed_on_a_branch_of_its_own_is_followed(desk: Desk) -> None:
    class Killed(BaseException):
        pass

    def leaves(place: Workspace) -> object:
        git(place.directory, "switch", "--quiet", "-c", "feature")
        commit(place.directory, {"mine": "1"})
        raise Killed

    with pytest.raises(Killed):
        await desk.attempt(leaves)
    await desk.attempt(writes(more="2"), number=2)

    assert git(desk.shop, "ls-tree", "--name-only", "kapell/task_one").split() == ["README.md", "mine", "more", "src"]


async def test_changes_are_left_alone_where_the_profile_says_so(tmp_path: Path) -> None:
    repository(tmp_path / "shop")
    desk = Desk(tmp_path, keep_uncommitted=True)

    await desk.attempt(writes(**{"new.txt": "new"}))

    record = desk.record()
    assert record.dirty
    assert record.head == record.base
    assert Path(record.directory, "new.txt").read_text() == "new"


async def test_a_retry_goes_on_in_its_branch(desk: Desk) -> None:
    await desk.attempt(writes(one="1"))
    second = await desk.attempt(writes(two="2"), number=2)

    assert git(desk.shop, "ls-tree", "--name-only", "kapell/task_one").split() == ["README.md", "one", "src", "two"]
    assert second.remarks[0].startswith("goes on in ")
    assert b"+++ b/one" in second.artifacts["diff.patch"]


async def test_a_retry_begins_anew_and_keeps_what_was_there(tmp_path: Path) -> None:
    repository(tmp_path / "shop")
    desk = Desk(tmp_path, restart_on_retry=True)

    await desk.attempt(writes(one="1"))
    await desk.attempt(writes(two="2"), number=2)
    third = await desk.attempt(writes(three="3"), number=3)

    assert git(desk.shop, "ls-tree", "--name-only", "kapell/task_one").split() == ["README.md", "src", "three"]
    assert show(desk.shop, "kapell/task_one.before-2:one") == "1"
    assert show(desk.shop, "kapell/task_one.before-3:two") == "2"
    assert third.remarks[0].endswith("kept as kapell/task_one.before-3")


async def test_several_repositories_lie_side_by_side(tmp_path: Path) -> None:
    shop, docs = repository(tmp_path / "shop"), repository(tmp_path / "docs")
    desk = Desk(
        tmp_path,
        repositories=[
            WorkspaceRepository(name="shop", path=str(shop)),
            WorkspaceRepository(name="docs", path=str(docs)),
        ],
    )

    attempt = await desk.attempt(writes(**{"shop/x": "1", "docs/y": "2"}))

    assert show(shop, "kapell/task_one:x") == "1"
    assert show(docs, "kapell/task_one:y") == "2"
    assert set(attempt.artifacts) == {
        f"{name}/{file}" for name in ("shop", "docs") for file in ("diff.patch", "commits.txt")
    }


async def test_the_diff_rebuilds_the_work_binary_files_too(desk: Desk, tmp_path: Path) -> None:
    bytes_ = bytes(range(256)) * 4
    attempt = await desk.attempt(lambda place: write(place.directory, {"ü b.bin": bytes_, "src/a.py": "a = 2\n"}))

    copy = tmp_path / "copy"
    git(tmp_path, "clone", "--quiet", str(desk.shop), str(copy))
    (tmp_path / "diff.patch").write_bytes(attempt.artifacts["diff.patch"])
    git(copy, "apply", str(tmp_path / "diff.patch"))

    assert (copy / "ü b.bin").read_bytes() == bytes_
    assert (copy / "src/a.py").read_text() == "a = 2\n"


async def test_a_diff_that_is_too_long_is_said(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kapell._workspace.results.MOST_DIFF_BYTES", 1 << 20)

    attempt = await desk.attempt(lambda place: write(place.directory, {"big": os.urandom(2 << 20)}))

    assert set(attempt.artifacts) == {"commits.txt"}
    assert any(remark.startswith("diff.patch of shop has more than 1 MiB") for remark in attempt.remarks)


async def test_a_bare_repository_and_a_base_ref_will_do(desk: Desk, tmp_path: Path) -> None:
    git(desk.shop, "branch", "release")
    commit(desk.shop, {"later": "x"})
    git(tmp_path, "clone", "--quiet", "--bare", str(desk.shop), str(tmp_path / "shop.git"))
    bare = Desk(
        tmp_path,
        repositories=[WorkspaceRepository(name="shop", path=str(tmp_path / "shop.git"), base_ref="release")],
    )

    await bare.attempt(writes(one="1"))

    assert bare.record().base_ref == "refs/heads/release"
    assert git(tmp_path / "shop.git", "ls-tree", "--name-only", "kapell/task_one").split() == [
        "README.md",
        "one",
        "src",
    ]


async def test_a_detached_head_is_a_base_that_nothing_comes_into(desk: Desk) -> None:
    git(desk.shop, "checkout", "--quiet", "--detach")

    await desk.attempt(writes(one="1"))

    assert desk.record().base_ref == ""


async def test_hooks_and_variables_of_git_do_not_reach_a_workspace(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for hook in ("post-checkout", "pre-commit", "commit-msg"):
        file = desk.shop / ".git" / "hooks" / hook
        file.write_text("#!/bin/sh\nexit 1\n")
        file.chmod(0o755)
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere")

    await desk.attempt(writes(one="1"))

    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_INDEX_FILE")
    assert show(desk.shop, "kapell/task_one:one") == "1"


async def test_a_repository_within_the_worktree_is_no_work_that_was_kept(desk: Desk) -> None:
    attempt = await desk.attempt(lambda place: repository(place.directory / "inner"))

    record = desk.record()
    assert record.dirty
    assert record.head == record.base
    assert "'inner' of shop is a repository of its own, and is in no branch of the task" in attempt.remarks


async def test_a_merge_that_was_left_in_the_middle_is_not_committed(desk: Desk) -> None:
    git(desk.shop, "switch", "--quiet", "-c", "other")
    commit(desk.shop, {"src/a.py": "a = 3\n"})
    git(desk.shop, "switch", "--quiet", "main")

    def conflicts(place: Workspace) -> object:
        commit(place.directory, {"src/a.py": "a = 2\n"})
        subprocess.run(["git", "merge", "--quiet", "other"], cwd=place.directory, check=False, capture_output=True)
        return None

    await desk.attempt(conflicts)

    assert desk.record().dirty
    assert show(desk.shop, "kapell/task_one:src/a.py") == "a = 2"


@pytest.mark.parametrize("leave", [("switch", "--quiet", "-c", "feature"), ("checkout", "--quiet", "--detach")])
async def test_an_agent_that_works_on_a_branch_of_its_own_is_brought_home(desk: Desk, leave: tuple[str, ...]) -> None:
    def strays(place: Workspace) -> object:
        git(place.directory, *leave)
        commit(place.directory, {"committed": "1"})
        write(place.directory, {"left": "2"})
        return None

    attempt = await desk.attempt(strays)
    await desk.attempt(writes(again="3"), number=2)

    assert not desk.record().dirty
    assert git(desk.shop, "ls-tree", "--name-only", "kapell/task_one").split() == [
        "README.md",
        "again",
        "committed",
        "left",
        "src",
    ]
    assert any(remark.startswith("the agent has worked on ") for remark in attempt.remarks)


async def test_an_agent_that_has_gone_elsewhere_is_not_followed(desk: Desk) -> None:
    def strays(place: Workspace) -> object:
        commit(place.directory, {"mine": "1"})
        git(place.directory, "switch", "--quiet", "-c", "other", "main")
        return None

    await desk.attempt(strays)

    assert desk.record().dirty
    assert show(desk.shop, "kapell/task_one:mine") == "1"
    assert "is on other, not on kapell/task_one" in (await desk.refusal(number=2)).message


async def test_the_work_is_kept_before_the_attempt_counts_as_over(desk: Desk) -> None:
    attempt = await desk.attempt()

    assert attempt.workspace is not None
    assert attempt.workspace.is_taken_in


async def test_a_report_that_is_refused_does_not_hide_how_the_work_has_ended(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuses(self: RecordedAttempt, workspaces: object) -> None:
        raise Exhausted("no room")

    monkeypatch.setattr(RecordedAttempt, "report_workspaces", refuses)

    attempt = await desk.attempt(writes(one="1"))

    assert "the server does not take what was done in the repositories: no room" in attempt.remarks


async def test_a_lock_that_a_killed_git_has_left_is_no_hindrance(desk: Desk) -> None:
    await desk.attempt(writes(one="1"))
    at = Git(desk.record().directory).line("rev-parse", "--absolute-git-dir")
    (Path(at) / "index.lock").touch()
    (desk.shop / ".git/refs/heads/kapell/task_one.lock").touch()

    await desk.attempt(writes(two="2"), number=2)

    assert show(desk.shop, "kapell/task_one:two") == "2"


async def test_the_set_up_is_run_again_only_when_its_inputs_have_changed(tmp_path: Path) -> None:
    repository(tmp_path / "shop", {"lock": "1", ".gitignore": "count\n"})
    setup = WorkspaceSetup(argv=["sh", "-c", 'echo "$KAPELL_BRANCH" >> count'], inputs=["lock"])
    desk = Desk(tmp_path, setup=setup)

    await desk.attempt()
    await desk.attempt(number=2)
    assert Path(desk.record().directory, "count").read_text() == "kapell/task_one\n"
    await desk.attempt(writes(lock="2"), number=3)
    await desk.attempt(number=4)

    assert Path(desk.record().directory, "count").read_text() == "kapell/task_one\n" * 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["sh", "-c", "echo why >&2; exit 3"], "the set-up failed: sh exited with code 3:\nwhy"),
        (["sh", "-c", "sleep 60 & sleep 60"], "the set-up failed: sh took longer than 0.5 s and was ended"),
        (["no-such-program"], "the set-up no-such-program could not be started"),
    ],
)
async def test_a_set_up_that_fails_fails_the_attempt(tmp_path: Path, argv: list[str], said: str) -> None:
    repository(tmp_path / "shop")
    desk = Desk(tmp_path, setup=WorkspaceSetup(argv=argv, timeout=Duration(nanos=500_000_000)))

    assert (await desk.refusal()).message.startswith(said)


async def test_a_worktree_whose_making_was_killed_is_made_again(desk: Desk) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from kapell._workspace import worktrees\n"
        "from kapell._workspace.registry import Registry\n"
        "worktrees._mark = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "root, shop = map(Path, sys.argv[1:])\n"
        "registry = Registry(root)\n"
        "wanted = worktrees.Wanted(name='shop', repository=str(shop), base_ref='', branch='kapell/task_one',\n"
        "    directory=registry.place('task_one', 'shop'))\n"
        "worktrees.made(registry, 'task_one', wanted)\n"
    )
    assert exit_code(script, desk.root, desk.shop) == -signal.SIGKILL
    assert desk.record().state == "creating"

    await desk.attempt(writes(one="1"))

    assert show(desk.shop, "kapell/task_one:one") == "1"


async def test_what_a_killed_making_has_left_can_be_removed(desk: Desk) -> None:
    await desk.attempt()
    record = desk.record()
    record.state = "creating"
    desk.registry.put(record)

    worktrees.remove(desk.registry, record)

    assert not Path(record.directory).exists()
    assert git(desk.shop, "branch", "--list", "kapell/*") == ""
    assert len(git(desk.shop, "worktree", "list").splitlines()) == 1
    assert desk.registry.find("task_one", "shop") is None


async def test_two_attempts_never_work_in_the_same_worktree(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kapell.host.task_worktrees._LOCK_SECONDS", 0.0)
    with desk.registry.held("task_one"):
        refused = await desk.refusal()

    assert "another process works in the worktrees of task_one" in refused.message
    assert refused.retryable is None
