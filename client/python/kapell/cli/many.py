"""Changes of many tasks by filter: look first, ask on a terminal, change, say what became of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kapell.cli import options, times
from kapell.cli.app import App
from kapell.cli.output import View, note, write, write_list
from kapell.cli.states import task_look
from kapell.cli.table import Cell, Column, rows_for_terminal
from kapell.cli.views import task_state

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.task_pb2 import Task, TaskOutcome

_F = TypeVar("_F", bound=Callable[..., Any])
_LISTED = 10
"""Tasks that are named on a terminal, of those that are to be changed and of those that were left alone."""


@dataclass(frozen=True)
class Change:
    """What is to be done: its words, and the SDK's verb, which takes the query and the caps as keywords."""

    verb: str
    """As in "cancel"."""
    done: str
    """As in "Cancelled"."""
    act: Callable[..., Awaitable[Any]]


def caps(function: _F) -> _F:
    """--all, --max and --partial; the command gets them as `caps` keywords and hands them to `change`."""
    every = click.option("--all", "everything", is_flag=True, help="Every task there is, where nothing else is said.")
    most = click.option(
        "--max",
        "max_affected",
        type=click.IntRange(1, 10_000),
        metavar="N",
        help="Do nothing where more match. [default: 1000]",
    )
    partial = click.option("--partial", "allow_partial", is_flag=True, help="Change the oldest --max of them instead.")
    return every(most(partial(function)))


def some_task_ids(function: _F) -> _F:
    """Task ids, where a filter may stand in their place; None where none were typed."""

    def collected(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...] | None:
        return options.with_stdin(ctx, param, values) if values else None

    return click.argument(
        "task_ids", nargs=-1, metavar="[TASK_ID]...", callback=collected, shell_complete=options.complete_tasks
    )(function)


def is_by_filter(task_ids: tuple[str, ...] | None, query: Mapping[str, Any], *, everything: bool) -> bool:
    """Whether the tasks are named by a filter. Raises UsageError where it is neither that nor ids, or both."""
    by_filter = bool(query) or everything
    if by_filter and task_ids:
        raise click.UsageError("Name the tasks by their ids or by a filter, not by both.")
    if not by_filter and task_ids is None:
        raise click.UsageError("Which tasks? Give their ids, a filter such as --label team=a, or --all.")
    return by_filter


def change(
    app: App,
    /,
    plan: Callable[[Client], Change],
    query: dict[str, Any],
    *,
    yes: bool,
    dry_run: bool,
    max_affected: int | None,
    **rest: Any,
) -> None:
    """Changes all tasks that match; asks before it, unless `yes` was said."""
    limits: dict[str, Any] = {**rest, **({"max_affected": max_affected} if max_affected else {})}
    if dry_run or not yes:
        matched = _look(app, plan, query, limits, dry_run=dry_run)
        if dry_run or not matched:
            return

    async def work(client: Client) -> tuple[Change, Any]:
        doing = plan(client)
        return doing, await doing.act(**limits, **query)

    doing, answer = app.run(work)
    if not app.terminal.is_tty or not app.is_table:
        items = answer.items if app.output != "id" else [item for item in answer.items if not item.reason]
        write_list(items, OUTCOMES, app.terminal, app.output)
        return
    write(f"{doing.done} {_tasks(answer.affected)}." + (f" {answer.matched} matched." if answer.matched else ""))
    left = [item for item in answer.items if item.reason]
    write_list(left[:_LISTED], OUTCOMES, app.terminal, app.output)
    if len(left) > _LISTED:
        note(app.terminal.err(f"… and {len(left) - _LISTED} more were left alone; -o jsonl shows all", "dim"))


def _look(
    app: App, /, plan: Callable[[Client], Change], query: dict[str, Any], limits: dict[str, Any], *, dry_run: bool
) -> int:
    """Counts what matches; says so for a dry run, and asks otherwise."""

    async def work(client: Client) -> tuple[Change, Any, list[Task]]:
        doing = plan(client)
        found = await doing.act(preview=True, **limits, **query)
        return doing, found, await _tasks_of(client, found.preview_task_ids)

    doing, found, first = app.run(work)
    matched: int = found.matched
    if dry_run:
        note(f"Dry run: would {doing.verb} {_tasks(matched)}. Nothing was changed.")
        write_list(first, PREVIEWS, app.terminal, app.output)
    elif not matched:
        note("No task matches.")
    else:
        shown = rows_for_terminal(PREVIEWS.columns, first[:_LISTED], app.terminal, header=False)
        if matched > len(shown):
            shown = [*shown[: _LISTED - 1], f"… {matched - _LISTED + 1} more"]
        options.confirm(app, f"{doing.verb.capitalize()} {_tasks(matched)}", shown, yes=False, typed=str(matched))
    return matched


async def _tasks_of(client: Client, ids: Sequence[str]) -> list[Task]:
    """The tasks that there still are, in this order."""
    if not ids:
        return []
    page = await client.tasks.list(task_ids=list(ids), page_size=len(ids))
    found = {task.task_id: task for task in page.tasks}
    return [found[task_id] for task_id in ids if task_id in found]


def _tasks(count: int) -> str:
    return f"{count} task{'' if count == 1 else 's'}"


def _state(outcome: TaskOutcome) -> Cell:
    look = task_look(outcome.state)
    return Cell(look.word, look.colour, look.mark) if outcome.state else Cell("gone", "dim")


def _left_alone(outcome: TaskOutcome) -> str:
    return outcome.message or "-"


PREVIEWS = View(
    columns=(
        Column("ID", lambda task: Cell(task.task_id)),
        Column("STATE", task_state),
        Column("NAME", lambda task: task.display_name, flexible=True),
        Column("AGE", lambda task: times.age(task.create_time), right=True),
    ),
    id=lambda task: task.task_id,
)
"""Of the tasks that are to be changed: enough to see that they are the right ones."""

OUTCOMES = View(
    columns=(
        Column("ID", lambda outcome: Cell(outcome.task_id)),
        Column("STATE", _state),
        Column("LEFT ALONE", _left_alone, flexible=True),
    ),
    id=lambda outcome: outcome.task_id,
)
