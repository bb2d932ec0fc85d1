"""Which tasks: the options by which tasks are listed, and by which many are changed at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from kapell.cli import options
from kapell.cli.states import TASK_WORDS
from kapell.cli.times import DURATION

_F = TypeVar("_F", bound=Callable[..., Any])

LIVE = ("pending", "queued", "running", "cancelling")
"""States of tasks that have not ended."""

_STATE = click.option(
    "-s",
    "--state",
    "states",
    multiple=True,
    type=click.Choice(TASK_WORDS),
    metavar="STATE",
    help=f"One of {', '.join(TASK_WORDS)}; may be repeated.",
)
_OF_FAILED = (
    click.option("--failed", is_flag=True, help="Short for --state failed."),
    click.option(
        "--reason",
        "failure_reasons",
        multiple=True,
        metavar="REASON",
        help="Whose last failure has this reason, as in AGENT_LOST; may be repeated.",
    ),
)
_OPTIONS = (
    click.option(
        "-t", "--type", "agent_types", multiple=True, metavar="TYPE", help="Of this agent type; may be repeated."
    ),
    click.option(
        "--template",
        "template_ids",
        multiple=True,
        metavar="TEMPLATE_ID",
        help="Made from this template; may be repeated.",
    ),
    click.option("--parent", "parent_task_id", default="", metavar="TASK_ID", help="Children of this task."),
    click.option("--root", "root_task_id", default="", metavar="TASK_ID", help="Everything below this task."),
    options.labels("With this label; may be repeated."),
    click.option("--since", type=DURATION, metavar="DURATION", help="Created within the last 30m, 2h, 7d …"),
)


def which_tasks(function: _F) -> _F:
    """Adds the options; the command gets them as keywords and hands them to `query_of`."""
    return _added(function, (_STATE, *_OF_FAILED, *_OPTIONS))


def which_live_tasks(function: _F) -> _F:
    """As `which_tasks`, for commands to which it matters not how a task has failed."""
    return _added(function, (_STATE, *_OPTIONS))


def _added(function: _F, wanted: Sequence[Callable[[_F], _F]]) -> _F:
    for option in reversed(wanted):
        function = option(function)
    return function


def query_of(*, states: Sequence[str], since: float | None, failed: bool = False, **query: Any) -> dict[str, Any]:
    """What was said of the tasks, as keywords of the SDK's queries; nothing for what was not said."""
    query["states"] = (*states, "failed") if failed and "failed" not in states else states
    if since is not None:
        query["created_after"] = datetime.fromtimestamp(datetime.now(UTC).timestamp() - since, UTC)
    return {name: value for name, value in query.items() if value}
