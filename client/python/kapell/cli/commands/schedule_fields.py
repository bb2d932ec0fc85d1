"""What `schedule create` and `update` ask: when a schedule runs, how, and which task it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kapell.cli import options
from kapell.cli.parameters import parameters_of
from kapell.cli.times import DURATION, MOMENT

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.schedule_pb2 import ScheduleSpec
    from kapell.v1.task_pb2 import TaskSpec

_F = TypeVar("_F", bound=Callable[..., Any])

POLICIES = click.Choice(["skip", "queue", "cancel", "allow"])
_CALENDAR = (
    click.option("--cron", metavar="EXPR", help="Five fields, as in '0 3 * * MON-FRI', or @hourly, @daily, @weekly …"),
    click.option("--every", type=DURATION, metavar="DURATION", help="At every multiple of it from the start on."),
    click.option("-z", "--timezone", metavar="ZONE", help="Of --cron, as in Europe/Berlin. [default: UTC]"),
    click.option("--start", type=MOMENT, metavar="TIME", help="No run before: 2h from now, or a time."),
    click.option("--end", type=MOMENT, metavar="TIME", help="No run from then on."),
)
_HOW = (
    click.option("--overlap", type=POLICIES, help="When the last task has not ended. [default: skip]"),
    click.option("--jitter", type=DURATION, metavar="DURATION", help="Put each run off by up to so much, at random."),
    click.option(
        "--catch-up",
        type=DURATION,
        metavar="DURATION",
        help="Make up for a run that is late by at most this. [default: 1h]",
    ),
    click.option("--name", metavar="TEXT", help="A name for people."),
)
_TASK = (
    click.option("--template", metavar="TEMPLATE", help="Make its tasks from this template."),
    click.option("-t", "--type", "agent_type", metavar="TYPE", help="Which agents take its tasks."),
    click.option("--prompt", metavar="TEXT", help="What is to be done, where there is no template."),
    click.option("-f", "--file", metavar="FILE", help="Read the prompt from a file; - is stdin."),
    click.option(
        "-i",
        "--input",
        "inputs",
        multiple=True,
        metavar="KEY=VALUE",
        help="Besides the prompt; JSON where it parses.",
    ),
    click.option("-p", "--priority", type=click.IntRange(0, 1000), metavar="0-1000", help="Of its tasks."),
    options.labels("A label of its tasks; may be repeated."),
    click.option("--max-attempts", type=click.IntRange(1, 100), metavar="N", help="Attempts in all at a task."),
    click.option("--run-timeout", type=DURATION, metavar="DURATION", help="Stop an attempt that takes longer."),
)


def calendar_fields(function: _F) -> _F:
    """--cron, --every, --timezone, --start and --end; the command hands them to `calendar_given`."""
    return _with(_CALENDAR, function)


def how_fields(function: _F) -> _F:
    """--overlap, --jitter, --catch-up and --name; the command hands them to `how_given`."""
    return _with(_HOW, function)


def task_fields(function: _F) -> _F:
    """The task; the command hands it to `task_given`. `--param` is added by `parameters`."""
    return _with(_TASK, function)


def _with(parameters: tuple[Any, ...], function: _F) -> _F:
    for parameter in reversed(parameters):
        function = parameter(function)
    return function


def calendar_given(
    *, cron: str | None, every: float | None, timezone: str | None, start: float | None, end: float | None
) -> dict[str, Any]:
    """The calendar as keywords of the SDK, what was not said left out."""
    if cron is not None and every is not None:
        raise click.UsageError("Give --cron or --every, not both.")
    if timezone is not None and every is not None:
        raise click.UsageError("--timezone is for --cron: an interval is the same in every zone. Leave it out.")
    fields = {
        "cron": cron,
        "interval": every,
        "time_zone": timezone,
        "start_time": None if start is None else datetime.fromtimestamp(start, UTC),
        "end_time": None if end is None else datetime.fromtimestamp(end, UTC),
    }
    return {name: value for name, value in fields.items() if value is not None}


def how_given(*, overlap: str | None, jitter: float | None, catch_up: float | None, name: str | None) -> dict[str, Any]:
    """How it runs as keywords of the SDK, what was not said left out."""
    fields = {"overlap_policy": overlap, "jitter": jitter, "catch_up_window": catch_up, "display_name": name}
    return {name: value for name, value in fields.items() if value is not None}


def calendar_of(spec: ScheduleSpec) -> dict[str, Any]:
    """The calendar of a schedule that there is, as keywords of the SDK."""
    fields: dict[str, Any] = {"time_zone": spec.time_zone}
    for name, keyword in (("cron", "cron"), ("interval", "interval"), ("start_time",) * 2, ("end_time",) * 2):
        if spec.HasField(name):  # type: ignore[arg-type]
            fields[keyword] = getattr(spec, name)
    return fields


async def task_given(
    client: Client,
    *,
    template: str | None,
    agent_type: str | None,
    prompt: str | None,
    file: str | None,
    inputs: tuple[str, ...],
    params: tuple[str, ...],
    params_json: str | None,
    labels: Mapping[str, str],
    **rest: Any,
) -> TaskSpec | None:
    """The task that was asked for; None where nothing was said of it."""
    from kapell.task_specs import task_spec

    fields = {name: value for name, value in rest.items() if value is not None}
    if labels:
        fields["labels"] = labels
    text = _prompt(prompt, file)
    if template is not None:
        if text or inputs:
            raise click.UsageError("With --template there is no prompt and no --input; pass --param.")
        found = await client.templates.get(template)
        given = parameters_of(found, params, params_json)
        return task_spec(agent_type or "", template=template, parameters=given, **fields)
    if params or params_json is not None:
        raise click.UsageError("--param and --params-json go with --template.")
    if agent_type is None:
        if text or inputs or fields:
            raise click.UsageError("The task needs --template, or --type (and mostly --prompt).")
        return None
    if inputs:
        fields["input"] = options.input_data(inputs, None)
    if not text.strip() and not inputs:
        raise click.UsageError("Its tasks have nothing to do: give --prompt, --file or --input.")
    return task_spec(agent_type, text, **fields)


def _prompt(prompt: str | None, file: str | None) -> str:
    if file is None:
        return prompt or ""
    if prompt is not None:
        raise click.UsageError("The prompt was given twice, by --prompt and by --file.")
    return options.text_of(file, "--file")
