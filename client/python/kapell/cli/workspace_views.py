"""How worktrees and merges are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kapell.cli.output import View
from kapell.cli.table import Cell, Column, Line

if TYPE_CHECKING:
    from kapell.v1.workspace_pb2 import TaskWorkspace, WorkspaceSpec

_SHORT = 12
_COLOURS = {"merged": "green", "conflict": "red", "check failed": "red", "refused": "yellow"}


def outcome(workspace: TaskWorkspace) -> str:
    """As in "merged" or "check failed"; empty where nobody has tried."""
    from kapell.v1.workspace_pb2 import MergeOutcome

    if not workspace.HasField("merge"):
        return ""
    return MergeOutcome.Name(workspace.merge.outcome).removeprefix("MERGE_OUTCOME_").lower().replace("_", " ")


def workspace_text(workspace: TaskWorkspace) -> str:
    """One line about what a task has done in a repository."""
    text = (
        f"{workspace.name}: {workspace.files_changed} files +{workspace.insertions} -{workspace.deletions} "
        f"on {workspace.branch}"
    )
    said = [text, outcome(workspace), "has uncommitted changes" if workspace.dirty else ""]
    return ", ".join(part for part in said if part)


def place_text(spec: WorkspaceSpec) -> str:
    """Where the attempts of an agent work, in a line; empty where each has a fresh directory."""
    if spec.WhichOneof("kind") != "git_worktree":
        return spec.directory
    return "a worktree for each task of " + ", ".join(one.path for one in spec.git_worktree.repositories)


def _outcome_cell(workspace: TaskWorkspace) -> Cell:
    word = outcome(workspace) or "-"
    return Cell(word, _COLOURS.get(word, "plain"))


def _branch(ref: str) -> str:
    return ref.removeprefix("refs/heads/") or "-"


MERGES = View(
    columns=(
        Column("NAME", lambda workspace: Cell(workspace.name)),
        Column("OUTCOME", _outcome_cell),
        Column("INTO", lambda workspace: _branch(workspace.merge.base_ref)),
        Column("COMMIT", lambda workspace: Cell(workspace.merge.commit or "-", seen=workspace.merge.commit[:_SHORT])),
        Column("BRANCH", lambda workspace: workspace.branch, flexible=True),
    ),
    id=lambda workspace: workspace.name,
)

# Of the registry, which is no message: dictionaries, as `-o json` shows them.
WORKTREES = View(
    columns=(
        Column("TASK", lambda found: Cell(found["task_id"])),
        Column("NAME", lambda found: found["name"]),
        Column("STATE", lambda found: Cell(found["state"], "yellow" if found["state"] == "dirty" else "plain")),
        Column("TASK STATE", lambda found: found["task_state"] or "-"),
        Column("BRANCH", lambda found: found["branch"], flexible=True),
        Column("DIRECTORY", lambda found: found["directory"], flexible=True, wide=True),
    ),
    id=lambda found: found["task_id"],
    card=lambda found: _card(found),
)


def _card(found: dict[str, Any]) -> list[Line]:
    return [
        Line("Task", found["task_id"]),
        Line("Name", found["name"]),
        Line("State", found["state"]),
        Line("Why", found["why"]),
        Line("Task state", found["task_state"]),
        Line("Directory", found["directory"]),
        Line("Repository", found["repository"]),
        Line("Branch", found["branch"]),
        Line("Into", _branch(found["base_ref"])),
        Line("Base", found["base"]),
        Line("Head", found["head"]),
        Line("Merged", found["merged"]),
        Line("Attempt", str(found["attempt"] or "")),
        Line("Agent", found["agent_id"]),
    ]
