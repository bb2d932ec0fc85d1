"""`kapell task merge`: the branch of a task comes into its base, under locks, or nothing changes."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.errors import Exit, Refusal
from kapell.cli.output import note, write_changed
from kapell.cli.shape import command
from kapell.cli.times import DURATION
from kapell.cli.workspace_views import MERGES

if TYPE_CHECKING:
    from kapell import Client
    from kapell._workspace.merging import Merge
    from kapell._workspace.registry import Record, Registry
    from kapell.v1.task_pb2 import Task
    from kapell.v1.workspace_pb2 import TaskWorkspace, WorkspaceMerge

_WAIT = 600.0
_TTL = 30.0
_NAMED = 5


@command(
    "merge",
    "Merge what a task has done into its base.",
    examples="""
        kapell task merge task_01kabc
        kapell task merge task_01kabc --check "make test" --check-timeout 20m
        kapell task merge task_01kabc --into release --rebase
        kapell task merge task_01kabc --dry-run
    """,
    epilog="The files that its branch changes, and the base itself, are locked meanwhile; the merge is made and "
    "checked in a checkout of its own. A base that is checked out somewhere is updated there, if that checkout is "
    "clean. Works on the machine where the agent works. Exit code 5: conflict, or refused; 1: the check has failed; "
    "nothing was changed.",
)
@options.task_id
@click.option("--name", default="", metavar="NAME", help="Only this repository of its workspace. [default: all]")
@click.option("--into", default="", metavar="BRANCH", help="The branch it is to come into. [default: where it began]")
@click.option("--rebase/--no-rebase", default=None, help="Put its commits on top of the base. [default: the profile's]")
@click.option("--check", default=None, metavar="COMMAND", help='What must succeed before; "" is none. [the profile\'s]')
@click.option("--check-timeout", type=DURATION, metavar="DURATION", help="How long it may take. [default: 10m]")
@click.option(
    "--wait", type=DURATION, default=_WAIT, metavar="DURATION", help="How long to wait for locks. [default: 10m]"
)
@options.dry_run
@options.output
@click.pass_obj
def merge(
    app: App,
    /,
    task_id: str,
    name: str,
    into: str,
    rebase: bool | None,
    check: str | None,
    check_timeout: float | None,
    wait: float,
    dry_run: bool,
) -> None:
    from kapell._workspace import merging
    from kapell._workspace.registry import Registry

    try:
        argv = None if check is None else shlex.split(check)
    except ValueError as error:
        raise click.UsageError(f"--check {check!r} cannot be read: {error}.") from None
    registry = Registry(app.workspaces)

    async def work(client: Client) -> list[TaskWorkspace]:
        task = await client.tasks.get(task_id)
        plans = [
            merging.planned(
                _record(registry, task, workspace), into=into, rebase=rebase, check=argv, check_seconds=check_timeout
            )
            for workspace in _wanted(task, name)
        ]
        if dry_run:
            for plan in plans:
                _preview(plan)
            return []
        for plan in plans:
            if plan.record.dirty:
                note(f"{plan.record.directory} has changes that are in no commit; they are not merged.")
        return [await _merge(client, registry, task, plan, wait) for plan in plans]

    merged = _told(app, work)
    write_changed(merged, MERGES, app.terminal, app.output)


def _told(app: App, work: Callable[[Client], Awaitable[list[TaskWorkspace]]]) -> list[TaskWorkspace]:
    """Runs the merge; what git and the registry have against it becomes a refusal."""
    from kapell._workspace.git import GitFailed
    from kapell._workspace.registry import Damaged
    from kapell._workspace.worktrees import Refused

    try:
        return app.run(work)
    except (Refused, GitFailed, Damaged) as error:
        what, _, next = str(error).partition(" - ")
        raise Refusal(what, why="nothing was merged", next=next, exit=Exit.CONFLICT) from None


def _wanted(task: Task, name: str) -> list[TaskWorkspace]:
    from kapell._workspace.worktrees import Refused
    from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED

    if task.state != TASK_STATE_SUCCEEDED:
        raise Refused(f"{task.task_id} has not succeeded - see how it is: kapell task get {task.task_id}")
    found = [workspace for workspace in task.workspaces if name in ("", workspace.name)]
    if not found:
        known = ", ".join(workspace.name for workspace in task.workspaces)
        hint = f"it has: {known}" if known else "give its profile a workspace.git_worktree"
        raise Refused(f"{task.task_id} has no worktree{f' {name}' if name else ''} - {hint}")
    return found


def _record(registry: Registry, task: Task, workspace: TaskWorkspace) -> Record:
    from kapell._workspace.worktrees import Refused

    record = registry.find(task.task_id, workspace.name)
    if record is None:
        raise Refused(
            f"{registry.root} knows no worktree {workspace.name} of {task.task_id} - merge on the machine of its "
            f"agent, with --data-dir where its server is, or by hand: git merge {workspace.branch}"
        )
    if record.head != workspace.head_commit:
        raise Refused(
            f"{workspace.name} of {task.task_id} is at {record.head[:12]} here, and at {workspace.head_commit[:12]} "
            "for the server - look at the branch, and merge by hand"
        )
    return record


def _preview(plan: Merge) -> None:
    from kapell._workspace import merging

    locked = merging.lock_paths(plan)
    shown = ", ".join(locked[:_NAMED]) + (f" and {len(locked) - _NAMED} more" if len(locked) > _NAMED else "")
    how = "rebase" if plan.rebase else "merge"
    check = f", check {shlex.join(plan.check)}" if plan.check else ""
    into = plan.into.removeprefix("refs/heads/")
    note(f"Dry run: would lock {shown}; {how} {plan.record.branch} into {into}{check}. Nothing was changed.")


async def _merge(client: Client, registry: Registry, task: Task, plan: Merge, wait: float) -> TaskWorkspace:
    """Merges one repository and records how that has ended. Raises Refusal where it was not merged."""
    from kapell._workspace import merging
    from kapell._workspace.git import GitFailed
    from kapell._workspace.worktrees import Refused
    from kapell.v1.workspace_pb2 import MERGE_OUTCOME_MERGED, MERGE_OUTCOME_REFUSED, WorkspaceMerge

    record = plan.record
    held = client.lock(*merging.lock_paths(plan), timeout=wait, ttl=_TTL, note=f"merge of {task.task_id}"[:200])

    async def confirm() -> None:
        await held.verify()
        now = await client.tasks.get(task.task_id)
        [left] = [one for one in _wanted(now, record.name) if one.name == record.name]
        if left.head_commit != record.head or left.attempt != record.attempt:
            raise Refused(f"another attempt at {task.task_id} has ended meanwhile - merge again")

    async with held:
        try:
            ended = await merging.merge(registry, plan, confirm)
        except (Refused, GitFailed) as error:
            refused = WorkspaceMerge(outcome=MERGE_OUTCOME_REFUSED, base_ref=plan.into, message=str(error)[:2000])
            await client.tasks.record_merge(task.task_id, record.name, record.head, refused)
            raise
        recorded = await client.tasks.record_merge(task.task_id, record.name, record.head, ended)
    if ended.outcome != MERGE_OUTCOME_MERGED:
        raise _refusal(task, plan, ended)
    return next(one for one in recorded.workspaces if one.name == record.name)


def _refusal(task: Task, plan: Merge, ended: WorkspaceMerge) -> Refusal:
    from kapell.v1.workspace_pb2 import MERGE_OUTCOME_CONFLICT

    into = plan.into.removeprefix("refs/heads/")
    if ended.outcome != MERGE_OUTCOME_CONFLICT:
        return Refusal(f"{task.task_id} was not merged: the check has failed", why=ended.message)
    shown = ", ".join(ended.paths[:_NAMED]) + (" …" if len(ended.paths) > _NAMED else "")
    return Refusal(
        f"{task.task_id} was not merged: {into} has changed the same: {shown}",
        why="nothing was changed",
        next=f"git -C {plan.record.repository} merge {plan.record.branch}      (by hand, in a checkout of {into})",
        exit=Exit.CONFLICT,
    )
