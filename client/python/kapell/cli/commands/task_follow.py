"""`kapell task logs`, `watch` and `wait`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.causes import exit_of
from kapell.cli.errors import Done, Exit, refusal_of, report
from kapell.cli.loglines import LogPrinter
from kapell.cli.output import Stream, write_changed
from kapell.cli.shape import command
from kapell.cli.states import TASK_WORDS, task_look
from kapell.cli.times import DURATION
from kapell.cli.views import TASKS, events_view

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.task_pb2 import Task


@command(
    "logs",
    "Show what a task printed.",
    examples="""
        kapell task logs task_01kabc
        kapell task logs --follow task_01kabc
        kapell task logs --attempt 1 --times task_01kabc
    """,
)
@options.task_id
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="The log of this attempt. [default: the latest]")
@click.option("--offset", type=click.IntRange(0), default=0, metavar="N", help="Skip so many lines.")
@click.option("--times", is_flag=True, help="Show when each line was written.")
@options.output
@click.pass_obj
def logs(app: App, /, task_id: str, follow: bool, attempt: int | None, offset: int, times: bool) -> None:
    app.reattach = f"The task goes on. Re-attach with: kapell task logs --follow {task_id}" if follow else ""
    printer = LogPrinter(app.terminal, app.output, times=times)

    async def work(client: Client) -> None:
        async with client.tasks.logs(task_id, attempt=attempt or 0, offset=offset, follow=follow) as entries:
            async for entry in entries:
                printer.write(entry, attempt=entries.attempt, offset=entries.offset - 1)

    app.run(work)


@command(
    "watch",
    "Show changes of tasks as they happen; with ids until all of them have ended.",
    examples="""
        kapell task watch
        kapell task watch task_01kabc
        kapell task watch --state failed -o jsonl
        kapell task watch --initial --label team=web
    """,
)
@options.task_ids(required=False)
@click.option(
    "-s",
    "--state",
    "states",
    multiple=True,
    type=click.Choice(TASK_WORDS),
    metavar="STATE",
    help="Only into this state; may be repeated.",
)
@click.option("-t", "--type", "agent_types", multiple=True, metavar="TYPE", help="Of this agent type; may be repeated.")
@options.labels("With this label; may be repeated.")
@options.watch_start
@options.output
@click.pass_obj
def watch(app: App, /, task_ids: tuple[str, ...], initial: bool, after: int | None, **query: Any) -> None:
    stream = Stream(events_view(is_tty=app.terminal.is_tty, changes=True), app.terminal, app.output)

    async def work(client: Client) -> None:
        import asyncio

        awaited = set(task_ids)
        if task_ids:
            query["task_ids"] = task_ids
            await asyncio.gather(*(client.tasks.get(task_id) for task_id in task_ids))
        start: dict[str, Any] = {
            "initial_state": initial or (bool(task_ids) and after is None),
            "after_revision": after,
        }
        async with client.tasks.watch(**query, **start, on_link=options.say_link(app)) as events:
            async for event in events:
                stream.write(event)
                app.reattach = options.reattach("kapell task watch", events.revision)
                if task_look(event.task.state).final:
                    awaited.discard(event.task.task_id)
                    if task_ids and not awaited:
                        return

    app.run(work)


@command(
    "wait",
    "Wait until tasks have ended: exit code 0, 7 if one failed or was cancelled, 8 when the time is up.",
    examples="""
        kapell task wait task_01kabc
        kapell task wait task_01kabc task_01kdef --timeout 5m
        kapell task list --state running -o id | kapell task wait -
    """,
)
@options.task_ids()
@click.option("--timeout", type=DURATION, metavar="DURATION", help="Give up waiting after this; the tasks go on.")
@options.output
@click.pass_obj
def wait(app: App, /, task_ids: tuple[str, ...], timeout: float | None) -> None:
    ids = " ".join(task_ids[:3]) + (" …" if len(task_ids) > 3 else "")
    app.reattach = f"The tasks go on. Wait again with: kapell task wait {ids}"

    async def one(client: Client, task_id: str) -> Task:
        task = await client.tasks.wait(task_id, timeout=timeout)
        if app.output in (None, "table", "wide"):
            write_changed([task], TASKS, app.terminal, app.output)
        return task

    async def work(client: Client) -> list[Task | BaseException]:
        import asyncio

        return await asyncio.gather(*(one(client, task_id) for task_id in task_ids), return_exceptions=True)

    results = app.run(work)
    tasks = [result for result in results if not isinstance(result, BaseException)]
    if app.output not in (None, "table", "wide"):
        write_changed(tasks, TASKS, app.terminal, app.output)
    raise Done(_exit_code(app, results))


def _exit_code(app: App, /, results: list[Task | BaseException]) -> Exit:
    """Reports what went wrong, and gives the code: another failure, then 7 (9 by a budget), then 8, else 0."""
    from kapell.errors import WaitTimeout
    from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED

    errors = [result for result in results if isinstance(result, Exception)]
    pending = [error for error in errors if isinstance(error, WaitTimeout)]
    for error in errors:
        report(refusal_of(error), app.terminal)
    others = [error for error in errors if error not in pending]
    if others:
        return refusal_of(others[0]).exit
    bad = [one for one in results if not isinstance(one, BaseException) and one.state != TASK_STATE_SUCCEEDED]
    if bad:
        codes = {exit_of(task) for task in bad}
        return codes.pop() if len(codes) == 1 else Exit.TASK_FAILED
    return Exit.STILL_PENDING if pending else Exit.DONE
