"""What an attempt has left in a worktree: committed, counted, and written down as files to keep. Blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kapell._workspace import worktrees
from kapell._workspace.git import Git, identity
from kapell._workspace.registry import Record, Registry

MOST_DIFF_BYTES = 16 * 1024 * 1024
MOST_SUMMARY_BYTES = 1024 * 1024
_GITLINK = "160000"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """How much a branch changes against its base."""

    files: int
    insertions: int
    deletions: int


def who(agent_id: str) -> dict[str, str]:
    """Author and committer of what an agent does."""
    return identity(f"Kapell agent {agent_id}", agent_id)


def take_in(registry: Registry, record: Record, *, message: str, commits: bool) -> list[str]:
    """Brings `head` and `dirty` of the record up to date, having committed what is not; remarks for the log.

    Without `commits`, and where git stands in the middle of something, all stays as it is, and is dirty.
    Raises Refused where the agent has left something else than its worktree.
    """
    worktrees.prove(registry, record)
    git = Git(record.directory, who(record.agent_id))
    worktrees.clear_locks(record)
    remarks = []
    is_whole = not worktrees.operations(git)
    if is_whole:
        remarks += worktrees.bring_home(git, record)
    is_home = worktrees.current(git) == record.ref
    if not is_home:
        remarks.append(f"{record.directory} is not on {record.branch}: what was done elsewhere is not in that branch")
    elif commits and is_whole:
        remarks += _commit(git, record, message)
    record.head = git.commit(record.ref) or record.head
    record.dirty = not is_home or bool(worktrees.unkept(git))
    if record.dirty and commits:
        remarks.append(f"not all changes of {record.name} are in its branch; they are kept in {record.directory}")
    return remarks


def begin_anew(registry: Registry, record: Record, *, attempt: int) -> str:
    """Puts branch and worktree back to the base; what was there is kept as a branch, whose name is returned."""
    git = Git(record.directory, who(record.agent_id))
    take_in(registry, record, message="Left by an attempt that did not end", commits=True)
    if record.dirty:
        raise worktrees.Refused(
            f"{record.directory} cannot be put back to its base: it has changes that no commit can take - "
            "look after them by hand"
        )
    kept = ""
    base = git.commit(record.base_ref) if record.base_ref else None
    landed = record.merging or record.merged
    if landed and base is not None and worktrees.is_ancestor(git, landed, base):
        # What it had done is in the base already, and done again it would be in conflict with itself.
        record.base = base
    if record.head != record.base:
        kept = f"{record.branch}.before-{attempt}"
        number = 1
        while git.commit(f"refs/heads/{kept}"):
            number += 1
            kept = f"{record.branch}.before-{attempt}-{number}"
        git("branch", "--no-track", "--", kept, record.head)
        git("reset", "--quiet", "--hard", record.base)
    record.head = record.base
    return kept


def figures(record: Record) -> Figures:
    """Counts what the branch changes."""
    lines = Git(record.common).names("diff", "--numstat", "-z", *_PLAIN, record.base, record.head)
    counted = [line.split("\t", 2)[:2] for line in lines]
    # Of binary files git says "-": they count as files only.
    return Figures(
        files=len(counted),
        insertions=sum(int(added) for added, _ in counted if added != "-"),
        deletions=sum(int(gone) for _, gone in counted if gone != "-"),
    )


def write_down(record: Record, directory: Path) -> tuple[list[Path], list[str]]:
    """Writes diff.patch and commits.txt of what the branch changes into a directory; the files, and remarks."""
    if record.head == record.base:
        return [], []
    reach = f"{record.base}..{record.head}"
    wanted = {
        "diff.patch": (
            MOST_DIFF_BYTES,
            ("diff", "--binary", "--full-index", *_PREFIXED, *_PLAIN, record.base, record.head),
        ),
        "commits.txt": (
            MOST_SUMMARY_BYTES,
            ("log", "--stat", "--format=medium", "--no-show-signature", *_PLAIN, reach),
        ),
    }
    git, files, remarks = Git(record.common), [], []
    for name, (most, command) in wanted.items():
        if git.write(directory / name, most, *command):
            files.append(directory / name)
        else:
            remarks.append(
                f"{name} of {record.name} has more than {most >> 20} MiB and is no artifact - "
                f"see it with: git -C {record.repository} {command[0]} {reach}"
            )
    return files, remarks


# Nothing that a configuration could say about looks and programs.
_PREFIXED = ("--src-prefix=a/", "--dst-prefix=b/")
_PLAIN = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-renames", "--ignore-submodules=none")


def _commit(git: Git, record: Record, message: str) -> list[str]:
    """Commits all that is not; a repository that lies in the worktree is left out: only its name would be kept."""
    git("add", "--all", "--", ".")
    inner = [entry.partition("\t")[2] for entry in git.names("ls-files", "--stage", "-z") if entry.startswith(_GITLINK)]
    if inner:
        git("rm", "--quiet", "--cached", "--force", "--", *(f":(literal){name}" for name in inner))
    if not git.holds("diff", "--cached", "--quiet", "--no-ext-diff", "HEAD", "--"):
        git("commit", "--quiet", "--no-verify", "--cleanup=verbatim", "-m", message)
    return [f"{name!r} of {record.name} is a repository of its own, and is in no branch of the task" for name in inner]
