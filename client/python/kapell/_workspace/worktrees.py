"""One worktree from its making to its end. Blocks; called with the lock of its owner held.

A worktree is ours if four things say so: its record, the mark in its git directory, the link between the
two directories, and its branch. Where one of them differs nothing is touched, and the refusal names it.
What an attempt has left uncommitted is committed, or stays where it is; it is never thrown away.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from kapell._workspace.git import Git, GitFailed
from kapell._workspace.registry import Record, Registry

_MARK = "kapell-workspace"
_GITLINK = "160000"
_MOST_NAMED = 3


class Refused(Exception):
    """It cannot be done with this worktree; the text says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A worktree as it is asked for."""

    name: str
    repository: str
    base_ref: str
    """Empty: what HEAD of the repository is."""
    branch: str
    directory: Path


def made(registry: Registry, task_id: str, wanted: Wanted) -> Record:
    """Makes a worktree on a new branch. Raises GitFailed and Refused."""
    git = Git(wanted.repository)
    common = Path(git.line("rev-parse", "--path-format=absolute", "--git-common-dir")).resolve()
    base_ref, base = _base(git, wanted)
    _check_submodules(git, wanted, base)
    if not git.holds("check-ref-format", f"refs/heads/{wanted.branch}"):
        raise Refused(f"{wanted.branch!r} is no name of a branch - correct the profile's branch")
    if git.commit(f"refs/heads/{wanted.branch}"):
        raise Refused(
            f"the branch {wanted.branch} is in {wanted.repository} already, and is not of this task - "
            f"rename or delete it: git -C {wanted.repository} branch -m {wanted.branch} NAME"
        )
    if wanted.directory.exists():
        raise Refused(f"{wanted.directory} is there already, and is no worktree of this task - move it away")
    record = Record(
        mark=uuid.uuid4().hex,
        task_id=task_id,
        name=wanted.name,
        state="creating",
        repository=wanted.repository,
        common=str(common),
        common_id=identity_of(common),
        directory=str(wanted.directory),
        branch=wanted.branch,
        base_ref=base_ref,
        base=base,
        head=base,
    )
    registry.put(record)
    wanted.directory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        git("worktree", "add", "--quiet", "--no-track", "-b", record.branch, "--", record.directory, base)
        (_git_directory(record) / _MARK).write_text(_mark(registry, record), encoding="utf-8")
    except BaseException:
        # What cannot be taken back now is by the next attempt: the record says that it was being made.
        with contextlib.suppress(GitFailed, OSError):
            unmake(registry, record)
        raise
    record.state = "idle"
    registry.put(record)
    return record


def unmake(registry: Registry, record: Record) -> None:
    """Takes back what the making of a worktree has begun: nothing of anybody's can be in it yet."""
    git = Git(record.repository)
    discard(git, Path(record.directory))
    if git.commit(record.ref) == record.base:
        git("update-ref", "-d", record.ref, record.base)
    registry.drop(record)


def discard(git: Git, directory: Path) -> None:
    """Removes a worktree in which nobody has worked, whatever is left of it. Those of others are not looked at."""
    shutil.rmtree(directory, ignore_errors=True)
    # Twice: one whose making was killed is locked. git refuses where it knows of none.
    with contextlib.suppress(GitFailed):
        git("worktree", "remove", "--force", "--force", "--", str(directory))


def verify(registry: Registry, record: Record, *, brings_home: bool = False) -> None:
    """Makes sure that the worktree is what its record says. Raises Refused with what differs, and GitFailed.

    With `brings_home` an agent that was killed on a branch of its own is followed, as it is where an attempt ends.
    """
    prove(registry, record)
    directory, git = Path(record.directory), Git(record.directory)
    if brings_home and not operations(git):
        clear_locks(record)
        bring_home(git, record)
    at = current(git)
    if at != record.ref:
        shown = at.removeprefix("refs/heads/") or "no branch"
        raise Refused(
            f"{directory} is on {shown}, not on {record.branch} - "
            f"put it back with: git -C {directory} switch {record.branch}"
        )
    head = git.commit("HEAD")
    # While an attempt was at work, its agent may have rewritten its own commits.
    if record.state != "working" and head != record.head and not is_ancestor(git, record.head, head):
        raise Refused(
            f"the branch {record.branch} was moved by hand, and has lost {record.head[:12]} - "
            f"put it back with: git -C {directory} merge {record.head[:12]}, {_give_up(record)}"
        )


def prove(registry: Registry, record: Record) -> None:
    """Makes sure that the directory is the worktree of this record, whatever has become of its branch.

    git itself would go up to a repository around it where the link is gone. Raises Refused.
    """
    directory, common = Path(record.directory), Path(record.common)
    give_up = _give_up(record)
    if not common.is_dir() or identity_of(common) != record.common_id:
        raise Refused(f"the repository {record.common} was moved or replaced - put it back, {give_up}")
    if not directory.is_dir():
        raise Refused(
            f"the worktree {directory} was moved or deleted; its branch {record.branch} is still in "
            f"{record.repository} - move it back, {give_up}"
        )
    try:
        git_directory = _git_directory(record)
        linked = (git_directory / "gitdir").read_text(encoding="utf-8", errors="surrogateescape").strip()
        mark = (git_directory / _MARK).read_text(encoding="utf-8")
    except (OSError, GitFailed):
        raise Refused(f"{directory} is no worktree of Kapell's any more: its mark is gone - {give_up}") from None
    if git_directory.parent != common / "worktrees" or Path(linked).parent.resolve() != directory.resolve():
        raise Refused(f"{directory} is a worktree of {git_directory}, not of {common} - move it away, {give_up}")
    if mark != _mark(registry, record):
        raise Refused(f"{directory} belongs to another data directory of Kapell's: {mark.split()[-1]} - {give_up}")


