"""Reads of templates, past the writer: one version, lists, and how tasks of a template went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST
from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED, Task
from kapell.v1.template_pb2 import (
    ListTemplatesRequest,
    ListTemplatesResponse,
    ListTemplateVersionsRequest,
    ListTemplateVersionsResponse,
    Template,
    TemplateFilter,
    TemplateVersion,
)
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.templates.template_version import clear_prompts, template_not_found, version_number
from kapell_server.domain.times import timestamp_ns
from kapell_server.domain.transitions import TASK_FINAL
from kapell_server.store.database import Database
from kapell_server.store.listing import Listing, page_of
from kapell_server.store.loads import head
from kapell_server.store.pages import Page
from kapell_server.store.schema import SHIPPED_DIGEST, meta, tasks, template_versions, templates

_HISTORY = 200

_template = sa.select(templates.c.data).where(templates.c.template_id == bindparam("template_id"))
_version = sa.select(template_versions.c.data).where(
    template_versions.c.template_id == bindparam("template_id"), template_versions.c.version == bindparam("version")
)
_ended_tasks = (
    sa.select(tasks.c.data)
    .where(tasks.c.template_id == bindparam("template_id"), tasks.c.state.in_(TASK_FINAL))
    .order_by(tasks.c.create_revision.desc())
    .limit(_HISTORY)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """How the latest tasks of a template went. `seconds` are those of the succeeded ones, ascending."""

    tasks: int
    seconds: list[float]

    def percentile(self, percent: int) -> float:
        """The time within which so many of 100 had succeeded; there must be at least one."""
        return self.seconds[min(len(self.seconds) - 1, len(self.seconds) * percent // 100)]


class TemplateReads:
    """Answers from committed state."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, template_id: str, selector: str) -> Template:
        """The template as of one version, with its prompt. Raises TEMPLATE_NOT_FOUND."""

        def work(connection: Connection) -> tuple[bytes | None, bytes | None]:
            data = connection.scalar(_template, {"template_id": template_id})
            if data is None:
                return None, None
            number = version_number(Template.FromString(data), selector)
            return data, connection.scalar(_version, {"template_id": template_id, "version": number})

        data, version_data = await self._database.read(work)
        if data is None or version_data is None:
            raise template_not_found(template_id)
        template, version = Template.FromString(data), TemplateVersion.FromString(version_data)
        template.version = version.version
        template.spec.CopyFrom(version.spec)
        return template

    async def list(self, request: ListTemplatesRequest) -> ListTemplatesResponse:
        """A page of templates, without prompts. Raises PAGE_TOKEN_INVALID."""
        page = Page(size=request.page_size, token=request.page_token, order=request.order, bound_to=request.filter)
        ids = request.filter.template_ids
        listing = Listing(
            key=templates.c.create_revision,
            data=templates.c.data,
            parts=([templates.c.template_id.in_(ids)] if ids else (),),
            matches=_matcher(request.filter),
        )

        def work(connection: Connection) -> ListTemplatesResponse:
            rows = page_of(connection, listing, page)
            return ListTemplatesResponse(
                templates=[Template.FromString(data) for data in rows.data],
                next_page_token="" if rows.next_cursor is None else page.token(rows.next_cursor),
                revision=head(connection),
            )

        return await self._database.read(work)

    async def versions(self, request: ListTemplateVersionsRequest) -> ListTemplateVersionsResponse:
        """A page of versions, the latest first, without prompts. Raises TEMPLATE_NOT_FOUND."""
        bound_to = ListTemplateVersionsRequest(template_id=request.template_id)
        page = Page(size=request.page_size, token=request.page_token, order=LIST_ORDER_NEWEST_FIRST, bound_to=bound_to)
        listing = Listing(
            key=template_versions.c.version,
            data=template_versions.c.data,
            parts=([template_versions.c.template_id == request.template_id],),
        )

        def work(connection: Connection) -> ListTemplateVersionsResponse:
            if connection.scalar(_template, {"template_id": request.template_id}) is None:
                raise template_not_found(request.template_id)
            rows = page_of(connection, listing, page)
            versions = [TemplateVersion.FromString(data) for data in rows.data]
            for version in versions:
                clear_prompts(version.spec)
            return ListTemplateVersionsResponse(
                versions=versions,
                next_page_token="" if rows.next_cursor is None else page.token(rows.next_cursor),
                revision=head(connection),
            )

        return await self._database.read(work)

    async def shipped_digest(self) -> str:
        """What tells which of Kapell's own templates are here; empty in a new database."""
        statement = sa.select(meta.c.value).where(meta.c.name == SHIPPED_DIGEST)
        return await self._database.read(lambda connection: connection.scalar(statement) or "")

    async def history(self, template_id: str) -> History:
        """How the latest ended tasks of the template went."""
        rows = await self._database.read(
            lambda connection: connection.scalars(_ended_tasks, {"template_id": template_id}).all()
        )
        ended = [Task.FromString(data) for data in rows]
        seconds = sorted(
            (timestamp_ns(task.end_time) - timestamp_ns(task.start_time)) / 1e9
            for task in ended
            if task.state == TASK_STATE_SUCCEEDED
        )
        return History(tasks=len(ended), seconds=seconds)


def _matcher(wanted: TemplateFilter) -> Callable[[bytes], bool] | None:
    """What of a filter SQL cannot say; None where that is nothing."""
    if not (wanted.agent_types or wanted.tags or wanted.HasField("built_in") or wanted.text):
        return None
    words = wanted.text.casefold().split()
    tags = frozenset(wanted.tags)

    def matches(data: bytes) -> bool:
        template = Template.FromString(data)
        spec = template.spec
        if wanted.agent_types and spec.agent_type not in wanted.agent_types:
            return False
        if wanted.HasField("built_in") and template.built_in != wanted.built_in:
            return False
        text = f"{template.template_id} {spec.display_name} {spec.description}".casefold()
        return tags.issubset(spec.tags) and all(word in text for word in words)

    return matches
