"""`kapell approval list`, `show`, `watch` and `audit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.approval_views import APPROVALS, AUDIT, STATE_WORDS
from kapell.cli.output import Stream, note, write_list, write_one
from kapell.cli.shape import command

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.approval_pb2 import Approval, ApprovalAuditEntry, GetApprovalResponse


@command(
    "list",
    "List what waits for a decision: what blocks most first, then what expires first.",
    examples="""
        kapell approval list
        kapell approval list --state rejected
        kapell approval list --task task_01kabc -o wide
    """,
)
@click.option(
    "-s", "--state", "states", multiple=True, type=click.Choice(STATE_WORDS), metavar="STATE", help="In this state."
)
@click.option("--task", "task_ids", multiple=True, metavar="TASK_ID", help="Of this task; may be repeated.")
@click.option("--all", "everything", is_flag=True, help="Also what is decided; the newest first.")
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, states: tuple[str, ...], task_ids: tuple[str, ...], everything: bool, limit: int) -> None:
    async def work(client: Client) -> tuple[list[Approval], int]:
        if states or everything:
            found = client.approvals.iterate(page_size=min(limit + 1, 1000), states=states, task_ids=task_ids)
            taken = await options.take(found, limit + 1)
            return taken, len(taken)
        page = await client.approvals.list(page_size=min(limit, 1000), task_ids=task_ids)
        return list(page.approvals), page.total

    approvals, found = app.run(work)
    write_list(approvals[:limit], APPROVALS, app.terminal, app.output, empty="Nothing waits for a decision.")
    options.say_more(app, "approvals", shown=limit, found=found)


@command(
    "show",
    "Show one approval with all that is decided about.",
    examples="""
        kapell approval show approval_01kabc
        kapell approval show approval_01kabc -o json
    """,
)
@options.approval_id
@options.output
@click.pass_obj
def show(app: App, /, approval_id: str) -> None:
    found: GetApprovalResponse = app.run(lambda client: client.approvals.get_with_precedent(approval_id))
    write_one(found.approval, APPROVALS, app.terminal, app.output)
    before = found.precedent
    if app.is_table and app.terminal.is_tty:
        past = f"{before.approved} approved, {before.rejected} refused, {before.expired} expired"
        note(app.terminal.err(f"Others of its kind so far: {past}.", "dim"))


@command(
    "watch",
    "Show what waits for a decision, and what comes, as it happens.",
    examples="""
        kapell approval watch
        kapell approval watch -o jsonl
    """,
)
@click.option("--task", "task_ids", multiple=True, metavar="TASK_ID", help="Of this task; may be repeated.")
@options.output
@click.pass_obj
def watch(app: App, /, task_ids: tuple[str, ...]) -> None:
    stream = Stream(APPROVALS, app.terminal, app.output)

    async def work(client: Client) -> None:
        async with client.approvals.watch(task_ids=task_ids) as approvals:
            async for approval in approvals:
                stream.write(approval)

    app.run(work)


@command(
    "audit",
    "List who decided what, when and from where, the newest first; with what was shown as JSON.",
    examples="""
        kapell approval audit
        kapell approval audit --approval approval_01kabc
        kapell approval audit --content -n 10000 -o jsonl
    """,
)
@click.option("--approval", "approval_id", default="", metavar="APPROVAL_ID", help="Of this approval.")
@click.option("--content", is_flag=True, help="With what was shown.")
@options.limit
@options.output
@click.pass_obj
def audit(app: App, /, approval_id: str, content: bool, limit: int) -> None:
    async def work(client: Client) -> list[ApprovalAuditEntry]:
        entries = client.approvals.export_audit(approval_id=approval_id, include_content=content)
        return await options.take(entries, limit + 1)

    entries = app.run(work)
    write_list(entries[:limit], AUDIT, app.terminal, app.output, empty="Nothing was asked for so far.")
    options.say_more(app, "entries", shown=limit, found=len(entries))
