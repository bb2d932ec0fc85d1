"""Repositories that cannot be worked in, and worktrees that are not the task's any more: refused, and left alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kapell.v1.workspace_pb2 import WorkspaceRepository

from tests.workspace.desk import Desk, writes
from tests.workspace.repositories import git, repository


async def test_what_cannot_be_worked_in_is_said(desk: Desk, tmp_path: Path) -> None:
    def asked(path: Path, **more: str) -> Desk:
        return Desk(tmp_path, repositories=[WorkspaceRepository(name="x", path=str(path), **more)])

    (tmp_path / "plain").mkdir()
    (tmp_path / "empty").mkdir()
    git(tmp_path / "empty", "init", "--quiet")
    outer = repository(tmp_path / "outer")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(desk.shop), "inner")
    git(outer, "commit", "--quiet", "-m", "Add it")

    said = {
        name: (await asked(path, **more).refusal())
        for name, path, more in (
            ("plain", tmp_path / "plain", {}),
            ("gone", tmp_path / "gone", {}),
            ("empty", tmp_path / "empty", {}),
            ("ref", desk.shop, {"base_ref": "nowhere"}),
            ("outer", outer, {}),
        )
    }

    assert "it is no git repository - correct the path" in said["plain"].message
    assert said["gone"].message.endswith("is no directory - correct the path")
    assert said["empty"].message.endswith("has no commit yet - make a first one")
    assert "does not know 'nowhere' - correct base_ref" in said["ref"].message
    assert "has the submodule 'inner'" in said["outer"].message
    assert not any(failure.retryable for failure in said.values())
    assert [desk.registry.of(owner) for owner in desk.registry.owners()] == []


async def test_a_branch_of_somebody_else_is_left_alone(desk: Desk) -> None:
    git(desk.shop, "branch", "kapell/task_one")

    refused = await desk.refusal()

    assert "the branch kapell/task_one is in" in refused.message
    assert git(desk.shop, "branch", "--list", "kapell/*").split() == ["kapell/task_one"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda desk, at: shutil.rmtree(at), "was moved or deleted; its branch kapell/task_one is still in"),
        (lambda desk, at: git(at, "switch", "--quiet", "-c", "mine"), "is on mine, not on kapell/task_one"),
        (lambda desk, at: git(at, "checkout", "--quiet", "--detach"), "is on no branch, not on kapell/task_one"),
        (lambda desk, at: git(at, "reset", "--quiet", "--hard", "main"), "was moved by hand, and has lost"),
        (lambda desk, at: (at / ".git").unlink(), "its mark is gone"),
        (lambda desk, at: (shutil.rmtree(at), repository(at)), "its mark is gone"),
        (lambda desk, at: (desk.shop.rename(desk.shop.with_name("old")), repository(desk.shop)), "moved or replaced"),
    ],
    ids=["deleted", "other branch", "detached", "moved branch", "no link", "foreign", "other repository"],
)
async def test_a_worktree_that_is_not_the_tasks_any_more_is_refused(
    desk: Desk, damage: Callable[[Desk, Path], object], said: str
) -> None:
    await desk.attempt(writes(one="1"))
    at = Path(desk.record().directory)

    damage(desk, at)
    refused = await desk.refusal(number=2)

    assert said in refused.message
    assert refused.retryable is False


async def test_a_copied_data_directory_does_not_take_over_the_worktrees(desk: Desk, tmp_path: Path) -> None:
    await desk.attempt(writes(one="1"))
    shutil.copytree(tmp_path / "data", tmp_path / "copy" / "data", symlinks=True)
    copied = Desk(tmp_path)
    copied.root = tmp_path / "copy" / "data" / "workspaces"

    assert "belongs to another data directory" in (await copied.refusal(number=2)).message
