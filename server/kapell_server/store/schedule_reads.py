"""Reads of schedules, past the writer: one with all of its task, and lists."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from kapell.v1.schedule_pb2 import ListSchedulesRequest, ListSchedulesResponse, Schedule, ScheduleFilter
from kapell.v1.task_pb2 import TaskSpec
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.schedules.schedule import schedule_not_found
from kapell_server.domain.standing import KINDS
from kapell_server.domain.templates.template_version import split_reference
from kapell_server.store.database import Database
from kapell_server.store.listing import Listing, page_of
from kapell_server.store.loads import head
from kapell_server.store.pages import Page
from kapell_server.store.schedule_rows import load_schedule_task
from kapell_server.store.schema import standing

_of_kind = standing.c.kind == KINDS[Schedule].number
_schedule = sa.select(standing.c.data).where(_of_kind, standing.c.resource_id == bindparam("schedule_id"))


class ScheduleReads:
    """Answers from committed state."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, schedule_id: str) -> Schedule:
        """The schedule with all of its task. Raises SCHEDULE_NOT_FOUND."""

        def work(connection: Connection) -> tuple[bytes | None, TaskSpec | None]:
            data = connection.scalar(_schedule, {"schedule_id": schedule_id})
            return data, load_schedule_task(connection, schedule_id)

        data, task = await self._database.read(work)
        if data is None or task is None:
            raise schedule_not_found(schedule_id)
        schedule = Schedule.FromString(data)
        schedule.spec.task.CopyFrom(task)
        return schedule

    async def list(self, request: ListSchedulesRequest) -> ListSchedulesResponse:
        """A page of schedules, without what may be large of their tasks. Raises PAGE_TOKEN_INVALID."""
        page = Page(size=request.page_size, token=request.page_token, order=request.order, bound_to=request.filter)
        ids = request.filter.schedule_ids
        listing = Listing(
            key=standing.c.create_revision,
            data=standing.c.data,
            parts=([_of_kind, standing.c.resource_id.in_(ids)] if ids else [_of_kind],),
            matches=_matcher(request.filter),
        )

        def work(connection: Connection) -> ListSchedulesResponse:
            rows = page_of(connection, listing, page)
            return ListSchedulesResponse(
                schedules=[Schedule.FromString(data) for data in rows.data],
                next_page_token="" if rows.next_cursor is None else page.token(rows.next_cursor),
                revision=head(connection),
            )

        return await self._database.read(work)


def _matcher(wanted: ScheduleFilter) -> Callable[[bytes], bool] | None:
    """What of a filter SQL cannot say; None where that is nothing."""
    if not wanted.HasField("paused") and not wanted.template_ids:
        return None
    templates = frozenset(wanted.template_ids)

    def matches(data: bytes) -> bool:
        schedule = Schedule.FromString(data)
        if wanted.HasField("paused") and schedule.paused != wanted.paused:
            return False
        return not templates or split_reference(schedule.spec.task.template)[0] in templates

    return matches
