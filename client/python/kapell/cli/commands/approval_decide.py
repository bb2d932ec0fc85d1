"""`kapell approval approve` and `deny`, and `kapell task approve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.approval_views import APPROVALS, target_of
from kapell.cli.errors import Exit, Refusal
from kapell.cli.output import note, write_changed
from kapell.cli.shape import command
from kapell.cli.terminal import can_ask, visible
from kapell.cli.views import TASKS

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.approval_pb2 import Approval
    from kapell.v1.task_pb2 import Task

_YES = click.option("-y", "--yes", is_flag=True, help="Do not ask, unless the risk is critical.")
_YES_CRITICAL = click.option(
    "--yes-critical",
    is_flag=True,
    help="Do not ask, however critical. Without it the target is to be typed; on a pipe it is refused.",
)
_COMMENT = click.option("-m", "--comment", default="", metavar="TEXT", help="Why; the agent gets to read it.")


@command(
    "approve",
    "Approve what is asked for, or answer a question. What was read is what is approved: if it changes, nothing is.",
    examples="""
        kapell approval approve approval_01kabc
        kapell approval approve approval_01kabc --option blue -m "it fits the logo"
        kapell approval approve approval_01kabc --hash 9f86d081884c7d65…
        kapell approval list -o id | kapell approval approve - --yes
    """,
)
@options.approval_ids
@click.option("--option", default="approve", metavar="OPTION", help="Which answer, where there are several.")
@click.option("--hash", "shown_hash", default="", metavar="HASH", help="Only what has this hash, as `show` has it.")
@click.option("--input-json", metavar="OBJECT", help="Approve with this input instead, as one JSON object; - is stdin.")
@_COMMENT
@_YES
@_YES_CRITICAL
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
    yes: bool,
    yes_critical: bool,
    dry_run: bool,
) -> None:
    edited = options.input_data((), input_json)
    said = _Said(yes, yes_critical)
    _each(app, approval_ids, option, comment, dry_run, shown_hash=shown_hash, edited_input=edited, said=said)


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


class _Said(NamedTuple):
    """What was said beforehand."""

    yes: bool = False
    yes_critical: bool = False


def _each(
    app: App,
    ids: tuple[str, ...],
    option: str,
    comment: str,
    dry_run: bool,
    *,
    shown_hash: str = "",
    edited_input: dict[str, Any] | None = None,
    said: _Said | None = None,
) -> None:
    async def read(client: Client, approval_id: str) -> Approval:
        approval = await client.approvals.get(approval_id)
        if shown_hash:
            approval.content_hash = shown_hash
        return approval

    async def decide(client: Client, approval: Approval) -> Approval:
        return await client.approvals.decide(approval, option, comment=comment, edited_input=edited_input)

    found = app.run(lambda client: bulk.each(ids, lambda approval_id: read(client, approval_id)))
    if dry_run:
        note(f"Dry run: these would be decided: {option}. Nothing was changed.")
        write_changed(found.answers, APPROVALS, app.terminal, app.output)
        found.finish(app.terminal)
        return
    if option != "deny":
        for approval in found.answers:
            _ask_where_it_is_risky(app, approval, said or _Said())
    read_ones = {one.approval_id: one for one in found.answers}
    done = app.run(lambda client: bulk.each(list(read_ones), lambda id: decide(client, read_ones[id])))
    write_changed(done.answers, APPROVALS, app.terminal, app.output)
    _draw_what_took_their_place(app, done.failures)
    bulk.Outcome(done.answers, [*found.failures, *done.failures]).finish(app.terminal)


def _ask_where_it_is_risky(app: App, approval: Approval, said: _Said) -> None:
    """High risk asks once more with the card in sight, or has --yes; critical its target typed, or --yes-critical."""
    from kapell.v1.approval_pb2 import RISK_LEVEL_CRITICAL, RISK_LEVEL_HIGH
    from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING

    is_critical = approval.risk.level == RISK_LEVEL_CRITICAL
    is_said = said.yes_critical or (said.yes and not is_critical)
    if approval.risk.level < RISK_LEVEL_HIGH or is_said or approval.state != APPROVAL_STATE_PENDING:
        return
    word = "CRITICAL" if is_critical else "high"
    question = f"Approve {approval.approval_id} (risk: {word})"
    if is_critical and not can_ask():
        raise Refusal(
            f"{question}: that needs its target typed, and there is no terminal to ask on",
            why="; ".join(visible(reason.message) for reason in approval.risk.reasons[:3]),
            next=f"look at it with kapell approval show {approval.approval_id}; say it with --yes-critical",
            exit=Exit.USAGE,
        )
    _draw(app, approval.approval_id)
    options.confirm(app, question, (), yes=False, typed=target_of(approval) if is_critical else "")


def _draw(app: App, approval_id: str) -> None:
    if app.terminal.is_tty and app.is_table:
        from kapell.cli.approval_facts import facts_of
        from kapell.cli.commands.approval_read import draw

        draw(app.run(lambda client: facts_of(client, approval_id)), app.terminal)


def _draw_what_took_their_place(app: App, failures: list[Exception]) -> None:
    from kapell.errors import KapellError

    for failure in failures:
        if isinstance(failure, KapellError) and failure.metadata.get("superseded_by"):
            _draw(app, failure.metadata["superseded_by"])


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
@_YES
@_YES_CRITICAL
@options.output
@click.pass_obj
def approve_task(
    app: App,
    /,
    task_id: str,
    deny: bool,
    parameters: tuple[str, ...],
    shown_hash: str,
    comment: str,
    yes: bool,
    yes_critical: bool,
) -> None:
    changed = options.input_data(parameters, None)
    if not deny:
        approval = app.run(lambda client: _waited_for(client, task_id))
        if approval is not None:
            _ask_where_it_is_risky(app, approval, _Said(yes, yes_critical))
            shown_hash = shown_hash or approval.content_hash

    async def work(client: Client) -> Task:
        whole = None
        if changed is not None:
            from kapell._worker.values import from_struct

            whole = from_struct((await client.tasks.get(task_id)).input) | changed
        return await client.tasks.approve(
            task_id, "deny" if deny else "approve", comment=comment, parameters=whole, shown_hash=shown_hash
        )

    write_changed([app.run(work)], TASKS, app.terminal, app.output)


async def _waited_for(client: Client, task_id: str) -> Approval | None:
    """What the task waits for, as it will be shown; None where it waits for nothing, which is the server's to tell."""
    task = await client.tasks.get(task_id)
    page = await client.approvals.list(task_ids=[task_id], page_size=100)
    named = {task.parked.approval_id, task.approval.approval_id} - {""}
    return next((one for one in page.approvals if one.approval_id in named), None)
