"""What clients may do to a schedule: create, update, pause, resume, trigger, delete."""

from __future__ import annotations

from kapell.v1.error_pb2 import (
    ERROR_REASON_ID_TAKEN,
    ERROR_REASON_REQUEST_INVALID,
    ERROR_REASON_SCHEDULE_LIMIT,
    ERROR_REASON_SCHEDULE_NOT_FOUND,
)
from kapell.v1.schedule_pb2 import (
    OVERLAP_POLICY_SKIP,
    CreateScheduleRequest,
    DeleteScheduleRequest,
    DeleteScheduleResponse,
    PauseScheduleRequest,
    ResumeScheduleRequest,
    Schedule,
    ScheduleSpec,
    TriggerScheduleRequest,
    TriggerScheduleResponse,
    UpdateScheduleRequest,
)
from kapell.v1.task_pb2 import TaskSpec
from kapell.v1.watch_pb2 import (
    EVENT_KIND_SCHEDULE_CREATED,
    EVENT_KIND_SCHEDULE_DELETED,
    EVENT_KIND_SCHEDULE_PAUSED,
    EVENT_KIND_SCHEDULE_RESUMED,
    EVENT_KIND_SCHEDULE_UPDATED,
    EventKind,
)

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.schedules.schedule_run import calendar_for, look_at_schedule, make_run, plan, wake
from kapell_server.domain.schedules.schedule_tasks import without_content
from kapell_server.domain.schedules.schedule_times import CalendarError
from kapell_server.domain.state import State
from kapell_server.domain.tasks.task import check_etag, try_task
from kapell_server.domain.times import stamp, timestamp_ns

PREFIX = "schedule_"
_CATCH_UP_SECONDS = 3600
_OF_CALENDAR = frozenset({"cron", "interval", "time_zone", "start_time", "end_time"})


def create_schedule(state: State, request: CreateScheduleRequest) -> Schedule:
    """Creates a schedule; its first run is at the first time after now."""
    _refuse_beyond_limit(state)
    schedule_id = request.schedule_id or state.new_id("schedule")
    if state.standing.find(Schedule, schedule_id) is not None:
        raise KapellError(
            ERROR_REASON_ID_TAKEN,
            f"Schedule {schedule_id} exists already. Choose another schedule_id, or update this one.",
            metadata={"schedule_id": schedule_id},
        )
    schedule = Schedule(
        schedule_id=schedule_id,
        paused=request.paused,
        pause_reason=request.pause_reason if request.paused else "",
        creator=state.caller.actor(),
    )
    stamp(schedule.create_time, state.tick_ns())
    schedule.update_time.CopyFrom(schedule.create_time)
    schedule.spec.CopyFrom(request.spec)
    _fill_in(schedule)
    _check_task(state, request.spec)
    plan(state, schedule, _first_time(state, schedule))
    _keep_task(state, schedule, request.spec.task)
    return _put(state, schedule, EVENT_KIND_SCHEDULE_CREATED, ())


def update_schedule(state: State, request: UpdateScheduleRequest) -> Schedule:
    """Sets the fields of the mask. Another calendar begins now; what has passed by then is not made up for."""
    current = get_schedule(state, request.schedule_id)
    check_etag(request.etag, current.etag)
    paths = frozenset(request.update_mask.paths)
    schedule = copied(current)
    for path in sorted(paths):
        _set(schedule.spec, request.spec, path)
    _fill_in(schedule)
    if paths & _OF_CALENDAR:
        plan(state, schedule, _first_time(state, schedule))
    elif "jitter" in paths:
        plan(state, schedule, timestamp_ns(schedule.next_schedule_time))
    if "task" in paths:
        _check_task(state, request.spec)
        _keep_task(state, schedule, request.spec.task)
    stamp(schedule.update_time, state.tick_ns())
    return _put(state, schedule, EVENT_KIND_SCHEDULE_UPDATED, ("spec", "next_schedule_time", "next_run_time"))


def pause_schedule(state: State, request: PauseScheduleRequest) -> Schedule:
    """Lets it make no tasks; a second time changes the reason at most."""
    current = get_schedule(state, request.schedule_id)
    if current.paused and request.reason in ("", current.pause_reason):
        return current
    schedule = copied(current)
    schedule.paused = True
    schedule.pause_reason = request.reason
    schedule.ClearField("next_run_time")
    stamp(schedule.update_time, state.tick_ns())
    return _put(state, schedule, EVENT_KIND_SCHEDULE_PAUSED, ("paused", "pause_reason", "next_run_time"))


def resume_schedule(state: State, request: ResumeScheduleRequest) -> Schedule:
    """Lets it make tasks again, and at once the one that makes up for those that were not made."""
    current = get_schedule(state, request.schedule_id)
    if not current.paused:
        return current
    schedule = copied(current)
    schedule.paused = False
    schedule.pause_reason = ""
    plan(state, schedule, timestamp_ns(current.next_schedule_time))
    stamp(schedule.update_time, state.tick_ns())
    _put(state, schedule, EVENT_KIND_SCHEDULE_RESUMED, ("paused", "pause_reason", "next_run_time"))
    look_at_schedule(state, schedule.schedule_id)
    return get_schedule(state, schedule.schedule_id)


