"""What happens when a schedule's time has come: which runs are made, skipped, queued or missed.

Each time of the calendar is dealt with once: `next_schedule_time` is a cursor that moves past it in
the same change that records what became of it. A run is late by what the server was down, the
schedule paused, or the clock set forward; all three look the same here. What the overlap policy
looks at is every run that lives (`schedule_lives`), with all that is below its task.
"""

from __future__ import annotations

from kapell.v1.schedule_pb2 import (
    OVERLAP_POLICY_ALLOW,
    OVERLAP_POLICY_CANCEL,
    OVERLAP_POLICY_QUEUE,
    SCHEDULE_OUTCOME_MISSED,
    SCHEDULE_OUTCOME_QUEUED,
    SCHEDULE_OUTCOME_REFUSED,
    SCHEDULE_OUTCOME_SKIPPED,
    SCHEDULE_OUTCOME_TASK_CREATED,
    OverlapPolicy,
    Schedule,
    ScheduleOutcome,
)
from kapell.v1.task_pb2 import Task
from kapell.v1.watch_pb2 import (
    EVENT_KIND_SCHEDULE_MISSED,
    EVENT_KIND_SCHEDULE_QUEUED,
    EVENT_KIND_SCHEDULE_REFUSED,
    EVENT_KIND_SCHEDULE_SKIPPED,
    EVENT_KIND_SCHEDULE_TRIGGERED,
)

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.schedules.schedule_times import Calendar, calendar_of
from kapell_server.domain.state import State
from kapell_server.domain.tasks import task
from kapell_server.domain.times import SECOND, duration_ns, stamp, timestamp_ns
from kapell_server.domain.transitions import TASK_FINAL

IN_TIME_NS = 10 * SECOND
"""A run that is late by no more than this is in time, whatever the catch-up window: a busy moment is no miss."""
MOST_COUNTED = 1000
"""Times of one gap that are counted; a gap may be long, and the writer waits meanwhile."""
_MESSAGE_LENGTH = 1000


def calendar_for(schedule: Schedule) -> Calendar:
    """The times of a schedule; one without a start begins with its creation, to the second."""
    create_ns = timestamp_ns(schedule.create_time)
    return calendar_of(schedule.spec, create_ns - create_ns % SECOND)


def plan(state: State, schedule: Schedule, at_ns: int) -> None:
    """Makes `at_ns` the next time of a schedule that is being changed; 0 for none. Draws the jitter, once."""
    schedule.ClearField("next_run_time")
    schedule.ClearField("next_schedule_time")
    if not at_ns:
        return
    stamp(schedule.next_schedule_time, at_ns)
    if schedule.paused:
        return
    run_ns = at_ns
    jitter_ns = duration_ns(schedule.spec.jitter)
    if jitter_ns and at_ns > state.now_ns:
        following = calendar_for(schedule).after(at_ns)
        room = min(jitter_ns, following - at_ns - 1) if following else jitter_ns
        run_ns += int(state.random.random() * room)
    stamp(schedule.next_run_time, run_ns)


def wake(state: State, schedule: Schedule) -> None:
    """Asks for a look when the schedule needs one next."""
    if schedule.paused:
        return
    state.schedule(timestamp_ns(schedule.next_run_time), schedule.schedule_id)
    if schedule.HasField("queued_schedule_time") and not state.schedule_lives.of(schedule.schedule_id):
        state.schedule(state.now_ns, schedule.schedule_id)


def look_at_schedule(state: State, schedule_id: str) -> None:
    """Does what time asks of a schedule: the queued run whose way is free, then what is due."""
    schedule = state.standing.find(Schedule, schedule_id)
    if schedule is None or schedule.paused:
        return
    if schedule.HasField("queued_schedule_time") and not state.schedule_lives.of(schedule.schedule_id):
        freed = copied(schedule)
        freed.ClearField("queued_schedule_time")
        _start(state, freed, timestamp_ns(schedule.queued_schedule_time), ("queued_schedule_time",))
        schedule = state.standing.find(Schedule, schedule_id)
        assert schedule is not None
    run_ns = timestamp_ns(schedule.next_run_time)
    if run_ns and run_ns <= state.now_ns:
        _run_due(state, schedule, run_ns)
        schedule = state.standing.find(Schedule, schedule_id)
        assert schedule is not None
    wake(state, schedule)


