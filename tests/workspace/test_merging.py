"""The merge gate with real repositories: what comes in, what is refused, and what a kill leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from kapell._workspace import merging
from kapell._workspace.git import GitFailed
from kapell._workspace.registry import Damaged
from kapell._workspace.worktrees import Refused
from kapell.v1.workspace_pb2 import (
    MERGE_OUTCOME_CHECK_FAILED,
    MERGE_OUTCOME_CONFLICT,
    MERGE_OUTCOME_MERGED,
    WorkspaceMerge,
)

from tests.workspace.desk import Desk, writes
from tests.workspace.repositories import commit, git, repository, show


async def yes() -> None:
    """Nothing stands against the merge."""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    repository(tmp_path / "shop")
    git(tmp_path / "shop", "switch", "--quiet", "--detach")
    desk = Desk(tmp_path)
    desk.spec.repositories[0].base_ref = "main"
    return desk


async def merged(desk: Desk, task_id: str = "task_one", **more: object) -> WorkspaceMerge:
    plan = merging.planned(desk.record(task_id), **more)  # type: ignore[arg-type]
    return await merging.merge(desk.registry, plan, yes)


def on_main(desk: Desk, files: dict[str, str]) -> str:
    """Somebody else's commit on the base."""
    git(desk.shop, "switch", "--quiet", "main")
    made = commit(desk.shop, files, "By somebody else")
    git(desk.shop, "switch", "--quiet", "--detach")
    return made


async def test_a_branch_comes_into_its_base(desk: Desk) -> None:
    await desk.attempt(writes(**{"src/a.py": "a = 2\n"}))
    other = on_main(desk, {"src/b.py": "b = 2\n"})

    ended = await merged(desk)

    assert (ended.outcome, ended.base_ref) == (MERGE_OUTCOME_MERGED, "refs/heads/main")
    assert ended.commit == git(desk.shop, "rev-parse", "main")
    assert git(desk.shop, "rev-parse", "main^1") == other
    assert (show(desk.shop, "main:src/a.py"), show(desk.shop, "main:src/b.py")) == ("a = 2", "b = 2")
    assert "Kapell-Task: task_one" in git(desk.shop, "log", "-1", "--format=%b", "main")


async def test_a_rebase_keeps_the_commits_and_their_author(desk: Desk) -> None:
    await desk.attempt(lambda place: [commit(place.directory, {name: name}, name) for name in ("one", "two")])
    on_main(desk, {"other": "x"})

    ended = await merged(desk, rebase=True)

    assert ended.outcome == MERGE_OUTCOME_MERGED
    assert git(desk.shop, "log", "--format=%s|%an", "main").split("\n") == [
        "two|Ann",
        "one|Ann",
        "By somebody else|Ann",
        "First|Ann",
    ]


@pytest.mark.parametrize("rebase", [False, True])
async def test_a_conflict_is_named_and_changes_nothing(desk: Desk, rebase: bool) -> None:
    await desk.attempt(writes(**{"src/a.py": "a = 2\n", "ü b": "1"}))
    before = on_main(desk, {"src/a.py": "a = 3\n", "ü b": "2"})
    worktree = git(Path(desk.record().directory), "rev-parse", "HEAD")

    ended = await merged(desk, rebase=rebase)

    assert (ended.outcome, sorted(ended.paths)) == (MERGE_OUTCOME_CONFLICT, ["src/a.py", "ü b"])
    assert git(desk.shop, "rev-parse", "main") == before
    assert git(Path(desk.record().directory), "rev-parse", "HEAD") == worktree
    assert len(git(desk.shop, "worktree", "list").splitlines()) == 2


