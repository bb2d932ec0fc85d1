"""What `task run` and `task create` ask about a new task, and how it becomes the SDK's arguments."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from kapell.cli import options
from kapell.cli.times import DURATION, MOMENT

_F = TypeVar("_F", bound=Callable[..., Any])

_ID = click.option("--id", "task_id", metavar="TASK_ID", help="An id of your choice, task_…; it makes repeating safe.")
_AFTER = click.option(
    "--after",
    "dependencies",
    multiple=True,
    metavar="TASK_ID[:WHEN]",
    help="Wait until that task has succeeded; WHEN may be started, or finished: ended in any way. May be repeated.",
)
_LIMITS = (
    options.labels("A label; may be repeated."),
    click.option("--not-before", type=MOMENT, metavar="TIME", help="Start no earlier: 10m from now, or a time."),
    click.option("--queue-timeout", type=DURATION, metavar="DURATION", help="Fail when no agent took it by then."),
    click.option("--run-timeout", type=DURATION, metavar="DURATION", help="Stop an attempt that takes longer."),
    click.option("--total-timeout", type=DURATION, metavar="DURATION", help="Fail when it has not ended by then."),
)


def _people(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> list[str]:
    """Actors as a policy names them: "ada" is "user:ada"."""
    return [value if ":" in value else f"user:{value}" for value in values]


_SHARES = (
    click.option("--needs-approval", is_flag=True, help="Somebody must approve its start, see `kapell approval`."),
    click.option(
        "--approver",
        "approvers",
        multiple=True,
        metavar="WHO",
        callback=_people,
        help="Who may: a user's name, or agent:ID; may be repeated. [default: whoever may approve]",
    ),
    click.option("--quorum", type=click.IntRange(1, 10), metavar="N", help="How many must. [default: 1]"),
    click.option("--approve-within", type=DURATION, metavar="DURATION", help="How long there is. [default: 24h]"),
    click.option(
        "--on-expiry",
        type=click.Choice(("deny", "hold", "escalate")),
        help="Then: fail it, wait on, or let others decide as well. [default: hold]",
    ),
    click.option(
        "--escalate-to", multiple=True, metavar="WHO", callback=_people, help="Those others; may be repeated."
    ),
    click.option("--fairness-key", metavar="KEY", help="Whose share of the agents it uses: a team, a user, a project."),
    click.option(
        "--concurrency-key",
        "concurrency_keys",
        multiple=True,
        metavar="KEY",
        callback=lambda _ctx, _param, values: values or None,
        help="What only so many tasks may use at a time, see `kapell limit`; may be repeated.",
    ),
    click.option("--estimate", metavar="AMOUNT", help="What an attempt uses at most: '$0.20', or '$0.20, 50k tokens'."),
    click.option(
        "--budget",
        "budget_id",
        metavar="BUDGET",
        callback=lambda _ctx, _param, value: value and "budget_" + value.removeprefix("budget_"),
        help="A budget that it draws from, besides those whose scope it is in.",
    ),
)
LOCKS = (
    click.option(
        "--lock",
        "locks",
        multiple=True,
        metavar="PATH",
        callback=lambda _ctx, _param, values: values or None,
        help="What nobody else may have while it runs, and all below: repo/src, port/8080. May be repeated.",
    ),
    click.option(
        "--lock-shared",
        "--read-lock",
        "read_locks",
        multiple=True,
        metavar="PATH",
        callback=lambda _ctx, _param, values: values or None,
        help="What others may only read while it runs. May be repeated.",
    ),
)
_PARAMETERS = (
    click.argument("prompt", nargs=-1, metavar="[PROMPT]..."),
    click.option("-t", "--type", "agent_type", required=True, metavar="TYPE", help="Which agents may take it."),
    click.option("-f", "--file", metavar="FILE", help="Read the prompt from a file; - is stdin."),
    click.option("--name", metavar="TEXT", help="A name for people. [default: the prompt's first line]"),
    _ID,
    click.option(
        "-i", "--input", "inputs", multiple=True, metavar="KEY=VALUE", help="A parameter; JSON where it parses."
    ),
    click.option("--input-json", metavar="OBJECT", help="All parameters as one JSON object; - is stdin."),
    click.option(
        "-p", "--priority", type=click.IntRange(0, 1000), metavar="0-1000", help="Higher runs first. [default: 500]"
    ),
    *_LIMITS[:2],
    _AFTER,
    click.option("--max-attempts", type=click.IntRange(1, 100), metavar="N", help="Attempts in all. [default: 3]"),
    *_LIMITS[2:],
    *_SHARES,
    *LOCKS,
    options.secrets,
)
_OF_TEMPLATE = (
    click.option("-t", "--type", "agent_type", default="", metavar="TYPE", help="Other agents than the template says."),
    click.option("--name", metavar="TEXT", help="A name for people. [default: as the template says]"),
    _ID,
    click.option(
        "-p",
        "--priority",
        type=click.IntRange(0, 1000),
        metavar="0-1000",
        help="Higher runs first. [default: as the template says]",
    ),
    *_LIMITS[:2],
    _AFTER,
    click.option(
        "--max-attempts",
        type=click.IntRange(1, 100),
        metavar="N",
        help="Attempts in all. [default: as the template says]",
    ),
    *_LIMITS[2:],
    *_SHARES,
    *LOCKS,
    options.secrets,
)


def task_fields(function: _F) -> _F:
    """Adds the parameters above; the command gets them as keywords and hands them to `new_task`."""
    for parameter in reversed(_PARAMETERS):
        function = parameter(function)
    return function


def fields_of_template(function: _F) -> _F:
    """Adds what may be said of a task besides its template; the command hands it to `fields_given`."""
    for parameter in reversed(_OF_TEMPLATE):
        function = parameter(function)
    return function


@dataclass(frozen=True)
class NewTask:
    """The arguments of `client.tasks.create`."""

    agent_type: str
    prompt: str
    fields: dict[str, Any]


def new_task(
    *,
    agent_type: str,
    prompt: tuple[str, ...],
    file: str | None,
    name: str | None,
    task_id: str | None,
    inputs: tuple[str, ...],
    input_json: str | None,
    labels: dict[str, str],
    not_before: float | None,
    **rest: Any,
) -> NewTask:
    """A new task as it was asked for. Several words of a prompt are joined as a shell would quote them."""
    given = fields_given(
        name=name,
        task_id=task_id,
        labels=labels,
        not_before=not_before,
        input=options.input_data(inputs, input_json),
        **rest,
    )
    text = _prompt(prompt, file)
    check_not_empty(text, given.get("input"))
    return NewTask(agent_type, text, given)


def fields_given(
    *,
    name: str | None,
    labels: dict[str, str],
    not_before: float | None,
    dependencies: tuple[str, ...] = (),
    needs_approval: bool = False,
    approvers: Sequence[str] = (),
    quorum: int | None = None,
    approve_within: float | None = None,
    on_expiry: str | None = None,
    escalate_to: Sequence[str] = (),
    **rest: Any,
) -> dict[str, Any]:
    """What was said of a task, as keywords of `client.tasks.create`."""
    said = {
        "approvers": approvers,
        "quorum": quorum,
        "timeout": approve_within,
        "on_expiry": on_expiry,
        "escalate_to": escalate_to,
    }
    fields: dict[str, Any] = {
        "approval": _policy(needs_approval, {key: value for key, value in said.items() if value}),
        "dependencies": dependencies or None,
        "display_name": name,
        "labels": labels or None,
        "not_before": None if not_before is None else datetime.fromtimestamp(not_before, UTC),
        **rest,
    }
    return {key: value for key, value in fields.items() if value is not None}


def _policy(is_needed: bool, said: dict[str, Any]) -> Any:
    """The policy that was said; None where its start needs no approval. UsageError for one without need."""
    if not is_needed:
        if said:
            raise click.UsageError("Say --needs-approval as well, else nobody is asked.")
        return None
    if said.get("escalate_to") and said.get("on_expiry") != "escalate":
        raise click.UsageError("--escalate-to is for --on-expiry escalate.")
    from kapell.approvals import approval_policy

    return approval_policy(**said)


def _prompt(words: tuple[str, ...], file: str | None) -> str:
    if file is not None and words:
        raise click.UsageError("The prompt was given twice, as an argument and by --file.")
    if file is not None:
        return options.text_of(file, "--file")
    return words[0] if len(words) == 1 else shlex.join(words)


def check_not_empty(prompt: str, *others: object) -> None:
    """Refuses a task without anything to do: no prompt, and no input either."""
    if not prompt.strip() and not any(others):
        raise click.UsageError("There is nothing to do: give a PROMPT, --file, or --input.")
