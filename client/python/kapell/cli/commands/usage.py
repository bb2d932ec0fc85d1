"""`kapell usage`: what agents' work has used, and what work will cost."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.money import UNPRICED, cost_of, exact, shown
from kapell.cli.output import View, as_data, csv_safe, note, write, write_line, write_list, write_one
from kapell.cli.shape import command
from kapell.cli.table import Line, card
from kapell.cli.times import MOMENT_OR_AGE, iso
from kapell.cli.usage_views import sums_view

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapell import Client
    from kapell.v1.usage_pb2 import EstimateCostResponse, QueryUsageResponse, UsageRecord

_ESTIMATE = View(columns=(), id=lambda answer: exact(answer.cost) if answer.HasField("cost") else UNPRICED)
_BUCKETS = ("minute", "hour", "day", "week", "month")
_GROUPS = ("agent", "agent_type", "task", "root_task", "template", "model", "provider")


def _filter(function: Callable[..., Any]) -> Callable[..., Any]:
    """Which usage: --since, --until, --model, --provider, --task, --tree, --agent, --type, --template, --label."""
    for option in (
        click.option(
            "--since", "start", type=MOMENT_OR_AGE, metavar="TIME|AGE", help="From when on. [default: 30d ago]"
        ),
        click.option("--until", "end", type=MOMENT_OR_AGE, metavar="TIME|AGE", help="Until when. [default: now]"),
        click.option("--model", "models", multiple=True, metavar="MODEL", help="Of this model; may be repeated."),
        click.option("--provider", "providers", multiple=True, metavar="NAME", help="Paid to this provider."),
        click.option("--task", "task_ids", multiple=True, metavar="TASK_ID", help="For this task."),
        click.option("--tree", "root_task_ids", multiple=True, metavar="TASK_ID", help="For all below this root task."),
        click.option("--agent", "agent_ids", multiple=True, metavar="AGENT_ID", help="By this agent."),
        click.option("--type", "agent_types", multiple=True, metavar="TYPE", help="For tasks of this agent type."),
        click.option("--template", "template_ids", multiple=True, metavar="TEMPLATE_ID", help="Of this template."),
        options.labels("With this label; may be repeated."),
    ):
        function = option(function)
    return function


def _groups(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    for name in names:
        if name == "label:":
            raise click.BadParameter("a label needs its name, for example label:team", param_hint="--by")
        if name not in (*_GROUPS, *_BUCKETS) and not name.startswith("label:"):
            known = ", ".join((*_GROUPS, "label:NAME", *_BUCKETS))
            raise click.BadParameter(f"{name!r} is none of: {known}", param_hint="--by")
    if sum(name in _BUCKETS for name in names) > 1:
        raise click.BadParameter("name one length of time at most, for example day", param_hint="--by")
    return names


@command(
    "show",
    "Sum usage by time, model, agent, task or label; what has no price is said, and ~ marks estimates.",
    examples="""
        kapell usage show
        kapell usage show --by model,day --since 7d
        kapell usage show --by agent,model -o json
        kapell usage show --by label:team,month -z Europe/Berlin --since 2026-01-01
    """,
)
@click.option(
    "--by",
    default="model",
    callback=_groups,
    metavar="NAME,...",
    help="Any of agent, agent_type, task, root_task, template, model, provider, label:NAME, and one of minute to month."
    " [default: model]",
)
@click.option("-z", "--timezone", "zone", default="", metavar="ZONE", help="Of days, weeks and months. [default: UTC]")
@_filter
@options.output
@click.pass_obj
def show(app: App, /, by: tuple[str, ...], zone: str, labels: dict[str, str], **query: Any) -> None:
    from kapell.v1.usage_pb2 import USAGE_BUCKET_UNSPECIFIED

    bucket = next((name for name in by if name in _BUCKETS), "")
    groups = [name for name in by if name not in _BUCKETS]
    answer: QueryUsageResponse = app.run(
        lambda client: client.usage.query(
            by=groups, bucket=bucket or USAGE_BUCKET_UNSPECIFIED, time_zone=zone, labels=labels, **query
        )
    )
    if app.output in ("json", "yaml"):
        write_one(answer, sums_view(groups, bucket, zone, exact=True), app.terminal, app.output)
        return
    view = sums_view(groups, bucket, zone, exact=not app.terminal.is_tty)
    in_all = query["start"] is None and not (query["task_ids"] or query["root_task_ids"])
    time = "the last 30 days" if in_all and query["end"] is None else "this time"
    write_list(answer.rows, view, app.terminal, app.output, empty=f"Nothing was used in {time}.")
    if app.is_table and app.terminal.is_tty and answer.rows:
        write(f"Total{' of the last 30 days' if time != 'this time' else ''}: {cost_of(answer.total)}")
    for model in answer.unpriced_models:
        name = f"{model.provider}/{model.model}" if model.provider else model.model or "calls without a model"
        hint = f"No price is known for {name} (records: {model.records}). Set one with: kapell price set --help"
        note(app.terminal.err(hint, "yellow"))


_COLUMNS = (
    *("record_id", "version", "event_time", "provider", "model", "task_id", "attempt", "agent_id", "agent_type"),
    *("root_task_id", "template_id", "uncached_input_tokens", "cache_read_tokens", "cache_write_5m_tokens"),
    *("cache_write_1h_tokens", "output_tokens", "reasoning_tokens", "cost_usd", "cost_basis", "price_id", "basis"),
    "source",
)


@command(
    "export",
    "Print the records themselves, those recorded first at the top: as CSV, or as JSON, a line each.",
    examples="""
        kapell usage export --since 30d
        kapell usage export --format jsonl --since 7d --model gpt-5
    """,
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(("csv", "jsonl")),
    default="csv",
    metavar="csv|jsonl",
    help="What to print. [default: csv]",
)
@click.option("--superseded", is_flag=True, help="Also versions that were replaced, which count no more.")
@_filter
@options.server
@click.pass_obj
def export(app: App, /, format_: str, superseded: bool, labels: dict[str, str], **query: Any) -> None:
    import csv

    from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST

    if query["start"] is None and not (query["task_ids"] or query["root_task_ids"]):
        # What `usage show` sums.
        query["start"] = (query["end"] or datetime.now(UTC)) - timedelta(days=30)

    async def work(client: Client) -> None:
        table = csv.writer(sys.stdout, lineterminator="\n")
        if format_ == "csv":
            table.writerow(_COLUMNS)
        records = client.usage.iterate(
            order=LIST_ORDER_OLDEST_FIRST, include_superseded=superseded, labels=labels, **query
        )
        async for record in records:
            if format_ == "csv":
                table.writerow(_csv_row(record))
            else:
                write_line(as_data(record), "jsonl")

    app.run(work)
    sys.stdout.flush()


def _csv_row(record: UsageRecord) -> list[object]:
    """The record's values; the cost is exact, and the word "unpriced" where there is none."""
    from kapell.v1.usage_pb2 import UsageBasis

    def value(name: str) -> object:
        match name:
            case "event_time":
                return iso(record.event_time)
            case "cost_usd":
                return exact(record.cost) if record.HasField("cost") else UNPRICED
            case "cost_basis" | "basis":
                word = UsageBasis.Name(getattr(record, name)).removeprefix("USAGE_BASIS_").lower()
                return "" if word == "unspecified" else word
            case _ if name.endswith("_tokens"):
                return getattr(record.tokens, name)
            case _:
                return csv_safe(getattr(record, name))

    return [value(name) for name in _COLUMNS]