async def test_the_check_sees_the_whole_and_decides(desk: Desk) -> None:
    await desk.attempt(writes(mine="1"))
    before = on_main(desk, {"theirs": "2"})

    bad = await merged(desk, check=["sh", "-c", "ls; test -e mine -a -e theirs || exit 9; echo no >&2; exit 4"])
    good = await merged(desk, check=["sh", "-c", "test -e mine -a -e theirs"])

    assert bad.outcome == MERGE_OUTCOME_CHECK_FAILED
    assert bad.message.startswith("sh exited with code 4:")
    assert bad.message.endswith("no")
    assert (good.outcome, git(desk.shop, "rev-parse", "main^1")) == (MERGE_OUTCOME_MERGED, before)


async def test_a_check_that_takes_too_long_is_ended(desk: Desk) -> None:
    await desk.attempt(writes(mine="1"))

    ended = await merged(desk, check=["sleep", "60"], check_seconds=0.3)

    assert (ended.outcome, ended.message) == (MERGE_OUTCOME_CHECK_FAILED, "sleep took longer than 0.3 s and was ended")


async def test_a_clean_checkout_of_the_base_is_updated(desk: Desk) -> None:
    git(desk.shop, "switch", "--quiet", "main")
    (desk.shop / "untracked").write_text("mine")
    await desk.attempt(writes(new="1"))

    await merged(desk)

    assert (desk.shop / "new").read_text() == "1"
    assert git(desk.shop, "status", "--porcelain") == "?? untracked"


@pytest.mark.parametrize("stage", [False, True])
async def test_a_checkout_with_changes_is_left_alone(desk: Desk, stage: bool) -> None:
    git(desk.shop, "switch", "--quiet", "main")
    await desk.attempt(writes(new="1"))
    before = git(desk.shop, "rev-parse", "main")
    (desk.shop / "README.md").write_text("mine")
    if stage:
        git(desk.shop, "add", "README.md")

    with pytest.raises(Refused, match="with changes that are in no commit - commit or stash them there"):
        await merged(desk)

    assert git(desk.shop, "rev-parse", "main") == before
    assert (desk.shop / "README.md").read_text() == "mine"


async def test_an_untracked_file_in_the_way_is_not_overwritten(desk: Desk) -> None:
    git(desk.shop, "switch", "--quiet", "main")
    await desk.attempt(writes(new="1"))
    before = git(desk.shop, "rev-parse", "main")
    (desk.shop / "new").write_text("mine")

    with pytest.raises(GitFailed, match="would be overwritten"):
        await merged(desk)

    assert (git(desk.shop, "rev-parse", "main"), (desk.shop / "new").read_text()) == (before, "mine")


async def test_a_base_that_moves_meanwhile_is_merged_with_anew(desk: Desk) -> None:
    await desk.attempt(writes(mine="1"))
    asked: list[str] = []

    async def moves() -> None:
        if not asked:
            asked.append(on_main(desk, {"theirs": "2"}))

    ended = await merging.merge(desk.registry, merging.planned(desk.record()), moves)

    assert git(desk.shop, "rev-parse", "main^1") == asked[0]
    assert show(desk.shop, f"{ended.commit}:theirs") == "2"


async def test_what_is_in_the_base_already_is_merged(desk: Desk) -> None:
    await desk.attempt(writes(mine="1"))
    first = await merged(desk)
    on_main(desk, {"theirs": "2"})

    again = await merged(desk)

    assert again.outcome == MERGE_OUTCOME_MERGED
    assert git(desk.shop, "rev-parse", "main^") == first.commit


async def test_a_branch_that_was_moved_is_not_merged(desk: Desk) -> None:
    await desk.attempt(writes(mine="1"))
    commit(Path(desk.record().directory), {"later": "2"})

    with pytest.raises(Refused, match=r"is not at .* any more, where its attempt has left it"):
        await merged(desk)


async def test_who_may_not_go_on_changes_nothing(desk: Desk) -> None:
    await desk.attempt(writes(mine="1"))
    before = git(desk.shop, "rev-parse", "main")

    async def no() -> None:
        raise Refused("the lock was lost - merge again")

    with pytest.raises(Refused, match="the lock was lost"):
        await merging.merge(desk.registry, merging.planned(desk.record()), no)

    assert git(desk.shop, "rev-parse", "main") == before
    assert not desk.registry.scratch("task_one", "shop").exists()