def bring_home(git: Git, record: Record) -> list[str]:
    """Moves the task's branch to where the agent has gone on from it, on a branch of its own or on none."""
    at, head, home = current(git), git.commit("HEAD"), git.commit(record.ref)
    if at == record.ref or head is None or (home is not None and not is_ancestor(git, home, head)):
        return []
    git("switch", "--quiet", "--no-track", "-C", record.branch)
    where = at.removeprefix("refs/heads/") or "no branch"
    return [f"the agent has worked on {where}; {record.branch} has its commits now, too"]


def remove(registry: Registry, record: Record, *, force: bool = False) -> None:
    """Removes a worktree that holds nothing of its own; its branch goes only where the base has all of it.

    With `force` only the record goes where the rest cannot be verified. Raises Refused and GitFailed.
    """
    if record.state == "creating":
        unmake(registry, record)
        return
    try:
        verify(registry, record)
    except (Refused, GitFailed):
        if not force:
            raise
        registry.drop(record)
        return
    git = Git(record.directory)
    if found := unkept(git):
        shown = ", ".join(map(repr, found[:_MOST_NAMED])) + (" …" if len(found) > _MOST_NAMED else "")
        raise Refused(
            f"{record.directory} has changes that are in no commit: {shown} - commit them there, or throw them away "
            f"by hand with: git -C {record.directory} clean -fd, and git -C {record.directory} restore -SW ."
        )
    is_kept = is_in_base(git, record)
    shared = Git(record.common)
    if (scratch := registry.scratch(record.task_id, record.name)).exists():
        discard(shared, scratch)
    # Without --force: git itself refuses where we have overlooked something.
    shared("worktree", "remove", "--", record.directory)
    if is_kept and (head := shared.commit(record.ref)):
        shared("update-ref", "-d", record.ref, head)
    registry.drop(record)
    parent = Path(record.directory).parent
    if parent.parent.name == "trees" and not any(parent.iterdir()):
        parent.rmdir()


def unkept(git: Git) -> list[str]:
    """What is in the worktree and in no commit; ignored files do not count, repositories within it do."""
    found = [
        entry[3:] for entry in git.names("status", "--porcelain=v1", "-z", "--untracked-files=normal", "--no-renames")
    ]
    return found + [name for name in operations(git) if name not in found]


def is_in_base(git: Git, record: Record) -> bool:
    """Whether nothing would be lost with the branch: it has no commit of its own, or the base has them all."""
    head = git.commit(record.ref)
    if head is None or head in (record.base, record.merged_head):
        return True
    base = git.commit(record.base_ref) if record.base_ref else None
    return base is not None and is_ancestor(git, head, base)


def is_pushed(git: Git, record: Record) -> bool:
    """Whether a remote is known to have all commits of the branch."""
    return bool(git("for-each-ref", "--count=1", "--contains", record.ref, "refs/remotes").strip())


def identity_of(path: Path) -> str:
    """What tells a directory from another one that was put into its place."""
    told = path.stat()
    return f"{told.st_dev}:{told.st_ino}"


def clear_locks(record: Record) -> None:
    """Removes locks that a killed git has left of worktree and branch. Nobody works there when this is called."""
    git_directory = _git_directory(record)
    for lock in (git_directory / "index.lock", git_directory / "HEAD.lock", Path(record.common, f"{record.ref}.lock")):
        lock.unlink(missing_ok=True)


def _base(git: Git, wanted: Wanted) -> tuple[str, str]:
    """The full name of the base branch, empty where it is none, and its commit."""
    name = wanted.base_ref or "HEAD"
    commit = git.commit(name)
    if commit is None and name == "HEAD":
        raise Refused(f"{wanted.repository} has no commit yet - make a first one")
    if commit is None:
        raise Refused(f"{wanted.repository} does not know {name!r} - correct base_ref, or fetch it")
    full = git("rev-parse", "--symbolic-full-name", name).strip() if name != "HEAD" else current(git)
    return full if full.startswith("refs/heads/") else "", commit


def _check_submodules(git: Git, wanted: Wanted, base: str) -> None:
    for entry in git.names("ls-tree", "-r", "-z", base):
        if entry.startswith(_GITLINK):
            path = entry.partition("\t")[2]
            raise Refused(
                f"{wanted.repository} has the submodule {path!r}, and what is done in one would be in no branch of "
                "the task - name the submodule's own repository as one more repository of the workspace"
            )


def current(git: Git) -> str:
    """The branch that is checked out, as refs/heads/…; empty where none is."""
    try:
        return git("symbolic-ref", "--quiet", "HEAD").strip()
    except GitFailed:
        return ""


def is_ancestor(git: Git, above: str, below: str | None) -> bool:
    if below is None or git.commit(above) is None:
        return False
    return git.holds("merge-base", "--is-ancestor", above, below)


def operations(git: Git) -> list[str]:
    """Merges, rebases and the like that have not come to their end."""
    at = Path(git.line("rev-parse", "--absolute-git-dir"))
    names = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply", "BISECT_LOG")
    return [f"(unfinished: {name})" for name in names if (at / name).exists()]


def _git_directory(record: Record) -> Path:
    return Path(Git(record.directory).line("rev-parse", "--absolute-git-dir")).resolve()


def _give_up(record: Record) -> str:
    return f"or give it up with: kapell workspace release {record.task_id} --force"


def _mark(registry: Registry, record: Record) -> str:
    return f"{record.mark} {registry.root.resolve()}\n"
