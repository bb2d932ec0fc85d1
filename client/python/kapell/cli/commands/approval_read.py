"""`kapell approval list`, `show`, `watch` and `audit`."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.approval_views import APPROVALS, AUDIT, STATE_WORDS
from kapell.cli.output import Stream, note, write, write_list, write_one
from kapell.cli.shape import command
from kapell.cli.terminal import Terminal

if TYPE_CHECKING:
    from kapell import Client
    from kapell.cli.approval_facts import Facts
    from kapell.v1.approval_pb2 import Approval, ApprovalAuditEntry


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
    "Show one approval with all that is decided about, on one screen; --all where that is too long for it.",
    examples="""
        kapell approval show approval_01kabc
        kapell approval show approval_01kabc --all
        kapell approval show approval_01kabc -o json
    """,
)
@options.approval_id
@click.option("--all", "whole", is_flag=True, help="All of it, however long it is.")
@options.output
@click.pass_obj
def show(app: App, /, approval_id: str, whole: bool) -> None:
    if not app.is_table:
        found = app.run(lambda client: client.approvals.get(approval_id))
        write_one(found, APPROVALS, app.terminal, app.output)
        return
    from kapell.cli.approval_facts import facts_of

    draw(app.run(lambda client: facts_of(client, approval_id)), app.terminal, whole=whole)


def draw(facts: Facts, terminal: Terminal, *, whole: bool = False) -> None:
    """Writes the card of an approval to stdout: one screen on a terminal, all of it on a pipe."""
    from kapell.cli.approval_card import card_rows, pipe_lines
    from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING

    approval = facts.approval
    if not terminal.is_tty:
        for row in pipe_lines(facts):
            write(row)
        return
    for row in card_rows(facts, terminal, screen_rows() - 2, whole=whole):
        write(row)
    if approval.state == APPROVAL_STATE_PENDING:
        note(terminal.err(f"kapell approval approve {approval.approval_id}   or: deny … -m WHY", "dim"))


def screen_rows() -> int:
    """How many rows the terminal has."""
    return shutil.get_terminal_size((80, 24)).lines


@command(
    "watch",
    "Show what waits for a decision, and what comes, as it happens; on a terminal with keys to decide.",
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
        if app.output is None and app.terminal.is_tty and app.terminal.live:
            from kapell.cli.desk import Desk
            from kapell.cli.live import LiveLine

            await Desk(app, client, LiveLine(app.terminal), task_ids=task_ids).work()
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
