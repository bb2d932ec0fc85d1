"""`kapell event`: the log of every change, live and recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.output import Stream, write_list
from kapell.cli.shape import command
from kapell.cli.views import events_view

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.event_pb2 import Event


def _filters(function: Any) -> Any:
    """The filters of both commands."""
    for option in (
        options.labels("Of tasks and agents with this label; may be repeated."),
        click.option(
            "--schedule",
            "schedule_ids",
            multiple=True,
            metavar="SCHEDULE",
            callback=options.full_schedule_ids,
            help="Of this schedule itself; may be repeated.",
        ),
        click.option(
            "--approval",
            "approval_ids",
            multiple=True,
            metavar="APPROVAL_ID",
            help="Of this approval itself; may be repeated.",
        ),
        click.option(
            "--template",
            "template_ids",
            multiple=True,
            metavar="TEMPLATE_ID",
            help="Of this template itself; may be repeated.",
        ),
        click.option("--agent", "agent_ids", multiple=True, metavar="AGENT_ID", help="Of this agent; may be repeated."),
        click.option("--task", "task_ids", multiple=True, metavar="TASK_ID", help="Of this task; may be repeated."),
        click.option(
            "-k",
            "--kind",
            "kinds",
            multiple=True,
            metavar="KIND",
            help="As in task.completed or agent.status; may be repeated.",
        ),
    ):
        function = option(function)
    return function


@command(
    "watch",
    "Show every change as it happens, without gap or duplicate.",
    examples="""
        kapell event watch
        kapell event watch --kind task.completed --kind task.failed
        kapell event watch --after 1204 -o jsonl
    """,
)
@_filters
@options.watch_start
@options.output
@click.pass_obj
def watch(app: App, /, initial: bool, after: int | None, **query: Any) -> None:
    stream = Stream(events_view(is_tty=app.terminal.is_tty), app.terminal, app.output)

    async def work(client: Client) -> None:
        async with client.watch(
            **query, initial_state=initial, after_revision=after, on_link=options.say_link(app)
        ) as events:
            async for event in events:
                stream.write(event)
                app.reattach = options.reattach("kapell event watch", events.revision)

    app.run(work)


@command(
    "list",
    "List recorded events, the newest first.",
    examples="""
        kapell event list --limit 20
        kapell event list --task task_01kabc --oldest
        kapell event list --kind task.failed -o jsonl
    """,
)
@_filters
@click.option("--oldest", is_flag=True, help="The oldest first.")
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, oldest: bool, limit: int, **query: Any) -> None:
    async def work(client: Client) -> list[Event]:
        from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST, LIST_ORDER_OLDEST_FIRST

        order = LIST_ORDER_OLDEST_FIRST if oldest else LIST_ORDER_NEWEST_FIRST
        return await options.take(
            client.events.iterate(order=order, page_size=min(limit + 1, 1000), **query), limit + 1
        )

    events = app.run(work)
    view = events_view(is_tty=app.terminal.is_tty)
    write_list(events[:limit], view, app.terminal, app.output, empty="No event matches.")
    options.say_more(app, "events", shown=limit, found=len(events))
