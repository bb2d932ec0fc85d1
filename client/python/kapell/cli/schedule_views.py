"""How schedules, their runs and previews are shown: their columns and cards."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from kapell.cli import times
from kapell.cli.output import View, as_data
from kapell.cli.table import Cell, Column, Line
from kapell.cli.times import until
from kapell.cli.views import labels_text

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from kapell.v1.schedule_pb2 import Schedule, ScheduleRun, ScheduleSpec, TriggerScheduleResponse

_OUTCOMES = {1: ("ran", "green"), 2: ("skipped", "yellow"), 3: ("queued", "plain"), 4: ("missed", "yellow")}
_OUTCOMES |= {5: ("refused", "red")}
_POLICIES = {1: "skip", 2: "queue", 3: "cancel", 4: "allow"}
PREFIX = "schedule_"


def short_id(schedule_id: str) -> str:
    """The id as people type it: "nightly"."""
    return schedule_id.removeprefix(PREFIX)


def when_text(spec: ScheduleSpec) -> str:
    """A calendar in a few words: "0 3 * * * Europe/Berlin", "every 6h 00m"."""
    if spec.HasField("interval"):
        return f"every {times.short(spec.interval.seconds + spec.interval.nanos / 1e9)}"
    return f"{spec.cron} {spec.time_zone or 'UTC'}"


def _name(schedule: Schedule) -> str:
    """Its name where that is not its id."""
    name = schedule.spec.display_name
    return "-" if name == short_id(schedule.schedule_id) else name


def _task_text(spec: ScheduleSpec) -> str:
    return spec.task.template or spec.task.agent_type


def _next(schedule: Schedule) -> Cell:
    if schedule.paused:
        return Cell("paused", "yellow", "‖")
    if not schedule.HasField("next_run_time"):
        return Cell("ended", "dim", "⊘")
    return Cell(until(schedule.next_run_time))


def outcome(run: ScheduleRun) -> Cell:
    """What became of a run, as a word; empty before the first."""
    word, colour = _OUTCOMES.get(run.outcome, ("-", "dim"))
    return Cell(word, colour)


def _last(schedule: Schedule) -> Cell:
    cell = outcome(schedule.last_run)
    return Cell(f"{cell.text} {times.age(schedule.last_run.run_time)} ago", cell.colour) if cell.text != "-" else cell


def _last_lines(run: ScheduleRun) -> str:
    """What became of the last run, in words."""
    if not run.outcome:
        return ""
    told = f"{outcome(run).text} at {times.local(run.run_time)} for {times.local(run.schedule_time)}"
    of_task = f"{'behind ' if run.outcome in (2, 3) else ''}{run.task_id}" if run.task_id else ""
    return "\n".join(part for part in (told, of_task, run.message) if part)


def _counts(schedule: Schedule) -> str:
    named = (
        ("ran", schedule.run_count),
        ("skipped", schedule.skipped_count),
        ("joined with a later one", schedule.coalesced_count),
        ("missed", schedule.missed_count),
        ("refused", schedule.refused_count),
    )
    return ", ".join(f"{count} {name}" for name, count in named if count) or "none yet"


def _overlap(spec: ScheduleSpec) -> str:
    return _POLICIES.get(spec.overlap_policy, "skip")


def _card(schedule: Schedule) -> list[Line]:
    spec, task = schedule.spec, schedule.spec.task
    at, queued = times.local(schedule.next_run_time), times.local(schedule.queued_schedule_time)
    return [
        Line("Schedule", schedule.schedule_id),
        Line("Name", spec.display_name),
        Line("When", when_text(spec)),
        Line("Next", f"{at}, {until(schedule.next_run_time)}" if at else _next(schedule)),
        Line("Paused", schedule.pause_reason),
        Line("Queued", f"the run for {queued}" if queued else ""),
        Line("From", times.local(spec.start_time)),
        Line("Until", times.local(spec.end_time)),
        Line("Jitter", f"up to {times.short(spec.jitter.seconds)}" if spec.jitter.seconds else ""),
        Line("Overlap", _overlap(spec)),
        Line("Catch-up", f"within {times.short(spec.catch_up_window.seconds)}"),
        Line("Last run", _last_lines(schedule.last_run)),
        Line("Runs", _counts(schedule)),
        Line("Template", task.template),
        Line("Type", task.agent_type),
        Line("Labels", labels_text(task.labels)),
        Line("Parameters", _json(task.parameters) if task.HasField("parameters") else ""),
        Line("Input", _json(task.input) if task.HasField("input") else ""),
        Line("Prompt", task.prompt.rstrip("\n")),
        Line("By", schedule.creator.id),
        Line("Created", times.local(schedule.create_time)),
    ]


def _json(value: Any) -> str:
    import json

    return json.dumps(as_data(value), ensure_ascii=False, indent=2, sort_keys=True)


SCHEDULES = View(
    columns=(
        Column("SCHEDULE", lambda s: Cell(short_id(s.schedule_id))),
        Column("WHEN", lambda s: when_text(s.spec)),
        Column("NEXT", _next),
        Column("LAST", _last),
        Column("TASK", lambda s: _task_text(s.spec), flexible=True),
        Column("NAME", _name, flexible=True),
        Column("NEXT TIME", lambda s: times.iso(s.next_run_time) or "-", wide=True),
        Column("OVERLAP", lambda s: _overlap(s.spec), wide=True),
        Column("RUNS", lambda s: str(s.run_count), wide=True, right=True),
        Column("SKIPPED", lambda s: str(s.skipped_count), wide=True, right=True),
        Column("MISSED", lambda s: str(s.missed_count), wide=True, right=True),
        Column("AGE", lambda s: times.age(s.create_time), wide=True, right=True),
    ),
    id=lambda s: s.schedule_id,
    card=_card,
    brief=(
        Column("SCHEDULE", lambda s: Cell(short_id(s.schedule_id))),
        Column("WHEN", lambda s: when_text(s.spec)),
        Column("NEXT", _next),
        Column("NAME", _name, flexible=True),
    ),
)


def _run_card(answer: TriggerScheduleResponse) -> list[Line]:
    return [
        Line("Schedule", answer.schedule.schedule_id),
        Line("Run", outcome(answer.schedule.last_run)),
        Line("Task", answer.task.task_id),
    ]


RUNS = View(
    columns=(
        Column("SCHEDULE", lambda r: Cell(short_id(r.schedule.schedule_id))),
        Column("RUN", lambda r: outcome(r.schedule.last_run)),
        Column("TASK", lambda r: r.task.task_id or "-"),
    ),
    id=lambda r: r.task.task_id,
    card=_run_card,
)


def times_view(zone: str) -> View:
    """How the times of a preview are shown, by the clocks of the zone first."""

    def there(moment: Timestamp) -> str:
        from zoneinfo import ZoneInfo

        return datetime.fromtimestamp(moment.seconds, ZoneInfo(zone)).strftime("%a %Y-%m-%d %H:%M:%S %z")

    columns = (Column("TIME", there), Column("IN UTC", times.iso), Column("WHEN", until))
    return View(columns=columns, id=times.iso)
