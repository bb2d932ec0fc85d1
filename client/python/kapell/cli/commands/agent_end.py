"""`kapell agent terminate` and `delete`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.live import LiveLine
from kapell.cli.output import note, write, write_changed
from kapell.cli.shape import command
from kapell.cli.states import agent_look
from kapell.cli.times import DURATION
from kapell.cli.views import AGENTS

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.agent_pb2 import Agent


def _preview(app: App, /, ids: tuple[str, ...]) -> bulk.Outcome[Agent]:
    return app.run(lambda client: bulk.each(ids, client.agents.get))


def _line(agent: Agent) -> str:
    tasks = f", {agent.slots_used} running" if agent.slots_used else ""
    return f"{agent.agent_id}  {agent.display_name}  ({agent_look(agent.state).word}{tasks})"


def _dry(app: App, /, verb: str, found: bulk.Outcome[Agent]) -> None:
    count = len(found.answers)
    note(f"Dry run: would {verb} {count} agent{'' if count == 1 else 's'}. Nothing was changed.")
    write_changed(found.answers, AGENTS, app.terminal, app.output)
    found.finish(app.terminal)


@command(
    "terminate",
    "End agents and everything they started; their tasks are queued again.",
    examples="""
        kapell agent terminate agent_01kabc
        kapell agent terminate --grace 2m --yes agent_01kabc
        kapell agent terminate --force agent_01kabc
    """,
)
@options.agent_ids()
@click.option("--grace", type=DURATION, metavar="DURATION", help="How long running tasks may go on. [default: 5s]")
@click.option("--force", is_flag=True, help="Kill at once.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def terminate(
    app: App, /, agent_ids: tuple[str, ...], grace: float | None, force: bool, reason: str, yes: bool, dry_run: bool
) -> None:
    if dry_run or not yes:
        found = _preview(app, agent_ids)
        if dry_run:
            return _dry(app, "terminate", found)
        found.finish(app.terminal)
        _confirm(app, "Terminate", found.answers, force=force)

    async def end(client: Client, agent_id: str) -> Agent:
        return await client.agents.terminate(agent_id, force=force, grace_period=grace, reason=reason)

    app.reattach = "The agents are still being ended. See: kapell agent list"
    live = LiveLine(app.terminal)
    live.set("◍", "yellow", f"ending {len(agent_ids)} agent{'s' * (len(agent_ids) > 1)} and all they started …")
    try:
        outcome = app.run(lambda client: bulk.each(agent_ids, lambda id: end(client, id)))
    finally:
        live.clear()
    write_changed(outcome.answers, AGENTS, app.terminal, app.output)
    outcome.finish(app.terminal)
    return None


def _confirm(app: App, /, verb: str, agents: list[Agent], *, force: bool = False) -> None:
    """Asks: y for one, the count for many, the name where it is forced."""
    count = len(agents)
    what = "this agent" if count == 1 else f"{count} agents"
    typed = str(count) if count > 1 else ""
    if force and count == 1:
        typed = agents[0].display_name or agents[0].agent_id
    question = f"{verb} {what}" + (" by force" if force else "")
    options.confirm(app, question, [_line(agent) for agent in agents], yes=False, typed=typed)


@command(
    "delete",
    "Remove ended agents from the lists, with their logs.",
    examples="""
        kapell agent delete agent_01kabc
        kapell agent list --state failed -o id | kapell agent delete --yes -
    """,
)
@options.agent_ids()
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def delete(app: App, /, agent_ids: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    found = _preview(app, agent_ids)
    if dry_run:
        return _dry(app, "delete", found)
    if not yes and found.answers:
        found.finish(app.terminal)
        _confirm(app, "Delete", found.answers)

    async def remove(client: Client, agent: Agent) -> Agent:
        await client.agents.delete(agent.agent_id)
        return agent

    by_id = {agent.agent_id: agent for agent in found.answers}
    outcome = app.run(lambda client: bulk.each(tuple(by_id), lambda id: remove(client, by_id[id])))
    for agent in outcome.answers:
        if app.output in (None, "table", "wide"):
            write(f"Deleted {agent.agent_id}." if app.terminal.is_tty else f"{agent.agent_id}\tdeleted")
        else:
            write_changed([agent], AGENTS, app.terminal, app.output)
    outcome.finish(app.terminal)
    found.finish(app.terminal)
    return None
