"""The face for schedules: tasks that are made by the clock. Thin; the server decides everything.

What a schedule says is given as keywords (see ScheduleSpec); `kapell.tasks.task_spec` makes the task:

    await client.schedules.create(task_spec("shell", "make backup"), cron="0 3 * * *", time_zone="Europe/Berlin")
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from google.protobuf.field_mask_pb2 import FieldMask

from kapell.connection import Connection
from kapell.errors import InvalidRequest
from kapell.filters import ScheduleQuery, schedule_filter
from kapell.messages import Instant, Seconds, duration, new_request_id, overlap_policy, timestamp
from kapell.v1 import schedule_pb2 as pb
from kapell.v1.common_pb2 import LIST_ORDER_UNSPECIFIED, ListOrder
from kapell.v1.schedule_pb2_grpc import ScheduleServiceStub
from kapell.v1.task_pb2 import TaskSpec

if TYPE_CHECKING:
    from kapell.v1.schedule_pb2_grpc import ScheduleServiceAsyncStub


class CalendarFields(TypedDict, total=False):
    """When a schedule runs: `cron`, in `time_zone`, or `interval`."""

    cron: str
    """As in "0 3 * * *" or "@daily"."""
    interval: Seconds
    time_zone: str
    """By its IANA name; UTC where it is not given."""
    start_time: Instant | None
    end_time: Instant | None


class ScheduleFields(CalendarFields, total=False):
    """What may be said of a schedule besides its task. In an update None goes back to the default."""

    display_name: str | None
    jitter: Seconds | None
    overlap_policy: pb.OverlapPolicy.ValueType | str | None
    """By value or word: "skip", "queue", "cancel" or "allow"."""
    catch_up_window: Seconds | None


class Schedules:
    """`client.schedules`. A `request_id` makes a write repeatable by hand; left out, each call gets its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> ScheduleServiceAsyncStub:
        return self._connection.stub(ScheduleServiceStub)

    async def create(
        self,
        task: TaskSpec,
        *,
        schedule_id: str = "",
        paused: bool = False,
        pause_reason: str = "",
        request_id: str = "",
        **fields: Unpack[ScheduleFields],
    ) -> pb.Schedule:
        """Creates a schedule; its first run is at the first time after now."""
        request = pb.CreateScheduleRequest(
            schedule_id=schedule_id,
            spec=_spec(task, fields),
            paused=paused,
            pause_reason=pause_reason,
            request_id=request_id or new_request_id(),
        )
        return (await self._connection.call(self._stub.CreateSchedule, request)).schedule

    async def get(self, schedule_id: str) -> pb.Schedule:
        """Reads a schedule with all of its task."""
        request = pb.GetScheduleRequest(schedule_id=schedule_id)
        return (await self._connection.call(self._stub.GetSchedule, request)).schedule

    async def list(
        self,
        *,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 0,
        page_token: str = "",
        **query: Unpack[ScheduleQuery],
    ) -> pb.ListSchedulesResponse:
        """One page of schedules, newest first unless ordered otherwise; their tasks are without prompts."""
        request = pb.ListSchedulesRequest(
            filter=schedule_filter(**query), order=order, page_size=page_size, page_token=page_token
        )
        return await self._connection.call(self._stub.ListSchedules, request)

    async def iterate(
        self,
        *,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 200,
        **query: Unpack[ScheduleQuery],
    ) -> AsyncIterator[pb.Schedule]:
        """All schedules that match, page by page."""
        page_token = ""
        while True:
            page = await self.list(order=order, page_size=page_size, page_token=page_token, **query)
            for schedule in page.schedules:
                yield schedule
            page_token = page.next_page_token
            if not page_token:
                return

    async def update(
        self,
        schedule_id: str,
        *,
        task: TaskSpec | None = None,
        etag: str = "",
        request_id: str = "",
        **fields: Unpack[ScheduleFields],
    ) -> pb.Schedule:
        """Sets what is given, and nothing else. Another calendar begins now."""
        paths = [*fields, *(["task"] if task is not None else [])]
        if not paths:
            raise InvalidRequest("nothing to change - say what to set", reason="ARGUMENT_INVALID")
        request = pb.UpdateScheduleRequest(
            schedule_id=schedule_id,
            spec=_spec(task, fields),
            update_mask=FieldMask(paths=paths),
            etag=etag,
            request_id=request_id or new_request_id(),
        )
        return (await self._connection.call(self._stub.UpdateSchedule, request)).schedule

    async def delete(self, schedule_id: str, *, request_id: str = "") -> pb.DeleteScheduleResponse:
        """Deletes a schedule; tasks it has made go on."""
        request = pb.DeleteScheduleRequest(schedule_id=schedule_id, request_id=request_id or new_request_id())
        return await self._connection.call(self._stub.DeleteSchedule, request)

    async def pause(self, schedule_id: str, *, reason: str = "", request_id: str = "") -> pb.Schedule:
        """Lets a schedule make no tasks until it is resumed."""
        request = pb.PauseScheduleRequest(
            schedule_id=schedule_id, reason=reason, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.PauseSchedule, request)).schedule

    async def resume(self, schedule_id: str, *, request_id: str = "") -> pb.Schedule:
        """Lets a schedule run again; what passed meanwhile is made up for by one run within its window."""
        request = pb.ResumeScheduleRequest(schedule_id=schedule_id, request_id=request_id or new_request_id())
        return (await self._connection.call(self._stub.ResumeSchedule, request)).schedule

    async def trigger(
        self,
        schedule_id: str,
        *,
        overlap_policy: pb.OverlapPolicy.ValueType | str | None = None,
        request_id: str = "",
    ) -> pb.TriggerScheduleResponse:
        """Makes a run now. The answer has no task where the overlap policy made none; `last_run` says why."""
        request = pb.TriggerScheduleRequest(
            schedule_id=schedule_id,
            overlap_policy=_policy(overlap_policy),
            request_id=request_id or new_request_id(),
        )
        return await self._connection.call(self._stub.TriggerSchedule, request)

    async def preview(
        self, *, count: int = 0, after: Instant | None = None, **fields: Unpack[CalendarFields]
    ) -> pb.PreviewScheduleResponse:
        """The next times of a calendar, five unless `count` says otherwise. Changes nothing."""
        request = pb.PreviewScheduleRequest(
            interval=duration(fields.get("interval")),
            time_zone=fields.get("time_zone", ""),
            start_time=timestamp(fields.get("start_time")),
            end_time=timestamp(fields.get("end_time")),
            after_time=timestamp(after),
            count=count,
        )
        if "cron" in fields:
            request.cron = fields["cron"]
        return await self._connection.call(self._stub.PreviewSchedule, request)


def _spec(task: TaskSpec | None, fields: ScheduleFields) -> pb.ScheduleSpec:
    """The message for what is said; what is None is left unset."""
    said: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    for name in ("interval", "jitter", "catch_up_window"):
        if name in said:
            said[name] = duration(said[name])
    for name in ("start_time", "end_time"):
        if name in said:
            said[name] = timestamp(said[name])
    if "overlap_policy" in said:
        said["overlap_policy"] = _policy(said["overlap_policy"])
    return pb.ScheduleSpec(task=task, **said)


def _policy(value: pb.OverlapPolicy.ValueType | str | None) -> pb.OverlapPolicy.ValueType:
    return pb.OVERLAP_POLICY_UNSPECIFIED if value is None else overlap_policy(value)
