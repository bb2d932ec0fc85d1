"""`kapell approval approve` and `deny`, and `kapell task approve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.approval_views import APPROVALS
from kapell.cli.output import note, write_changed
from kapell.cli.shape import command
from kapell.cli.views import TASKS

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.approval_pb2 import Approval
    from kapell.v1.task_pb2 import Task

_COMMENT = click.option("-m", "--comment", default="", metavar="TEXT", help="Why; the agent gets to read it.")


@command(
    "approve",
    "Approve what is asked for, or answer a question. What was read is what is approved: if it changes, nothing is.",
    examples="""
        kapell approval approve approval_01kabc
        kapell approval approve approval_01kabc --option blue -m "it fits the logo"
        kapell approval approve approval_01kabc --hash 9f86d081884c7d65…
        kapell approval list -o id | kapell approval approve -
    """,
)
@options.approval_ids
@click.option("--option", default="approve", metavar="OPTION", help="Which answer, where there are several.")
@click.option("--hash", "shown_hash", default="", metavar="HASH", help="Only what has this hash, as `show` has it.")
@click.option("--input-json", metavar="OBJECT", help="Approve with this input instead, as one JSON object; - is stdin.")
@_COMMENT
@options.dry_run
@options.output
@click.pass_obj
def approve(
    app: App,
    /,
    approval_ids: tuple[str, ...],
    option: str,
    shown_hash: str,
    input_json: str | None,
    comment: str,
    dry_run: bool,
) -> None:
    edited = options.input_data((), input_json)
    _each(app, approval_ids, option, comment, dry_run, shown_hash=shown_hash, edited_input=edited)


@command(
    "deny",
    "Refuse what is asked for. The agent gets to read the comment.",
    examples="""
        kapell approval deny approval_01kabc -m "not before the release"
    """,
)
@options.approval_ids
@_COMMENT
@options.dry_run
@options.output
@click.pass_obj
def deny(app: App, /, approval_ids: tuple[str, ...], comment: str, dry_run: bool) -> None:
    _each(app, approval_ids, "deny", comment, dry_run)


def _each(
    app: App,
    ids: tuple[str, ...],
    option: str,
    comment: str,
    dry_run: bool,
    *,
    shown_hash: str = "",
    edited_input: dict[str, Any] | None = None,
) -> None:
    async def one(client: Client, approval_id: str) -> Approval:
        approval = await client.approvals.get(approval_id)
        if shown_hash:
            approval.content_hash = shown_hash
        if dry_run:
            return approval
        return await client.approvals.decide(approval, option, comment=comment, edited_input=edited_input)

    if dry_run:
        note(f"Dry run: these would be decided: {option}. Nothing was changed.")
    found = app.run(lambda client: bulk.each(ids, lambda approval_id: one(client, approval_id)))
    write_changed(found.answers, APPROVALS, app.terminal, app.output)
    found.finish(app.terminal)


@command(
    "approve",
    "Decide about the start of a task, perhaps with other parameters.",
    examples="""
        kapell task approve task_01kabc
        kapell task approve task_01kabc --deny -m "not before the release"
        kapell task approve task_01kabc --param depth=quick
    """,
)
@options.task_id
@click.option("--deny", is_flag=True, help="Refuse it: the task fails.")
@click.option("--param", "parameters", multiple=True, metavar="KEY=VALUE", help="Another parameter; JSON if it parses.")
@click.option("--hash", "shown_hash", default="", metavar="HASH", help="Only what has this hash.")
@_COMMENT
@options.output
@click.pass_obj
def approve_task(
    app: App, /, task_id: str, deny: bool, parameters: tuple[str, ...], shown_hash: str, comment: str
) -> None:
    changed = options.input_data(parameters, None)

    async def work(client: Client) -> Task:
        whole = None
        if changed is not None:
            from kapell._worker.values import from_struct

            whole = from_struct((await client.tasks.get(task_id)).input) | changed
        return await client.tasks.approve(
            task_id, "deny" if deny else "approve", comment=comment, parameters=whole, shown_hash=shown_hash
        )

    write_changed([app.run(work)], TASKS, app.terminal, app.output)
