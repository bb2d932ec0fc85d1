"""ScheduleService: hands changes to the engine, reads past it, and reckons times without changing anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1 import schedule_pb2

from kapell_server.clock import Clock
from kapell_server.domain.access import Caller
from kapell_server.domain.schedules.schedule import calendar_invalid
from kapell_server.domain.schedules.schedule_times import CalendarError, calendar_of
from kapell_server.domain.times import SECOND, stamp, timestamp_ns

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.store.reads import Reads

DEFAULT_COUNT = 5
HORIZON = 20 * 366 * 86_400 * SECOND


class ScheduleServicer:
    """The methods of ScheduleService. Changes go straight to the engine, which answers encoded."""

    def __init__(self, engine: Engine, reads: Reads, clock: Clock) -> None:
        self._engine = engine
        self._reads = reads
        self._clock = clock
        self.CreateSchedule = engine.submit
        self.UpdateSchedule = engine.submit
        self.DeleteSchedule = engine.submit
        self.PauseSchedule = engine.submit
        self.ResumeSchedule = engine.submit
        self.TriggerSchedule = engine.submit

    async def GetSchedule(
        self, request: schedule_pb2.GetScheduleRequest, caller: Caller
    ) -> schedule_pb2.GetScheduleResponse:
        revision = self._engine.revision
        schedule = await self._reads.schedules.get(request.schedule_id)
        return schedule_pb2.GetScheduleResponse(schedule=schedule, revision=revision)

    async def ListSchedules(
        self, request: schedule_pb2.ListSchedulesRequest, caller: Caller
    ) -> schedule_pb2.ListSchedulesResponse:
        return await self._reads.schedules.list(request)

    async def PreviewSchedule(
        self, request: schedule_pb2.PreviewScheduleRequest, caller: Caller
    ) -> schedule_pb2.PreviewScheduleResponse:
        after_ns = timestamp_ns(request.after_time) if request.HasField("after_time") else self._clock.now_ns()
        try:
            calendar = calendar_of(request, after_ns - after_ns % SECOND)
        except CalendarError as error:
            raise calendar_invalid(error, "") from None
        times = calendar.preview(after_ns, request.count or DEFAULT_COUNT, after_ns + HORIZON)
        return schedule_pb2.PreviewScheduleResponse(times=[_timestamp(at) for at in times])


def _timestamp(ns: int) -> Timestamp:
    timestamp = Timestamp()
    stamp(timestamp, ns)
    return timestamp
