"""The merge gate: a task's branch comes into its base whole, or not at all.

    locks      the paths that the branch touches, and the base itself: two merges into one base are one after the other
    scratch    a worktree of its own, where the branch is merged or rebased onto the base as it is now
    check      the profile's program, in the scratch worktree
    advance    the base moves from the commit that was merged with to the new one, or not at all (compare and swap)

Killed at any moment, the base is what it was or what it was to be. Then `Record.merging` names the new commit, by which
the next try sees whether it had come that far. A checkout of the base is updated by git itself, which writes its files
first and moves the base last; it must be clean, and nobody's changes are touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from kapell._guard.workspace import name_of_common
from kapell._locks import paths
from kapell._workspace import commands, worktrees
from kapell._workspace.git import Git, GitFailed, identity, in_thread
from kapell._workspace.registry import Record, Registry
from kapell._workspace.worktrees import Refused
from kapell.runtimes._setup import inherited
from kapell.v1.workspace_pb2 import (
    MERGE_OUTCOME_CHECK_FAILED,
    MERGE_OUTCOME_CONFLICT,
    MERGE_OUTCOME_MERGED,
    WorkspaceMerge,
)

_T = TypeVar("_T")

CHECK_SECONDS = 600.0
_MOST_LOCKS = 60
_MOST_PATHS = 20
_TRIES = 5
_WHO = identity("Kapell", "kapell")


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """What is to come into what, and how."""

    record: Record
    into: str
    """The base, as refs/heads/…"""
    rebase: bool
    check: list[str]
    check_seconds: float


class _BaseMoved(Exception):
    """The base is not what was merged with any more."""


def planned(
    record: Record,
    *,
    into: str = "",
    rebase: bool | None = None,
    check: list[str] | None = None,
    check_seconds: float | None = None,
) -> Merge:
    """A merge as the profile says, where nothing else is said. Raises Refused and GitFailed."""
    git = Git(record.common)
    name = f"refs/heads/{into}" if into else record.base_ref
    if not name:
        raise Refused(
            f"{record.name} of {record.task_id} began with a commit that no branch names - say which: --into BRANCH"
        )
    if not git.holds("check-ref-format", name) or git.commit(name) is None:
        raise Refused(
            f"{record.repository} has no branch {name.removeprefix('refs/heads/')} - say which: --into BRANCH"
        )
    return Merge(
        record=record,
        into=name,
        rebase=record.rebase if rebase is None else rebase,
        check=record.check if check is None else check,
        check_seconds=check_seconds or record.check_seconds or CHECK_SECONDS,
    )


def lock_paths(merge: Merge) -> list[str]:
    """What is to be locked: the files that the branch changes, and the base. Raises GitFailed."""
    record = merge.record
    git = Git(record.common)
    prefix = paths.canonical(name_of_common(Path(record.common)))
    base = paths.nearest(prefix, [".git", *merge.into.split("/")])
    changed = git.names("diff", "--name-only", "--no-renames", "-z", f"{merge.into}...{record.head}")
    wanted = sorted({base, *(paths.nearest(prefix, name.split("/")) for name in changed)})
    # Sorted, what covers another path comes before it.
    found: list[str] = []
    for path in wanted:
        if not any(paths.covers(above, path) for above in found):
            found.append(path)
    return found if len(found) <= _MOST_LOCKS else [prefix]


async def merge(registry: Registry, merge: Merge, confirm: Callable[[], Awaitable[None]]) -> WorkspaceMerge:
    """Merges; how it has ended. To be called with the locks held; `confirm` is asked last, and raises to stop it.

    Raises Refused where nothing could be tried, and GitFailed. Whatever is raised, the base is as it was.
    """
    with registry.held(merge.record.task_id) as is_held:
        if not is_held:
            raise Refused(
                f"an attempt, or another merge, is at work at {merge.record.task_id} - wait until it has ended"
            )
        now = registry.find(merge.record.task_id, merge.record.name)
        if now is None or now.head != merge.record.head:
            raise Refused(f"the worktree of {merge.record.task_id} was released or has changed meanwhile - look again")
        return await merge_held(registry, replace(merge, record=now), confirm)


async def merge_held(registry: Registry, merge: Merge, confirm: Callable[[], Awaitable[None]]) -> WorkspaceMerge:
    """As `merge`, by who holds the lock of the worktrees already."""
    for _ in range(_TRIES):
        with contextlib.suppress(_BaseMoved):
            return await _try(registry, merge, confirm)
    raise Refused(f"{merge.into} is moved all the time - merge once it stands still")


async def _try(registry: Registry, merge: Merge, confirm: Callable[[], Awaitable[None]]) -> WorkspaceMerge:
    record = merge.record
    old = await in_thread(_ready, merge)
    if done := await in_thread(_is_in, merge, old):
        await confirm()
        return _ended(registry, merge, done)
    await in_thread(_checkout, Git(record.common), merge)
    scratch = registry.scratch(record.task_id, record.name)
    try:
        new, conflicts = await in_thread(_combined, merge, scratch, old)
        if conflicts:
            return WorkspaceMerge(
                outcome=MERGE_OUTCOME_CONFLICT,
                base_ref=merge.into,
                paths=[_text(path) for path in conflicts[:_MOST_PATHS]],
                message=f"{len(conflicts)} files were changed in {_short(merge.into)}, too",
            )
        if failed := await _checked(merge, scratch):
            return failed
        await confirm()
        return await _unstoppable(_land, registry, merge, old, new)
    finally:
        await in_thread(_remove_scratch, merge, scratch)


def _ready(merge: Merge) -> str:
    """The commit of the base. Raises Refused where the branch is not what is to be merged."""
    git = Git(merge.record.common)
    if git.commit(merge.record.ref) != merge.record.head:
        raise Refused(
            f"{merge.record.branch} is not at {merge.record.head[:12]} any more, where its attempt has left it - "
            f"put it back, or merge by hand with: git merge {merge.record.branch}"
        )
    old = git.commit(merge.into)
    if old is None:
        raise Refused(f"{_short(merge.into)} is not there any more - say which branch is meant: --into BRANCH")
    return old


def _is_in(merge: Merge, old: str) -> str:
    """The commit of the base that has the branch already; empty where it has not."""
    git, record = Git(merge.record.common), merge.record
    if worktrees.is_ancestor(git, record.head, old):
        return old
    is_of_this = record.merging and record.merging_head == record.head
    if is_of_this and git.commit(record.merging) and worktrees.is_ancestor(git, record.merging, old):
        return record.merging
    return ""


def _combined(merge: Merge, scratch: Path, old: str) -> tuple[str, list[str]]:
    """The commit of base and branch together, or the files that are in conflict."""
    record, shared = merge.record, Git(merge.record.common)
    _remove_scratch(merge, scratch)
    scratch.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    shared("worktree", "add", "--quiet", "--detach", "--", str(scratch), record.head if merge.rebase else old)
    git = Git(scratch, _WHO)
    text = f"Merge {record.branch}\n\nKapell-Task: {record.task_id}\n"
    command = (
        ("rebase", "--quiet", old)
        if merge.rebase
        else ("merge", "--quiet", "--no-ff", "--no-verify", "-m", text, record.head)
    )
    try:
        git(*command)
    except GitFailed:
        if conflicts := git.names("diff", "--name-only", "--diff-filter=U", "-z"):
            return "", conflicts
        raise
    return git.line("rev-parse", "HEAD"), []


async def _checked(merge: Merge, scratch: Path) -> WorkspaceMerge | None:
    """How the check has failed; None where it has not, or where there is none."""
    if not merge.check:
        return None
    environment = {**inherited(os.environ), "KAPELL_TASK_ID": merge.record.task_id, "KAPELL_WORKSPACE": str(scratch)}
    try:
        ended = await commands.run(merge.check, scratch, environment, merge.check_seconds)
    except OSError as error:
        raise Refused(
            f"the check {merge.check[0]} could not be started: {error} - install it, or correct it"
        ) from error
    if ended.is_good:
        return None
    text = _text(ended.why(merge.check[0], merge.check_seconds))
    return WorkspaceMerge(outcome=MERGE_OUTCOME_CHECK_FAILED, base_ref=merge.into, message=text[:2000])


def _land(registry: Registry, merge: Merge, old: str, new: str) -> WorkspaceMerge:
    """Moves the base, and keeps that it has moved. Raises _BaseMoved."""
    record = merge.record
    record.merging, record.merging_head = new, record.head
    registry.put(record)
    _advance(merge, old, new)
    return _ended(registry, merge, new)


async def _unstoppable(work: Callable[..., _T], *args: Any) -> _T:
    """As `in_thread`, but a cancel comes too late: it must not hide that the base has moved."""
    working = asyncio.create_task(asyncio.to_thread(work, *args), name="git")
    while not working.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((working,))
    return working.result()


def _advance(merge: Merge, old: str, new: str) -> None:
    """Moves the base. Raises _BaseMoved where it is not `old` any more."""
    shared = Git(merge.record.common)
    checkout = _checkout(shared, merge)
    try:
        if checkout is None:
            shared("update-ref", "-m", f"kapell: merge {merge.record.task_id}", merge.into, new, old)
        else:
            # git would overwrite what is ignored there; and branch.NAME.mergeOptions might say --squash.
            safe = ("--no-overwrite-ignore", "--no-squash")
            Git(checkout)("merge", "--quiet", "--ff-only", "--no-verify", *safe, new)
    except GitFailed:
        if shared.commit(merge.into) != old:
            raise _BaseMoved from None
        raise
    if shared.commit(merge.into) != new:
        raise Refused(f"{checkout} was switched to another branch meanwhile, which has the merge now - look after it")


def _checkout(git: Git, merge: Merge) -> Path | None:
    """Where the base is checked out; None where it is not. Raises Refused where it cannot be updated there."""
    told = git("for-each-ref", "--format=%(worktreepath)", merge.into).removesuffix("\n")
    if not told:
        return None
    where, name = Path(told), _short(merge.into)
    if not where.is_dir():
        raise Refused(f"{name} is checked out in {where}, which is gone - run: git -C {git.directory} worktree prune")
    there = Git(where)
    changed = there.names("status", "--porcelain=v1", "-z", "--untracked-files=no", "--no-renames")
    changed += worktrees.operations(there)
    if changed:
        interrupted = (
            f"; an earlier merge may have been interrupted there: git -C {where} reset --hard takes it back"
            if merge.record.merging
            else ""
        )
        raise Refused(
            f"{name} is checked out in {where}, with changes that are in no commit - commit or stash them there, "
            f"or switch it to another branch{interrupted}"
        )
    return where


def _remove_scratch(merge: Merge, scratch: Path) -> None:
    worktrees.discard(Git(merge.record.common), scratch)
    with contextlib.suppress(OSError):
        scratch.parent.rmdir()


def _ended(registry: Registry, merge: Merge, commit: str) -> WorkspaceMerge:
    record = merge.record
    record.merged, record.merged_head, record.merging = commit, record.head, ""
    registry.put(record)
    return WorkspaceMerge(outcome=MERGE_OUTCOME_MERGED, base_ref=merge.into, commit=commit)


def _short(ref: str) -> str:
    return ref.removeprefix("refs/heads/")


def _text(name: str) -> str:
    """A name that may be no UTF-8, or text with NUL, as it can be told."""
    return os.fsencode(name).decode(errors="replace").replace("\0", "")
