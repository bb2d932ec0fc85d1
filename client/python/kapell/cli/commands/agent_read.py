"""`kapell agent list`, `get`, `logs` and `watch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.loglines import LogPrinter
from kapell.cli.output import Stream, write_list, write_one
from kapell.cli.shape import command
from kapell.cli.states import AGENT_STATES, AGENT_WORDS
from kapell.cli.views import AGENTS, events_view

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.agent_pb2 import Agent

_LIVE_WORDS = tuple(look.word for look in AGENT_STATES.values() if not look.final)


@command(
    "list",
    "List agents that have not ended, the newest first.",
    examples="""
        kapell agent list
        kapell agent list --all -o wide
        kapell agent list --type shell --state active -o id
    """,
)
@click.option(
    "-s",
    "--state",
    "states",
    multiple=True,
    type=click.Choice(AGENT_WORDS),
    metavar="STATE",
    help=f"One of {', '.join(AGENT_WORDS)}; may be repeated.",
)
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have ended.")
@click.option("-t", "--type", "agent_types", multiple=True, metavar="TYPE", help="Serving this type; may be repeated.")
@options.labels("With this label; may be repeated.")
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, everything: bool, limit: int, **query: Any) -> None:
    if not everything and not query["states"]:
        query["states"] = _LIVE_WORDS

    async def work(client: Client) -> list[Agent]:
        return await options.take(client.agents.iterate(page_size=min(limit + 1, 1000), **query), limit + 1)

    agents = app.run(work)
    empty = 'No agent matches. Start one with: kapell agent spawn shell --cwd "$PWD"'
    write_list(agents[:limit], AGENTS, app.terminal, app.output, empty=empty)
    options.say_more(app, "agents", shown=limit, found=len(agents))


@command(
    "get",
    "Show one agent.",
    examples="""
        kapell agent get agent_01kabc
        kapell agent get agent_01kabc -o yaml
    """,
)
@options.agent_ids()
@options.output
@click.pass_obj
def get(app: App, /, agent_ids: tuple[str, ...]) -> None:
    outcome = app.run(lambda client: bulk.each(agent_ids, client.agents.get))
    if len(agent_ids) == 1 and outcome.answers:
        write_one(outcome.answers[0], AGENTS, app.terminal, app.output)
    elif outcome.answers:
        write_list(outcome.answers, AGENTS, app.terminal, app.output)
    outcome.finish(app.terminal)


@command(
    "logs",
    "Show the log of an agent's own process; what its tasks print is in `kapell task logs`.",
    examples="""
        kapell agent logs agent_01kabc
        kapell agent logs --follow agent_01kabc
    """,
)
@options.agent_id
@click.option("-f", "--follow", is_flag=True, help="Go on until the agent has ended.")
@click.option("--offset", type=click.IntRange(0), default=0, metavar="N", help="Skip so many lines.")
@click.option("--times", is_flag=True, help="Show when each line was written.")
@options.output
@click.pass_obj
def logs(app: App, /, agent_id: str, follow: bool, offset: int, times: bool) -> None:
    app.reattach = f"The agent goes on. Re-attach with: kapell agent logs --follow {agent_id}" if follow else ""
    printer = LogPrinter(app.terminal, app.output, times=times)

    async def work(client: Client) -> None:
        async with client.agents.logs(agent_id, offset=offset, follow=follow) as entries:
            async for entry in entries:
                printer.write(entry, offset=entries.offset - 1)

    app.run(work)


@command(
    "watch",
    "Show changes of agents as they happen.",
    examples="""
        kapell agent watch
        kapell agent watch --initial --type shell
        kapell agent watch agent_01kabc -o jsonl
    """,
)
@options.agent_ids(required=False)
@click.option(
    "-s",
    "--state",
    "states",
    multiple=True,
    type=click.Choice(AGENT_WORDS),
    metavar="STATE",
    help="Only while in this state; may be repeated.",
)
@click.option("-t", "--type", "agent_types", multiple=True, metavar="TYPE", help="Serving this type; may be repeated.")
@options.labels("With this label; may be repeated.")
@options.watch_start
@options.output
@click.pass_obj
def watch(app: App, /, initial: bool, after: int | None, **query: Any) -> None:
    stream = Stream(events_view(is_tty=app.terminal.is_tty, changes=True), app.terminal, app.output)

    async def work(client: Client) -> None:
        async with client.agents.watch(
            **query, initial_state=initial, after_revision=after, on_link=options.say_link(app)
        ) as events:
            async for event in events:
                stream.write(event)
                app.reattach = options.reattach("kapell agent watch", events.revision)

    app.run(work)