@command(
    "estimate",
    "Tell what work will cost: runs of a model by its price, or of a template by what its tasks did cost.",
    examples="""
        kapell usage estimate --model gpt-5 --input-tokens 20000 --output-tokens 3000 --runs 100
        kapell usage estimate --model claude-sonnet-4-5 --input-tokens 50000 --cache-read 40000 --output-tokens 2000
        kapell usage estimate --template code-review --runs 20
    """,
)
@click.option("--model", default="", metavar="MODEL", help="The model of one run.")
@click.option("--provider", default="", metavar="NAME", help="Its provider, where more than one has it.")
@click.option(
    "--input-tokens", "input_", type=click.IntRange(0), default=0, metavar="N", help="All input tokens of one run."
)
@click.option("--cache-read", type=click.IntRange(0), default=0, metavar="N", help="Those of them read from a cache.")
@click.option("--cache-write", type=click.IntRange(0), default=0, metavar="N", help="Those written to one for 5 min.")
@click.option("--output-tokens", "output_", type=click.IntRange(0), default=0, metavar="N", help="Output.")
@click.option("--tier", default="", metavar="NAME", help="The tier of service, for example batch.")
@click.option("--template", "template_id", default="", metavar="TEMPLATE_ID", help="A template instead of a model.")
@click.option("--runs", type=click.IntRange(1), default=1, metavar="N", help="How many runs. [default: 1]")
@options.output
@click.pass_obj
def estimate(app: App, /, **said: Any) -> None:
    if bool(said["model"]) is bool(said["template_id"]):
        raise click.UsageError("Name a model with --model, or a template with --template; one of the two.")
    if said["cache_read"] + said["cache_write"] > said["input_"]:
        raise click.UsageError("--cache-read and --cache-write are parts of --input-tokens, which is less.")
    from kapell.records import usage_record

    record = usage_record(
        input_tokens=said["input_"],
        cache_read_tokens=said["cache_read"],
        cache_write_5m_tokens=said["cache_write"],
        output_tokens=said["output_"],
    )
    answer = app.run(
        lambda client: client.usage.estimate(
            model=said["model"],
            provider=said["provider"],
            tokens=record.tokens if said["model"] else None,
            service_tier=said["tier"],
            template_id=said["template_id"],
            runs=said["runs"],
        )
    )
    _write_estimate(app, answer, said["runs"])


def _write_estimate(app: App, answer: EstimateCostResponse, runs: int) -> None:
    if not app.is_table:
        write_one(answer, _ESTIMATE, app.terminal, app.output)
        return
    for line in card(_estimate_lines(answer, runs, is_tty=app.terminal.is_tty), app.terminal):
        write(line)
    if answer.note:
        note(app.terminal.err(answer.note, "yellow"))
    if not answer.HasField("cost") and not answer.HasField("history"):
        note(app.terminal.err("See which models have a price with: kapell price list", "dim"))


def _estimate_lines(answer: EstimateCostResponse, runs: int, *, is_tty: bool) -> list[Line]:
    amount = shown if is_tty else exact
    unknown = UNPRICED if answer.price_id or not answer.HasField("history") else "not known"
    cost = amount(answer.cost) + (f" for {_runs(runs)}" if is_tty else "") if answer.HasField("cost") else unknown
    return [
        Line("Cost", cost),
        Line("Each", amount(answer.cost_per_run) if answer.HasField("cost") and runs > 1 else ""),
        Line("P95", amount(answer.cost_p95) if answer.HasField("cost_p95") else ""),
        Line("Price", answer.price_id),
        Line("From", f"{answer.history.tasks} ended tasks" if answer.history.tasks else ""),
    ]


def _runs(runs: int) -> str:
    return "one run" if runs == 1 else f"{runs:,} runs"
