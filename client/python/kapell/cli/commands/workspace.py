"""`kapell workspace`: the worktrees that tasks have on this machine, and their end.

They are read from the registry in the data directory, where the hosts of a local server keep it; what the server says
of their tasks comes beside. Nothing that is owned or in no commit is removed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.errors import Exit, Refusal
from kapell.cli.output import note, write, write_list, write_one
from kapell.cli.shape import command
from kapell.cli.workspace_views import WORKTREES

if TYPE_CHECKING:
    from kapell import Client
    from kapell._workspace.registry import Record, Registry

_ASKED_AT_ONCE = 100


@command(
    "list",
    "List the worktrees of tasks on this machine.",
    examples="""
        kapell workspace list
        kapell workspace list -o wide
    """,
)
@options.output
@click.pass_obj
def list_(app: App, /) -> None:
    registry = _registry(app)
    found = [record for owner in registry.owners() for record in _of(registry, owner)]
    states = _task_states(app, {record.task_id for record in found})
    shown = [_shown(registry, record, states) for record in found]
    empty = f"No worktrees in {registry.root}. Profiles with workspace.git_worktree make them."
    write_list(shown, WORKTREES, app.terminal, app.output, empty=empty)


@command(
    "show",
    "Show the worktrees of a task, and why they are kept.",
    examples="""
        kapell workspace show task_01kabc
        kapell workspace show task_01kabc -o json
    """,
)
@options.task_id
@options.output
@click.pass_obj
def show(app: App, /, task_id: str) -> None:
    registry = _registry(app)
    states = _task_states(app, {task_id})
    for record in _known(registry, task_id):
        write_one(_shown(registry, record, states), WORKTREES, app.terminal, app.output)


@command(
    "release",
    "Remove the worktrees of ended tasks; their branches stay until their base has them.",
    examples="""
        kapell workspace release task_01kabc --yes
        kapell workspace release task_01kabc --force --yes
    """,
    epilog="One with changes that are in no commit is never removed. --force forgets one that cannot be verified any "
    "more, because it was moved or deleted, and leaves all that is there.",
)
@options.task_ids()
@click.option("--force", is_flag=True, help="Forget what cannot be verified; its files are left alone.")
@options.yes
@options.dry_run
@options.server
@click.pass_obj
def release(app: App, /, task_ids: tuple[str, ...], force: bool, yes: bool, dry_run: bool) -> None:
    registry = _registry(app)
    directories = [record.directory for task_id in task_ids for record in _known(registry, task_id)]
    if dry_run:
        note(f"Dry run: would remove {', '.join(directories)}. Nothing was changed.")
        return
    options.confirm(app, f"Remove {len(directories)} worktrees", directories, yes=yes)
    states = _task_states(app, set(task_ids), must_be_known=True)
    for task_id in task_ids:
        _check_ended(task_id, states[task_id])
        for line in _released(registry, task_id, force=force):
            write(line)


@command(
    "prune",
    "Remove worktrees of ended tasks that are clean, and whose branches are merged, pushed or empty.",
    examples="""
        kapell workspace prune --dry-run
        kapell workspace prune --yes
    """,
)
@options.yes
@options.dry_run
@options.server
@click.pass_obj
def prune(app: App, /, yes: bool, dry_run: bool) -> None:
    registry = _registry(app)
    found = [record for owner in registry.owners() for record in _of(registry, owner)]
    states = _task_states(app, {record.task_id for record in found}, must_be_known=True)
    going = [record for record in found if states[record.task_id] in _ENDED and not _keeps(registry, record)]
    directories = [record.directory for record in going]
    if not going:
        note("Nothing to remove: every worktree is in use, or has something that is nowhere else.")
        return
    if dry_run:
        note(f"Dry run: would remove {', '.join(directories)}. Nothing was changed.")
        return
    options.confirm(app, f"Remove {len(going)} worktrees", directories, yes=yes)
    for task_id in sorted({record.task_id for record in going}):
        names = {record.name for record in going if record.task_id == task_id}
        for line in _released(registry, task_id, names=names):
            write(line)


_GONE = "deleted"
_ENDED = frozenset({"succeeded", "failed", "cancelled", _GONE})


def _registry(app: App) -> Registry:
    from kapell._workspace.registry import Registry

    return Registry(app.workspaces)


def _of(registry: Registry, task_id: str) -> list[Record]:
    from kapell._workspace.registry import Damaged

    try:
        return registry.of(task_id)
    except Damaged as error:
        raise Refusal(str(error)) from None


def _known(registry: Registry, task_id: str) -> list[Record]:
    found = _of(registry, task_id)
    if not found:
        raise Refusal(
            f"there is no worktree of {task_id} in {registry.root}",
            next="kapell workspace list      (on the machine of its agent, with the --data-dir of its server)",
            exit=Exit.NOT_FOUND,
        )
    return found


def _task_states(app: App, task_ids: set[str], *, must_be_known: bool = False) -> dict[str, str]:
    """Words for the states of tasks; empty words where no server can be asked, unless it must be known."""
    from kapell.cli.states import TASK_STATES
    from kapell.errors import KapellError
    from kapell.v1.task_pb2 import TaskState

    async def work(client: Client) -> dict[str, str]:
        wanted, states = sorted(task_ids), dict.fromkeys(task_ids, _GONE)
        for first in range(0, len(wanted), _ASKED_AT_ONCE):
            some = wanted[first : first + _ASKED_AT_ONCE]
            async for task in client.tasks.iterate(task_ids=some):
                states[task.task_id] = TASK_STATES[TaskState.Name(task.state)].word
        return states

    if not task_ids:
        return {}
    try:
        return app.run(work)
    except KapellError:
        if must_be_known:
            raise
        note("The server cannot be asked, so the states of tasks are not known.")
        return dict.fromkeys(task_ids, "")


def _check_ended(task_id: str, state: str) -> None:
    if state not in _ENDED:
        raise Refusal(
            f"{task_id} is {state}, and may still need its worktree",
            next=f"kapell task cancel {task_id}",
            exit=Exit.CONFLICT,
        )


def _keeps(registry: Registry, record: Record) -> str:
    """Why a worktree is not removed by itself; empty where nothing would be lost."""
    from kapell._workspace import worktrees
    from kapell._workspace.git import Git, GitFailed

    if record.state == "creating":
        return ""
    try:
        worktrees.verify(registry, record)
        git = Git(record.directory)
        if worktrees.unkept(git):
            return "it has changes that are in no commit"
        if not worktrees.is_in_base(git, record) and not worktrees.is_pushed(git, record):
            return "its branch is neither merged nor pushed"
    except (worktrees.Refused, GitFailed) as error:
        return str(error)
    return ""


def _shown(registry: Registry, record: Record, states: dict[str, str]) -> dict[str, Any]:
    from dataclasses import asdict

    why = _keeps(registry, record)
    state = "working" if record.state == "working" and states.get(record.task_id) not in _ENDED else "kept"
    if not Path(record.directory).is_dir():
        state = "gone"
    elif state == "kept" and not why:
        state = "clean"
    elif state == "kept" and why.startswith("it has changes"):
        state = "dirty"
    told = {name: value for name, value in asdict(record).items() if name not in ("mark", "setup", "common_id")}
    return {**told, "state": state, "why": why, "task_state": states.get(record.task_id, "")}


def _released(registry: Registry, task_id: str, *, names: set[str] | None = None, force: bool = False) -> list[str]:
    """Removes worktrees of a task. Raises Refusal for the first that is in the way."""
    from kapell._workspace import worktrees
    from kapell._workspace.git import GitFailed

    said = []
    with registry.held(task_id) as is_held:
        if not is_held:
            raise Refusal(f"an attempt or a merge works in the worktrees of {task_id}", exit=Exit.CONFLICT)
        for record in _of(registry, task_id):
            if names is not None and record.name not in names:
                continue
            try:
                worktrees.remove(registry, record, force=force)
            except (worktrees.Refused, GitFailed) as error:
                what, _, next = str(error).partition(" - ")
                raise Refusal(what, why="the worktree was kept", next=next, exit=Exit.CONFLICT) from None
            said.append(f"Removed {record.directory}.")
    return said
