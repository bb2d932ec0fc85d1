"""`kapell approval export`: the audit of approvals as a file, entry by entry, however long it is."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.approval_views import action_word, kind_word, risk_cell, risk_reasons, state_cell
from kapell.cli.output import as_data, csv_safe, write_line
from kapell.cli.shape import command
from kapell.cli.times import MOMENT_OR_AGE, iso

if TYPE_CHECKING:
    from datetime import datetime

    from kapell import Client
    from kapell.v1.approval_pb2 import ApprovalAuditEntry
    from kapell.v1.watch_pb2 import Actor

_COLUMNS = (
    *("revision", "time", "action", "by", "from", "approval_id", "task_id", "rule_id", "kind", "state", "title"),
    *("requested_by", "asked_with", "agent_type", "template_id", "signature", "risk", "risk_reasons", "option"),
    *("comment", "edited_input", "shown_hash", "shown", "rule"),
)


@command(
    "export",
    "Print all that was done to approvals and rules, the oldest first: who, what, when, from where, what was shown.",
    examples="""
        kapell approval export
        kapell approval export --format csv --since 30d --until 1d
        kapell approval export --approval approval_01kabc
    """,
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(("jsonl", "csv")),
    default="jsonl",
    metavar="jsonl|csv",
    help="What to print. [default: jsonl]",
)
@click.option("--since", type=MOMENT_OR_AGE, metavar="TIME|AGE", help="From when on. [default: the beginning]")
@click.option("--until", type=MOMENT_OR_AGE, metavar="TIME|AGE", help="Before when. [default: now]")
@click.option("--approval", "approval_id", default="", metavar="APPROVAL_ID", help="Of this approval.")
@click.option("--no-content", is_flag=True, help="Without what was shown; its hash stays.")
@options.server
@click.pass_obj
def export(
    app: App,
    /,
    format_: str,
    since: datetime | None,
    until: datetime | None,
    approval_id: str,
    no_content: bool,
) -> None:
    from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST

    async def work(client: Client) -> None:
        table = csv.writer(sys.stdout, lineterminator="\n")
        if format_ == "csv":
            table.writerow(_COLUMNS)
        entries = client.approvals.export_audit(
            approval_id=approval_id,
            order=LIST_ORDER_OLDEST_FIRST,
            include_content=not no_content,
            from_time=since,
            until_time=until,
        )
        async for entry in entries:
            if format_ == "csv":
                table.writerow([csv_safe(value) for value in _row(entry).values()])
            else:
                write_line(as_data(entry), "jsonl")

    app.run(work)
    sys.stdout.flush()


def _row(entry: ApprovalAuditEntry) -> dict[str, object]:
    """The values of an entry by their columns; what has parts as JSON."""
    approval = entry.approval
    last = approval.decisions[-1] if approval.decisions else None
    row: dict[str, object] = dict.fromkeys(_COLUMNS, "")
    row |= {
        "revision": entry.revision,
        "time": iso(entry.action_time),
        "action": action_word(entry),
        "by": _actor(entry.actor),
        "from": entry.peer,
        "approval_id": entry.approval_id,
        "task_id": entry.task_id,
        "rule_id": entry.rule_id,
        "shown_hash": entry.shown_hash,
    }
    if entry.HasField("content"):
        row["shown"] = _json(entry.content)
    if entry.HasField("rule"):
        row["rule"] = _json(entry.rule.spec)
    if not entry.HasField("approval"):
        return row
    row |= {
        "kind": kind_word(approval),
        "state": state_cell(approval).text,
        "title": approval.title,
        "requested_by": _actor(approval.requested_by),
        "asked_with": _actor(approval.asked_with),
        "agent_type": approval.agent_type,
        "template_id": approval.template_id,
        "signature": approval.signature,
        "risk": risk_cell(approval).text,
        "risk_reasons": "; ".join(risk_reasons(approval)),
    }
    if last is not None:
        row |= {"option": last.option, "comment": last.comment}
        row["edited_input"] = _json(last.edited_input) if last.HasField("edited_input") else ""
    return row


def _actor(actor: Actor) -> str:
    """As "user:ada"; empty where there is none."""
    from kapell.v1.watch_pb2 import ActorKind

    kind = ActorKind.Name(actor.kind).removeprefix("ACTOR_KIND_").lower()
    return f"{kind}:{actor.id}" if actor.id else ""


def _json(message: Any) -> str:
    return json.dumps(as_data(message), ensure_ascii=False, sort_keys=True)
