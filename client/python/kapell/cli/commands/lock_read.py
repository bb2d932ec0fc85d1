"""`kapell lock list`, `waiters`, `graph` and `sessions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.lock_views import SESSIONS, WAITERS, locks_view
from kapell.cli.output import Stream, as_data, note, write, write_line, write_list
from kapell.cli.shape import command
from kapell.cli.views import events_view

if TYPE_CHECKING:
    from kapell import Client
    from kapell.filters import LockQuery
    from kapell.v1.lock_pb2 import GetLockGraphResponse, ListLocksResponse, ListSessionsResponse

_F = TypeVar("_F", bound=Callable[..., Any])
_PAGE = 1000


def _filters(function: _F) -> _F:
    """--path, --task, --agent, --session."""
    for name, parameter, help in (
        ("--session", "session_id", "Of this session."),
        ("--agent", "agent_id", "Of this agent's attempts, or asked for by it."),
        ("--task", "task_id", "Of this task."),
        ("--path", "path", "On this path, above or below it."),
    ):
        metavar = "PATH" if name == "--path" else f"{name[2:].upper()}_ID"
        function = click.option(name, parameter, default="", metavar=metavar, help=help)(function)
    return function


@command(
    "list",
    "List the locks that are held, by path.",
    examples="""
        kapell lock list
        kapell lock list --path web/src
        kapell lock list --task task_01kabc -o json
        kapell lock list --watch
    """,
)
@_filters
@click.option("--watch", is_flag=True, help="Go on with every change as it happens; the first lines are what is.")
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, watch: bool, limit: int, **query: Unpack[LockQuery]) -> None:
    if watch:
        _watch(app, query)
        return

    async def work(client: Client) -> ListLocksResponse:
        return await client.locks.list(page_size=min(limit, _PAGE), **query)

    answer = app.run(work)
    where = f" on {path}, above or below" if (path := query.get("path")) else ""
    empty = f"No lock is held{where}. Hold one with: kapell lock run PATH -- COMMAND"
    write_list(answer.locks, locks_view(answer.waiters), app.terminal, app.output, empty=empty)
    options.say_more(app, "locks", shown=len(answer.locks), found=len(answer.locks) + bool(answer.next_page_token))


def _watch(app: App, query: LockQuery) -> None:
    stream = Stream(events_view(is_tty=app.terminal.is_tty, changes=True), app.terminal, app.output)

    async def work(client: Client) -> None:
        async with client.locks.watch(**query, initial_state=True) as events:
            async for event in events:
                stream.write(event)

    app.run(work)


@command(
    "waiters",
    "List who waits for locks, in the order of the queue.",
    examples="""
        kapell lock waiters
        kapell lock waiters --path web -o wide
    """,
)
@_filters
@options.output
@click.pass_obj
def waiters(app: App, /, **query: Unpack[LockQuery]) -> None:
    async def work(client: Client) -> ListLocksResponse:
        return await client.locks.list(page_size=1, **query)

    answer = app.run(work)
    write_list(answer.waiters, WAITERS, app.terminal, app.output, empty="Nobody waits for a lock.")
    if answer.waiter_count > len(answer.waiters) and app.is_table and app.terminal.is_tty:
        note(app.terminal.err(f"The first {len(answer.waiters)} of {answer.waiter_count}; name a --path", "dim"))


@command(
    "graph",
    "Show who waits for whom: those who hold everybody up first, and how many wait behind them.",
    examples="""
        kapell lock graph
        kapell lock graph --path web
        kapell lock graph --as dot
        kapell lock graph --as mermaid
    """,
)
@_filters
@click.option(
    "--as",
    "shape",
    type=click.Choice(("tree", "dot", "mermaid", "json")),
    default="tree",
    help="How it is drawn. [default: tree]",
)
@options.output
@click.pass_obj
def graph(app: App, /, shape: str, **query: Unpack[LockQuery]) -> None:
    from kapell.cli.lock_graph import Graph

    async def work(client: Client) -> GetLockGraphResponse:
        return await client.locks.graph(**query)

    answer = app.run(work)
    if shape == "json" or not app.is_table:
        write_line(as_data(answer), "yaml" if app.output == "yaml" else "json")
        return
    drawing = Graph(answer)
    if shape == "tree" and not answer.edges:
        note("Nobody waits for a lock.")
        return
    lines = {"tree": lambda: drawing.tree(app.terminal), "dot": drawing.dot, "mermaid": drawing.mermaid}
    for line in lines[shape]():
        write(line)


@command(
    "sessions",
    "List the open sessions, the eldest first.",
    examples="""
        kapell lock sessions
        kapell lock sessions -o json
    """,
)
@options.limit
@options.output
@click.pass_obj
def sessions(app: App, /, limit: int) -> None:
    async def work(client: Client) -> ListSessionsResponse:
        return await client.locks.sessions(page_size=min(limit, _PAGE))

    answer = app.run(work)
    write_list(answer.sessions, SESSIONS, app.terminal, app.output, empty="No session is open.")
    shown = len(answer.sessions)
    options.say_more(app, "sessions", shown=shown, found=shown + bool(answer.next_page_token))