async def test_a_base_must_be_a_branch(desk: Desk) -> None:
    desk.spec.repositories[0].base_ref = git(desk.shop, "rev-parse", "main")
    await desk.attempt(writes(mine="1"))
    git(desk.shop, "branch", "release", "main")

    with pytest.raises(Refused, match="say which: --into BRANCH"):
        await merged(desk)
    with pytest.raises(Refused, match="has no branch nowhere"):
        await merged(desk, into="nowhere")
    ended = await merged(desk, into="release")

    assert ended.base_ref == "refs/heads/release"
    assert show(desk.shop, "release:mine") == "1"


async def test_nothing_is_merged_while_somebody_works(desk: Desk) -> None:
    await desk.attempt(writes(mine="1"))

    with desk.registry.held("task_one"), pytest.raises(Refused, match="an attempt, or another merge, is at work"):
        await merged(desk)


async def test_the_files_that_it_changes_are_locked_and_the_base(desk: Desk) -> None:
    await desk.attempt(writes(**{"src/a.py": "a = 2\n", "x\\y": "odd", "docs/new.md": "n"}))
    on_main(desk, {"theirs": "2"})

    locked = merging.lock_paths(merging.planned(desk.record()))

    # A name that no lock can have is protected by the directory that it is in.
    assert locked == ["shop"]
    Path(desk.record().directory, "x\\y").unlink()
    await desk.attempt(number=2)
    assert merging.lock_paths(merging.planned(desk.record())) == [
        "shop/.git/refs/heads/main",
        "shop/docs/new.md",
        "shop/src/a.py",
    ]


def test_a_record_that_cannot_be_read_is_named(desk: Desk) -> None:
    directory = desk.root / "registry" / "task_one"
    directory.mkdir(parents=True)
    (directory / "shop.json").write_text("{")

    with pytest.raises(Damaged, match=r"shop\.json cannot be read"):
        desk.registry.find("task_one", "shop")


async def test_a_worktree_that_is_released_while_the_merge_waits_is_not_merged(desk: Desk) -> None:
    await desk.attempt(writes(mine="1"))
    plan = merging.planned(desk.record())
    desk.registry.drop(desk.record())

    with pytest.raises(Refused, match="was released or has changed meanwhile"):
        await merging.merge(desk.registry, plan, yes)


async def test_settings_of_the_user_do_not_change_what_a_rebase_does(desk: Desk) -> None:
    await desk.attempt(lambda place: [commit(place.directory, {name: name}, f"fixup! {name}") for name in ("x", "y")])
    for name in ("rebase.updateRefs", "rebase.autoSquash", "commit.gpgSign"):
        git(desk.shop, "config", name, "true")
    await desk.attempt(writes(z="z"), number=2)
    git(desk.shop, "config", "commit.gpgSign", "false")
    on_main(desk, {"other": "x"})
    git(desk.shop, "branch", "theirs", "kapell/task_one~2")
    before = git(desk.shop, "rev-parse", "theirs")
    git(desk.shop, "config", "commit.gpgSign", "true")

    ended = await merged(desk, rebase=True)

    assert ended.outcome == MERGE_OUTCOME_MERGED
    assert git(desk.shop, "rev-parse", "theirs") == before


async def test_a_lock_of_a_killed_git_on_the_base_is_named(desk: Desk) -> None:
    await desk.attempt(writes(mine="1"))
    lock = desk.shop / ".git/refs/heads/main.lock"
    lock.touch()

    with pytest.raises(GitFailed, match=r"another git is at work .*main\.lock"):
        await merged(desk)
    lock.unlink()

    assert (await merged(desk)).outcome == MERGE_OUTCOME_MERGED