def _run_due(state: State, current: Schedule, run_ns: int) -> None:
    """Accounts for every time that has passed; makes one run, for the latest, unless it is too late for that."""
    now_ns = state.now_ns
    calendar = calendar_for(current)
    first_ns = timestamp_ns(current.next_schedule_time)
    latest_ns = calendar.latest(first_ns, now_ns)
    window_ns = max(duration_ns(current.spec.catch_up_window), IN_TIME_NS)
    passed = calendar.count(first_ns, latest_ns, MOST_COUNTED) if latest_ns > first_ns else 1
    schedule = copied(current)
    plan(state, schedule, calendar.after(latest_ns))
    changed: tuple[str, ...] = ("next_schedule_time", "next_run_time")
    late_ns = now_ns - (run_ns if latest_ns == first_ns else latest_ns)
    if late_ns > window_ns:
        schedule.missed_count += passed
        text = "its time" if passed == 1 else f"the last of {_many(passed)} times"
        _note(state, schedule, SCHEDULE_OUTCOME_MISSED, latest_ns, message=f"{text} had passed by {_length(late_ns)}")
        state.standing.put(schedule, EVENT_KIND_SCHEDULE_MISSED, (*changed, "missed_count", "last_run"))
        return
    if latest_ns > first_ns:
        begin_ns = max(first_ns, calendar.after(now_ns - window_ns - 1))
        joined = calendar.count(begin_ns, latest_ns, MOST_COUNTED) - 1
        missed = max(0, passed - joined - 1)
        schedule.coalesced_count += joined
        schedule.missed_count += missed
        changed += ("coalesced_count",) * bool(joined) + ("missed_count",) * bool(missed)
    make_run(state, schedule, latest_ns, changed, schedule.spec.overlap_policy)


def make_run(
    state: State,
    schedule: Schedule,
    at_ns: int,
    changed: tuple[str, ...],
    policy: OverlapPolicy.ValueType,
    *,
    by_hand: bool = False,
) -> Task | None:
    """One run as the overlap policy has it, and the put of `schedule`, which is owned from here on.

    Returns the task that was made. Where it cannot be made, that is recorded, or raised if `by_hand`.
    """
    if policy == OVERLAP_POLICY_ALLOW or not state.schedule_lives.of(schedule.schedule_id):
        return _start(state, schedule, at_ns, changed, by_hand=by_hand)
    if policy == OVERLAP_POLICY_CANCEL:
        return _start(state, schedule, at_ns, changed, by_hand=by_hand, cancel_live=True)
    in_the_way = state.schedule_lives.of(schedule.schedule_id)[0]
    if policy == OVERLAP_POLICY_QUEUE:
        if schedule.HasField("queued_schedule_time"):
            schedule.coalesced_count += 1
            changed += ("coalesced_count",)
        stamp(schedule.queued_schedule_time, at_ns)
        _note(state, schedule, SCHEDULE_OUTCOME_QUEUED, at_ns, task_id=in_the_way)
        state.standing.put(schedule, EVENT_KIND_SCHEDULE_QUEUED, (*changed, "queued_schedule_time", "last_run"))
        return None
    schedule.skipped_count += 1
    _note(state, schedule, SCHEDULE_OUTCOME_SKIPPED, at_ns, task_id=in_the_way)
    state.standing.put(schedule, EVENT_KIND_SCHEDULE_SKIPPED, (*changed, "skipped_count", "last_run"))
    return None


def _start(
    state: State,
    schedule: Schedule,
    at_ns: int,
    changed: tuple[str, ...],
    *,
    by_hand: bool = False,
    cancel_live: bool = False,
) -> Task | None:
    mark = state.mark()
    schedule_id = schedule.schedule_id
    try:
        if cancel_live:
            _cancel_live(state, schedule_id)
        made = task.create_scheduled(state, state.schedule_tasks.get(schedule_id), schedule_id, at_ns)
    except KapellError as error:
        if by_hand:
            raise
        state.rollback(mark)
        schedule.refused_count += 1
        _note(state, schedule, SCHEDULE_OUTCOME_REFUSED, at_ns, message=error.message, reason=error.reason_name)
        state.standing.put(schedule, EVENT_KIND_SCHEDULE_REFUSED, (*changed, "refused_count", "last_run"))
        return None
    schedule.run_count += 1
    schedule.last_task_id = made.task_id
    _note(state, schedule, SCHEDULE_OUTCOME_TASK_CREATED, at_ns, task_id=made.task_id)
    state.standing.put(schedule, EVENT_KIND_SCHEDULE_TRIGGERED, (*changed, "run_count", "last_task_id", "last_run"))
    return made


def _cancel_live(state: State, schedule_id: str) -> None:
    """Cancels what lives of all runs; also what lives on below a task that has ended or is gone."""
    reason = f"cancelled by the next run of {schedule_id}"
    for run_id in state.schedule_lives.of(schedule_id):
        top = state.find_task(run_id)
        if top is not None:
            task.cancel_tree(state, top, reason)
            continue
        for task_id in list(state.families.of(run_id)):
            member = state.task(task_id)
            if member.state not in TASK_FINAL:
                task.cancel(state, member, reason)


def _note(
    state: State,
    schedule: Schedule,
    outcome: ScheduleOutcome.ValueType,
    at_ns: int,
    *,
    task_id: str = "",
    message: str = "",
    reason: str = "",
) -> None:
    """Makes this the last run."""
    run = schedule.last_run
    run.Clear()
    run.outcome, run.task_id, run.message, run.reason = outcome, task_id, message[:_MESSAGE_LENGTH], reason
    stamp(run.schedule_time, at_ns)
    stamp(run.run_time, state.now_ns)


def _many(count: int) -> str:
    return f"at least {count}" if count >= MOST_COUNTED else str(count)


def _length(ns: int) -> str:
    seconds = ns // SECOND
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
