"""Agents that leave their worktree as something else, and repositories whose configuration runs programs."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from kapell._worker.outcome import TaskFailed
from kapell._workspace import commands, merging
from kapell.runtimes import _processes
from kapell.runtimes.contract import Workspace
from kapell.v1.workspace_pb2 import MERGE_OUTCOME_MERGED, WorkspaceMerge

from tests.workspace.desk import Desk, writes
from tests.workspace.repositories import git, repository, show, write


async def _nothing() -> None:
    pass


async def merged(desk: Desk) -> WorkspaceMerge:
    return await merging.merge(desk.registry, merging.planned(desk.record()), _nothing)


def _state_of(place: Path) -> tuple[str, ...]:
    return git(place, "for-each-ref"), git(place, "symbolic-ref", "HEAD"), git(place, "status", "--porcelain")


@pytest.mark.parametrize(
    "leave",
    [
        lambda at, home: (at / ".git").unlink(),
        lambda at, home: (shutil.rmtree(at), at.mkdir()),
        lambda at, home: (shutil.rmtree(at), at.symlink_to(home)),
        lambda at, home: (at / ".git").write_text(f"gitdir: {home / '.git'}\n"),
    ],
    ids=["no link", "made anew", "a link to elsewhere", "another repository"],
)
async def test_a_repository_around_the_worktree_is_not_taken_for_it(
    desk: Desk, tmp_path: Path, leave: Callable[[Path, Path], object]
) -> None:
    repository(tmp_path / "home")
    write(tmp_path / "home", {"private.txt": "mine", ".gitignore": "data\n"})
    desk.root = tmp_path / "home" / "data" / "workspaces"
    desk.registry = type(desk.registry)(desk.root)
    before = _state_of(tmp_path / "home")

    def work(place: Workspace) -> None:
        writes(one="1")(place)
        leave(place.directory, tmp_path / "home")

    with pytest.raises(TaskFailed) as caught:
        await desk.attempt(work)

    assert caught.value.reason == "WORKSPACE_FAILED"
    assert "the work could not be committed" in str(caught.value)
    assert _state_of(tmp_path / "home") == before


async def test_a_worktree_that_is_gone_does_not_hide_why_the_attempt_has_failed(desk: Desk) -> None:
    def work(place: Workspace) -> None:
        shutil.rmtree(place.directory)
        raise TaskFailed("EXIT_CODE", "it broke")

    with pytest.raises(TaskFailed, match="it broke"):
        await desk.attempt(work)


async def test_an_ignored_file_in_the_way_of_a_merge_is_not_overwritten(desk: Desk) -> None:
    await desk.attempt(writes(**{"keys.env": "from the branch"}))
    (desk.shop / ".git" / "info" / "exclude").write_text("*.env\n")
    write(desk.shop, {"keys.env": "mine"})
    before = git(desk.shop, "rev-parse", "main")

    with pytest.raises(merging.GitFailed, match=r"keys\.env"):
        await merged(desk)

    assert (desk.shop / "keys.env").read_text() == "mine"
    assert git(desk.shop, "rev-parse", "main") == before


async def test_what_is_merged_stays_so_whatever_its_checkout_is_like(desk: Desk) -> None:
    await desk.attempt(writes(one="1"))
    assert (await merged(desk)).outcome == MERGE_OUTCOME_MERGED
    write(desk.shop, {"README.md": "being edited"})

    assert (await merged(desk)).outcome == MERGE_OUTCOME_MERGED


async def test_options_of_the_base_do_not_change_how_it_moves(desk: Desk) -> None:
    git(desk.shop, "config", "branch.main.mergeOptions", "--squash --no-ff --no-commit")
    await desk.attempt(writes(one="1"))

    assert (await merged(desk)).outcome == MERGE_OUTCOME_MERGED
    assert git(desk.shop, "status", "--porcelain") == ""


async def test_a_cancel_that_comes_when_the_base_has_moved_does_not_hide_that(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.attempt(writes(one="1"))
    moved, go_on, advance = asyncio.Event(), threading.Event(), merging._advance
    loop = asyncio.get_running_loop()

    def advances(merge: merging.Merge, old: str, new: str) -> None:
        advance(merge, old, new)
        loop.call_soon_threadsafe(moved.set)
        go_on.wait(30)

    monkeypatch.setattr(merging, "_advance", advances)
    merge = asyncio.create_task(merged(desk))
    await moved.wait()
    merge.cancel()
    loop.call_soon(go_on.set)

    ended = await merge

    assert (ended.outcome, ended.commit) == (MERGE_OUTCOME_MERGED, git(desk.shop, "rev-parse", "main"))
    assert (desk.record().merged, desk.record().merging) == (ended.commit, "")


async def test_no_setting_of_the_repository_runs_a_program(desk: Desk, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    trap = tmp_path / "trap"
    trap.write_text(f'#!/bin/sh\necho "$0 $*" >>{ran}\nexit 1\n')
    trap.chmod(0o755)
    settings = {
        "core.fsmonitor": trap,
        "core.pager": trap,
        "core.editor": trap,
        "sequence.editor": trap,
        "commit.gpgSign": "true",
        "gpg.program": trap,
        "log.showSignature": "true",
        "format.pretty": "%G?",
        "diff.external": trap,
        "core.hooksPath": tmp_path / "hooks",
    }
    (tmp_path / "hooks").mkdir()
    for hook in ("post-checkout", "pre-commit", "post-commit", "pre-rebase", "reference-transaction", "post-merge"):
        shutil.copy(trap, tmp_path / "hooks" / hook)

    def work(place: Workspace) -> None:
        writes(one="1")(place)
        tree, parent = git(place.directory, "rev-parse", "HEAD^{tree}", "HEAD").split()
        who = "Ann <ann@example.com> 1700000000 +0000"
        signature = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----"
        (tmp_path / "signed").write_text(
            f"tree {tree}\nparent {parent}\nauthor {who}\ncommitter {who}\n{signature}\n\nSigned\n"
        )
        commit = git(place.directory, "hash-object", "-t", "commit", "-w", str(tmp_path / "signed"))
        git(place.directory, "reset", "--quiet", "--soft", commit)
        for name, value in settings.items():
            git(desk.shop, "config", name, str(value))

    await desk.attempt(work)
    attempt = await desk.attempt(writes(two="2"), number=2)
    assert (await merged(desk)).outcome == MERGE_OUTCOME_MERGED

    assert not ran.exists(), ran.read_text()
    assert set(attempt.artifacts) >= {"diff.patch", "commits.txt"}


async def test_a_diff_can_be_applied_whatever_the_user_prefers(desk: Desk) -> None:
    git(desk.shop, "config", "diff.noprefix", "true")

    attempt = await desk.attempt(writes(one="1"))

    assert "diff --git a/one b/one" in attempt.artifacts["diff.patch"].decode()


@pytest.mark.parametrize("put", [os.mkfifo, lambda file: file.symlink_to("/dev/zero"), os.mkdir])
async def test_an_input_of_the_set_up_that_is_no_file_is_not_read(
    tmp_path: Path, put: Callable[[Path], object]
) -> None:
    none = commands.key(["make"], ["lock"], tmp_path)

    put(tmp_path / "lock")

    async with asyncio.timeout(30):
        assert await asyncio.to_thread(commands.key, ["make"], ["lock"], tmp_path) == none


async def test_what_a_set_up_has_left_running_leaves_no_zombie(tmp_path: Path) -> None:
    assert _processes.become_subreaper()

    ended = await commands.run(["sh", "-c", "sleep 300 & echo $!"], tmp_path, dict(os.environ), 30)

    assert _processes.look_at(int(ended.tail)) is None


async def test_what_was_merged_before_its_host_died_is_not_in_the_way_of_the_next_attempt(tmp_path: Path) -> None:
    repository(tmp_path / "shop")
    desk = Desk(tmp_path, restart_on_retry=True)
    await desk.attempt(writes(one="1"))
    first = await merged(desk)

    await desk.attempt(writes(one="2"), number=2)

    assert desk.record().base == first.commit
    assert (await merged(desk)).outcome == MERGE_OUTCOME_MERGED
    assert show(desk.shop, "main:one") == "2"
