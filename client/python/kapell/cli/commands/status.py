"""`kapell status`: what waits for you, and how everything is, on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.budget_views import budget_state, budget_text
from kapell.cli.money import cost_of
from kapell.cli.output import View, write, write_one
from kapell.cli.picture import MOST_COUNTED, Picture, Wait, headline, many, waits_for_you
from kapell.cli.shape import command
from kapell.cli.standing import Standing, look
from kapell.cli.states import AGENT_STATES, TASK_STATES, activity_look, queue_look, state_name
from kapell.cli.table import Cell, Column, rows_for_terminal
from kapell.cli.terminal import Terminal, cells, cut, visible
from kapell.cli.times import age, short
from kapell.cli.views import agent_state, percent, task_state

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.agent_pb2 import Agent
    from kapell.v1.queue_pb2 import QueueStats
    from kapell.v1.task_pb2 import Task

_MOST_AGENTS = 6
_MOST_WAITS = 4
_MOST_TASKS = 6
_MOST_BUDGETS = 2
_MOST_LOCKS = 3
_LINES = 23
"""Of a screen of 24, on which the prompt comes next."""
_LIVE_WORDS = tuple(look.word for look in AGENT_STATES.values() if not look.final)


@command(
    "status",
    "Show what waits for you, and how everything is.",
    examples="""
        kapell status
        kapell status -o json
    """,
)
@options.output
@click.pass_obj
def status(app: App) -> None:
    address = app.endpoint().address
    picture = app.run(lambda client: _look(client, address))
    if app.is_table:
        for line in _screen(picture, app.terminal):
            write(line)
    else:
        write_one(picture.as_data(), View(columns=(), id=lambda _: address), app.terminal, app.output)


async def _look(client: Client, address: str) -> Picture:
    import asyncio

    (info, counts, agents, profiles, queues), (running, failed, waiting), standing = await asyncio.gather(
        asyncio.gather(
            client.admin.server_info(),
            client.tasks.count(),
            client.agents.list(states=_LIVE_WORDS, page_size=200),
            client.agents.profiles(),
            client.queues.stats(),
        ),
        asyncio.gather(
            client.tasks.list(states=["running", "cancelling"], page_size=_MOST_TASKS + 1),
            client.tasks.list(states=["failed"], page_size=MOST_COUNTED, created_after=_an_hour_ago()),
            client.tasks.list(states=["queued"], page_size=200),
        ),
        look(client),
    )
    by_state = {entry.state: entry.count for entry in counts.counts}
    from kapell.v1.task_pb2 import TaskState

    return Picture(
        info=info,
        address=address,
        counts={look.word: by_state.get(TaskState.Value(name), 0) for name, look in TASK_STATES.items()},
        agents=list(agents.agents),
        running=list(running.tasks),
        failed_lately=len(failed.tasks),
        unserved=_unserved(waiting.tasks, agents.agents),
        profiles=list(profiles.profiles),
        stopped=_stopped(queues.queues),
        standing=standing,
    )


def _an_hour_ago() -> Any:
    from datetime import UTC, datetime, timedelta

    return datetime.now(UTC) - timedelta(hours=1)


def _stopped(queues: Any) -> list[QueueStats]:
    """Those that are paused or draining, the ones in which most waits first."""
    stopped = [entry for entry in queues if queue_look(entry.queue.state).word in ("paused", "draining")]
    return sorted(stopped, key=lambda entry: -entry.depth)


def _unserved(waiting: Any, agents: Any) -> dict[str, int]:
    served = {agent_type for agent in agents for agent_type in agent.agent_types}
    unserved: dict[str, int] = {}
    for task in waiting:
        if task.agent_type not in served:
            unserved[task.agent_type] = unserved.get(task.agent_type, 0) + 1
    return unserved


def _screen(picture: Picture, terminal: Terminal) -> list[str]:
    """At most `_LINES` lines."""
    waits = waits_for_you(picture)
    lines = [terminal.out(cut(headline(picture), terminal.width), "yellow" if waits else "green")]
    if len(waits) > _MOST_WAITS:
        more = len(waits) - _MOST_WAITS + 1
        waits = [*waits[: _MOST_WAITS - 1], Wait(f"… and {more} more", "kapell status -o json")]
    lines += _waits(waits, terminal)
    lines += ["", *_facts(picture, terminal)]
    if picture.agents:
        lines += ["", *_agents(picture.agents, terminal)]
    if picture.running and (room := min(_LINES - len(lines) - 2, _MOST_TASKS)) > 0:
        lines += ["", *_running(picture.running, room, terminal)]
    if not picture.agents:
        lines += ["", terminal.out('No agents yet. Start one with: kapell agent spawn shell --cwd "$PWD"', "dim")]
    return lines


def _waits(waits: list[Wait], terminal: Terminal) -> Iterator[str]:
    """Each with its command, which is shown whole; the words before it are cut."""
    room = terminal.width - 4 - max((cells(wait.command) for wait in waits if len(wait.command) < 40), default=0)
    texts = [cut(visible(wait.text), max(room, 30)) if terminal.is_tty else visible(wait.text) for wait in waits]
    width = max(map(cells, texts), default=0)
    for wait, text in zip(waits, texts, strict=True):
        yield f"  {text}{' ' * (width - cells(text))}  {terminal.out(wait.command, 'dim')}"


def _facts(picture: Picture, terminal: Terminal) -> list[str]:
    import time

    info = picture.info
    up = short(time.time() - info.start_time.seconds)
    server = f"{picture.address}  version {info.version}  {info.database}  up {up}  revision {info.revision}"
    counts = {word: count for word, count in picture.counts.items() if count or word in ("queued", "running")}
    used = sum(agent.slots_used for agent in picture.agents)
    total = sum(agent.slots_total for agent in picture.agents)
    agents = f"{len(picture.agents)} live  {used} of {total} slots used"
    return [
        f"{terminal.out('Server', 'dim')}  {visible(server)}",
        f"{terminal.out('Tasks ', 'dim')}  {_counts(counts, terminal)}",
        f"{terminal.out('Agents', 'dim')}  {agents}",
        *(f"{terminal.out(name, 'dim')}  {told}" for name, told in _held(picture.standing, terminal)),
    ]


def _held(standing: Standing, terminal: Terminal) -> Iterator[tuple[str, str]]:
    """What was spent and what is locked, where anything is."""
    spend, budgets = standing.spend, standing.budgets
    if budgets or (spend is not None and spend.records):
        told = [f"{cost_of(spend)} in 30d"] if spend is not None else []
        room = terminal.width - 8 - sum(map(cells, told))
        for number, budget in enumerate(budgets):
            state = budget_state(budget)
            word = f"{state.mark} {state.text}" if terminal.marks else state.text
            text = f"budget {visible(' '.join(budget_text(budget).split()))} "
            room -= cells(text + word) + 2
            if room < 0 or number == _MOST_BUDGETS:
                told.append("…" if terminal.marks else "...")
                break
            told.append(text + terminal.out(word, state.colour))
        yield "Spend ", "  ".join(told)
    if standing.locks or standing.lock_waiters:
        more = "+" if standing.more_locks else ""
        found = list(dict.fromkeys(lock.path for lock in standing.locks))
        paths, rest = ", ".join(found[:_MOST_LOCKS]), ", …" if len(found) > _MOST_LOCKS else ""
        waiting = f", {many(standing.lock_waiters, 'request')} waiting" if standing.lock_waiters else ""
        text = f"{len(standing.locks)}{more} held{waiting}  {visible(paths)}{rest}"
        yield "Locks ", cut(text, terminal.width - 8)


def _counts(counts: dict[str, int], terminal: Terminal) -> str:
    """How many tasks are in each state; on a narrow terminal without the last states."""
    shown = list(counts)
    while shown and terminal.is_tty and sum(len(f"{counts[word]} {word}") + 4 for word in shown) + 6 > terminal.width:
        shown.pop()
    rest = [] if len(shown) == len(counts) else ["…" if terminal.marks else "..."]
    return "  ".join([*(_count(word, counts[word], terminal) for word in shown), *rest])


def _count(word: str, count: int, terminal: Terminal) -> str:
    look = TASK_STATES[state_name(TASK_STATES, word)]
    text = f"{look.mark} {count} {word}" if terminal.marks else f"{count} {word}"
    return terminal.out(text, look.colour)


def _agents(agents: list[Agent], terminal: Terminal) -> list[str]:
    columns = (
        Column("AGENT", lambda a: a.display_name or a.agent_id, flexible=True),
        Column("STATE", agent_state),
        Column("ACTIVITY", lambda a: Cell(activity_look(a.activity).word, activity_look(a.activity).colour)),
        Column("SLOTS", lambda a: f"{a.slots_used}/{a.slots_total}", right=True),
        Column("SERVES", lambda a: ", ".join(a.agent_types), flexible=True),
    )
    return _first(agents, _MOST_AGENTS, columns, terminal, "kapell agent list")


def _running(tasks: list[Task], most: int, terminal: Terminal) -> list[str]:
    columns = (
        Column("TASK", lambda t: Cell(t.task_id)),
        Column("STATE", task_state),
        Column("DONE", percent, right=True),
        Column("FOR", lambda t: age(t.lease.start_time), right=True),
        Column("NAME", lambda t: t.display_name, flexible=True),
    )
    return _first(tasks, most, columns, terminal, "kapell task list --state running")


def _first(items: list[Any], most: int, columns: Any, terminal: Terminal, command: str) -> list[str]:
    """The first of a list as a table, and, where it is longer, the command that shows all."""
    lines = rows_for_terminal(columns, items[:most], terminal)
    if len(items) > most:
        lines[-1] = terminal.out(f"… all of them: {command}", "dim")
    return lines