def trigger_schedule(state: State, request: TriggerScheduleRequest) -> TriggerScheduleResponse:
    """Makes a run now, besides those of the calendar."""
    current = get_schedule(state, request.schedule_id)
    policy = request.overlap_policy or current.spec.overlap_policy
    made = make_run(state, copied(current), state.now_ns, (), policy, by_hand=True)
    schedule = get_schedule(state, request.schedule_id)
    return TriggerScheduleResponse(schedule=schedule, revision=schedule.revision, task=made)


def delete_schedule(state: State, request: DeleteScheduleRequest) -> DeleteScheduleResponse:
    """Deletes it; the tasks it has made go on."""
    current = get_schedule(state, request.schedule_id)
    schedule = state.standing.put(copied(current), EVENT_KIND_SCHEDULE_DELETED, (), deleted=True)
    state.schedule_tasks.drop(schedule.schedule_id)
    state.schedule_lives.forget(schedule.schedule_id)
    return DeleteScheduleResponse(revision=schedule.revision)


def get_schedule(state: State, schedule_id: str) -> Schedule:
    """The schedule; SCHEDULE_NOT_FOUND where there is none. Not to be altered."""
    schedule = state.standing.find(Schedule, schedule_id)
    if schedule is None:
        raise schedule_not_found(schedule_id)
    return schedule


def _put(state: State, schedule: Schedule, event: EventKind.ValueType, changed: tuple[str, ...]) -> Schedule:
    put = state.standing.put(schedule, event, changed)
    wake(state, put)
    return put


def _set(target: ScheduleSpec, source: ScheduleSpec, path: str) -> None:
    """Sets one field as it is in the source, which may be unset."""
    target.ClearField(path)  # type: ignore[arg-type]
    field = ScheduleSpec.DESCRIPTOR.fields_by_name[path]
    if field.has_presence and not source.HasField(path):  # type: ignore[arg-type]
        return
    value = getattr(source, path)
    if field.message_type is not None:
        getattr(target, path).CopyFrom(value)
    else:
        setattr(target, path, value)


def _fill_in(schedule: Schedule) -> None:
    """Puts defaults where the spec says nothing."""
    spec = schedule.spec
    spec.display_name = spec.display_name or schedule.schedule_id.removeprefix(PREFIX)
    spec.time_zone = spec.time_zone or "UTC"
    spec.overlap_policy = spec.overlap_policy or OVERLAP_POLICY_SKIP
    if not spec.HasField("catch_up_window"):
        spec.catch_up_window.seconds = _CATCH_UP_SECONDS


def _first_time(state: State, schedule: Schedule) -> int:
    """The first time after now. Refuses a calendar that cannot be, or has none."""
    try:
        first_ns = calendar_for(schedule).after(state.now_ns)
    except CalendarError as error:
        raise calendar_invalid(error, "spec.") from None
    if not first_ns:
        field = schedule.spec.WhichOneof("calendar") or "cron"
        raise calendar_invalid(CalendarError(field, "never comes true from now on until the end"), "spec.")
    return first_ns


def _check_task(state: State, spec: ScheduleSpec) -> None:
    """Refuses a task that could not be created now."""
    if not spec.HasField("task"):
        raise _invalid("spec.task", "is required")
    try_task(state, spec.task, "spec.task")


def _keep_task(state: State, schedule: Schedule, task: TaskSpec) -> None:
    """Keeps the whole task beside the record, and the record's without what may be large."""
    whole = TaskSpec()
    whole.CopyFrom(task)
    state.schedule_tasks.put(schedule.schedule_id, whole)
    schedule.spec.task.CopyFrom(without_content(task))


def _refuse_beyond_limit(state: State) -> None:
    limit = state.settings.max_schedules
    if state.standing.count(Schedule) >= limit:
        raise KapellError(
            ERROR_REASON_SCHEDULE_LIMIT,
            f"There are {limit} schedules, as many as there may be. Delete one that is not used any more.",
            metadata={"limit": str(limit)},
        )


def calendar_invalid(error: CalendarError, path: str) -> KapellError:
    """REQUEST_INVALID for a calendar that cannot be; `path` comes before the field's name."""
    return _invalid(path + error.field, str(error))


def _invalid(field: str, what: str) -> KapellError:
    return KapellError(
        ERROR_REASON_REQUEST_INVALID,
        f"The request is invalid: {field} {what}. Correct it and send it again.",
        violations=((field, what),),
    )


def schedule_not_found(schedule_id: str) -> KapellError:
    """No schedule has this id."""
    return KapellError(
        ERROR_REASON_SCHEDULE_NOT_FOUND,
        f"Schedule {schedule_id} was not found: it never existed or was deleted. List the schedules to find its id.",
        metadata={"schedule_id": schedule_id},
    )
