"""`kapell webhook`: events that the server sends to an address of yours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kapell.cli import bulk, options, prefixed
from kapell.cli.app import App
from kapell.cli.budget_views import DELIVERIES, WEBHOOK, WEBHOOKS, delivery_text
from kapell.cli.errors import Done, Exit
from kapell.cli.output import note, write, write_changed, write_list, write_one
from kapell.cli.shape import command

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.webhook_pb2 import Webhook

_ONE = prefixed.one("webhook_id", WEBHOOK, "WEBHOOK")
_SOME = prefixed.some("webhook_ids", WEBHOOK, "WEBHOOK")
_DELIVERED = 2
_STATES = ("pending", "delivered", "failed")


@command(
    "create",
    "Create a webhook and show its secret, this once.",
    examples="""
        kapell webhook create pager --url http://127.0.0.1:8080/kapell
        kapell webhook create log --url http://127.0.0.1:8080/ --event task.failed --event alert.fired
    """,
)
@_ONE
@click.option("--url", required=True, metavar="URL", help="Where events are sent to.")
@click.option(
    "--event",
    "kinds",
    multiple=True,
    metavar="EVENT",
    help="Which; may be repeated. [default: alert.fired, alert.resolved]",
)
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@options.dry_run
@options.output
@click.pass_obj
def create(app: App, /, webhook_id: str, url: str, kinds: tuple[str, ...], description: str, dry_run: bool) -> None:
    if dry_run:
        note(f"Dry run: would create {webhook_id.removeprefix(WEBHOOK)}. Nothing was changed.")
        return
    made = app.run(
        lambda client: client.webhooks.create(url, webhook_id=webhook_id, kinds=kinds, description=description)
    )
    if app.is_table and app.terminal.is_tty:
        write(f"Created {webhook_id.removeprefix(WEBHOOK)}. Its secret, which is not shown again:")
        write(made.secret)
    elif app.output in (None, "table", "wide"):
        write(f"{made.webhook.webhook_id}\t{made.secret}")
    elif app.output == "id":
        write(made.webhook.webhook_id)
    else:
        write_one(made, WEBHOOKS, app.terminal, app.output)


@command(
    "list",
    "List webhooks, the newest first.",
    examples="""
        kapell webhook list
        kapell webhook list -o json
    """,
)
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, limit: int) -> None:
    async def work(client: Client) -> list[Webhook]:
        return await options.take(client.webhooks.iterate(page_size=min(limit + 1, 1000)), limit + 1)

    found = app.run(work)
    empty = "No webhooks yet. Try: kapell webhook create pager --url URL"
    write_list(found[:limit], WEBHOOKS, app.terminal, app.output, empty=empty)
    options.say_more(app, "webhooks", shown=limit, found=len(found))


@command(
    "delete",
    "Delete webhooks; what was not sent to them is not sent any more.",
    examples="""
        kapell webhook delete pager
        kapell webhook list -o id | kapell webhook delete --yes -
    """,
)
@_SOME
@options.yes
@options.dry_run
@options.server
@click.pass_obj
def delete(app: App, /, webhook_ids: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    count = len(webhook_ids)
    what = "this webhook" if count == 1 else f"{count} webhooks"
    if dry_run:
        note(f"Dry run: would delete {what}. Nothing was changed.")
        return
    options.confirm(app, f"Delete {what}", webhook_ids, yes=yes, typed=str(count) if count > 1 else "")

    async def one(client: Client, webhook_id: str) -> str:
        await client.webhooks.delete(webhook_id)
        return webhook_id

    gone = app.run(lambda client: bulk.each(webhook_ids, lambda id: one(client, id)))
    for webhook_id in gone.answers:
        short = webhook_id.removeprefix(WEBHOOK)
        write(f"Deleted {short}." if app.terminal.is_tty else f"{webhook_id}\tdeleted")
    gone.finish(app.terminal)


@command(
    "test",
    "Send a test event to a webhook now. The exit code is 1 if it did not arrive.",
    examples="""
        kapell webhook test pager
    """,
)
@_ONE
@options.output
@click.pass_obj
def test(app: App, /, webhook_id: str) -> None:
    delivery = app.run(lambda client: client.webhooks.test(webhook_id))
    write_changed([delivery], DELIVERIES, app.terminal, app.output)
    if delivery.state != _DELIVERED:
        note(f"It did not arrive: {delivery_text(delivery)}.")
        raise Done(Exit.FAILURE)


@command(
    "deliveries",
    "List what was sent to a webhook and what is to be sent, the newest first.",
    examples="""
        kapell webhook deliveries pager
        kapell webhook deliveries pager --state failed -o id | kapell webhook resend pager -
    """,
)
@_ONE
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES), help="Only of this state; may be repeated."
)
@click.option("-n", "--limit", type=click.IntRange(1, 500), default=50, metavar="N", help="At most. [default: 50]")
@options.output
@click.pass_obj
def deliveries(app: App, /, webhook_id: str, states: tuple[str, ...], limit: int) -> None:
    page = app.run(lambda client: client.webhooks.deliveries(webhook_id, states=states, page_size=limit))
    write_list(page.deliveries, DELIVERIES, app.terminal, app.output, empty="Nothing was sent to it so far.")


@command(
    "resend",
    "Send deliveries of a webhook again, whatever became of them.",
    examples="""
        kapell webhook resend pager delivery_01kabc
        kapell webhook deliveries pager --state failed -o id | kapell webhook resend pager -
    """,
)
@_ONE
@click.argument("delivery_ids", nargs=-1, required=True, metavar="DELIVERY_ID...", callback=options.with_stdin)
@options.dry_run
@options.output
@click.pass_obj
def resend(app: App, /, webhook_id: str, delivery_ids: tuple[str, ...], dry_run: bool) -> None:
    if dry_run:
        note(f"Dry run: would send {len(delivery_ids)} deliveries again. Nothing was changed.")
        return
    sent = app.run(lambda client: bulk.each(delivery_ids, lambda id: client.webhooks.resend(webhook_id, id)))
    write_changed(sent.answers, DELIVERIES, app.terminal, app.output)
    sent.finish(app.terminal)
