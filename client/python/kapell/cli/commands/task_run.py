"""`kapell task run`: create, follow live, and exit with the task's outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.causes import causes, exit_of, hints
from kapell.cli.commands.task_fields import new_task, task_fields
from kapell.cli.errors import Done, Exit
from kapell.cli.output import note, write_one
from kapell.cli.shape import command
from kapell.cli.states import task_look
from kapell.cli.terminal import visible
from kapell.cli.times import DURATION, seconds_between, short
from kapell.cli.views import TASKS, failure_text

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.task_pb2 import Task

_F = TypeVar("_F", bound=Callable[..., Any])


def following(function: _F) -> _F:
    """--timeout and --times, of all that follow a task."""
    function = click.option("--times", is_flag=True, help="Show when each line was written.")(function)
    return click.option(
        "--timeout", type=DURATION, metavar="DURATION", help="Stop following after this; exit code 8. The task goes on."
    )(function)


@command(
    "run",
    "Create a task and follow it to its end. The exit code is 0 if it succeeded, 7 if not, 9 if a budget stopped it, "
    "10 if nobody approved it.",
    examples="""
        kapell task run --type shell "wc -l *.py"
        kapell task run --type shell -- wc -l README.md
        kapell task run --type shell --run-timeout 10m --label job=nightly "make test"
        kapell task run --type review --file prompt.md --input pr=17 -o json
    """,
)
@task_fields
@following
@options.dry_run
@options.output
@click.pass_obj
def run(app: App, /, dry_run: bool, timeout: float | None, times: bool, **values: Any) -> None:
    if dry_run:
        from kapell.cli.commands.task_write import create

        click.get_current_context().invoke(create, dry_run=True, **values)
        return
    wanted = new_task(**values)
    run_to_end(
        app,
        lambda client: client.tasks.create(wanted.agent_type, wanted.prompt, **wanted.fields),
        timeout=timeout,
        times=times,
    )


def run_to_end(
    app: App, create: Callable[[Client], Awaitable[Task]], *, timeout: float | None, times: bool
) -> NoReturn:
    """Creates a task, follows it, and ends the command with the exit code of its outcome."""
    from kapell.cli.following import Following

    async def work(client: Client) -> tuple[Task, list[Task]]:
        task = await create(client)
        app.reattach = (
            f"The task goes on. Re-attach with: kapell task logs --follow {task.task_id}\n"
            f"Stop it with: kapell task cancel {task.task_id}"
        )
        task = await Following(app, client, task, times=times).until_end(timeout)
        return task, await causes(client, task) if app.terminal.is_tty else []

    task, because = app.run(work)
    raise Done(_outcome(app, task, because))


def _outcome(app: App, /, task: Task, because: list[Task]) -> Exit:
    """Says how the task ended, and gives the exit code."""
    from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED

    look, terminal = task_look(task.state), app.terminal
    head = terminal.err(f"{look.mark} {look.word}" if terminal.marks else look.word, look.colour)
    if not look.final:
        note(f"{head}  {task.task_id} has not ended yet; it goes on")
        note(terminal.err(app.reattach, "dim"))
        exit = Exit.STILL_PENDING
    else:
        tries = f"  {task.attempts_used} attempts" if task.attempts_used > 1 else ""
        failure = f"  {visible(failure_text(task.failure))}" if task.HasField("failure") else ""
        is_good = task.state == TASK_STATE_SUCCEEDED
        note(f"{head}  {task.task_id}  {_took(task)}{tries}{'' if is_good else failure}")
        exit = Exit.DONE if is_good else exit_of(task)
        if not is_good and terminal.is_tty:
            for hint in hints(task, because):
                note(terminal.err(hint, "dim"))
    if not app.is_table:
        write_one(task, TASKS, terminal, app.output)
    return exit


def _took(task: Task) -> str:
    return f"in {short(seconds_between(task.create_time, task.end_time))}"
