"""Reads of the ledger, past the writer: sums, records, the totals of tasks and agents, and what templates did cost."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from kapell.v1.agent_pb2 import Agent
from kapell.v1.error_pb2 import ERROR_REASON_REQUEST_INVALID, ERROR_REASON_USAGE_QUERY_TOO_LARGE
from kapell.v1.task_pb2 import Task
from kapell.v1.usage_pb2 import (
    USAGE_BUCKET_MINUTE,
    ListUsageRecordsRequest,
    ListUsageRecordsResponse,
    QueryUsageRequest,
    QueryUsageResponse,
    RepriceUsageRequest,
    UsageFilter,
    UsageRecord,
    UsageTotals,
)
from sqlalchemy.engine import Connection

from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import SECOND, stamp, timestamp_ns
from kapell_server.domain.transitions import TASK_FINAL
from kapell_server.domain.usage.buckets import bounds, zone_of
from kapell_server.domain.usage.entry import Dims, usage_id_of_agent, usage_id_of_task
from kapell_server.domain.usage.figures import Sums
from kapell_server.store.bulk import Lookup
from kapell_server.store.database import Database
from kapell_server.store.loads import head
from kapell_server.store.pages import ANSWER_BYTES, Page
from kapell_server.store.schema import tasks
from kapell_server.store.usage_query import Line, Range, fits, from_records, from_sums, from_values, with_value
from kapell_server.store.usage_rows import SLOT_NS
from kapell_server.store.usage_tables import usage_keys, usage_labels, usage_records, usage_totals

MOST_ROWS = 20_000
"""Rows one answer may have: it would be more than about 3 MiB."""
_MOST_FOUND = 4 * MOST_ROWS
"""Sums that are held while they are put together: some of them may come to nothing."""
MOST_READ = 250_000
"""Records one answer may be summed from where no index and no sums serve: about two seconds of one reader."""
_MOST_UNPRICED = 100
_HISTORY = 1_000
_DAY = 86_400 * SECOND
_DEFAULT_RANGE = 30 * _DAY
_SCAN = 20_000
_MANY = 5_000
"""Records of one label that are still looked up one by one."""
_WINDOW = 50_000
"""Records one page of a list looks at, where no index serves its filter."""
_Bound = Callable[["sa.Column[int]"], "sa.ColumnElement[bool]"]
"""A condition on the number of a record."""
_DIMS = {"agent": 0, "agent_type": 1, "template": 2, "model": 4, "provider": 3}
"""What the lines of the sums can be grouped by: the place in Dims."""
_totals = Lookup(sa.select(usage_totals.c.usage_id, usage_totals.c.own, usage_totals.c.tree), usage_totals.c.usage_id)


class UsageReads:
    """Answers from committed state. `exists` tells whether there is any usage at all."""

    def __init__(self, database: Database, exists: Callable[[], bool]) -> None:
        self._database = database
        self._keys: dict[int, Dims] = {}
        self.exists = exists

    # -- sums --------------------------------------------------------------------------------

    async def query(self, request: QueryUsageRequest, now_ns: int) -> QueryUsageResponse:
        """Sums by time and group. Raises REQUEST_INVALID, USAGE_QUERY_TOO_LARGE."""
        zone = zone_of(request.time_zone)

        def work(connection: Connection) -> QueryUsageResponse:
            start_ns, end_ns = _range_of(connection, request, now_ns)
            stretches = bounds(start_ns, end_ns, request.bucket, zone) if start_ns < end_ns else [start_ns, start_ns]
            wanted = Range(start_ns, end_ns, stretches)
            keys = self._load_keys(connection)
            response = _sum_up(_lines(connection, request, wanted, keys), request, wanted, keys)
            response.revision = head(connection)
            return response

        return await self._database.read(work)

    def _load_keys(self, connection: Connection) -> Mapping[int, Dims]:
        """All lines of the sums. They are numbered in order and never change, so only new ones are read."""
        last = max(self._keys, default=0)
        columns = [usage_keys.c[name] for name in Dims._fields]
        fresh = sa.select(usage_keys.c.key_id, *columns).where(usage_keys.c.key_id > last).order_by(usage_keys.c.key_id)
        self._keys.update((row[0], Dims(*row[1:])) for row in connection.execute(fresh))
        return dict(self._keys)

    # -- records -----------------------------------------------------------------------------

    async def list_records(self, request: ListUsageRecordsRequest) -> ListUsageRecordsResponse:
        """A page of records. Raises PAGE_TOKEN_INVALID."""
        bound_to = ListUsageRecordsRequest()
        bound_to.CopyFrom(request)
        for name in ("page_size", "page_token", "order", "include_raw"):
            bound_to.ClearField(name)
        page = Page(size=request.page_size, token=request.page_token, order=request.order, bound_to=bound_to)
        return await self._database.read(lambda connection: _list(connection, request, page))

    async def to_reprice(self, request: RepriceUsageRequest, after: int, limit: int) -> tuple[list[UsageRecord], int]:
        """Records that count and match, in order from number `after` on; and where to go on, 0 at the end."""
        conditions = _conditions(request.filter, request)

        def work(connection: Connection) -> tuple[list[UsageRecord], int]:
            statement = (
                sa.select(usage_records.c.number, usage_records.c.data)
                .where(*conditions, usage_records.c.superseded_by == 0, usage_records.c.number > after)
                .order_by(usage_records.c.number)
                .limit(min(limit, _SCAN))
            )
            rows = connection.execute(statement).all()
            following = rows[-1][0] if len(rows) == min(limit, _SCAN) else 0
            return [UsageRecord.FromString(data) for _, data in rows], following

        return await self._database.read(work)

    # -- totals ------------------------------------------------------------------------------

    async def of_tasks(self, task_ids: Sequence[str]) -> list[bytes]:
        """For each task its totals, as an encoded Task with only these fields."""
        if not task_ids or not self.exists():
            return [b""] * len(task_ids)
        found = await self._of([usage_id_of_task(task_id) for task_id in task_ids])
        return [_task_bytes(found.get(usage_id_of_task(task_id))) for task_id in task_ids]

    async def fill_tasks(self, found: Iterable[Task]) -> None:
        """Writes their totals into these tasks."""
        wanted = list(found)
        for task, data in zip(wanted, await self.of_tasks([task.task_id for task in wanted]), strict=True):
            task.MergeFromString(data)

    async def fill_agents(self, found: Iterable[Agent]) -> None:
        """Writes their totals into these agents."""
        wanted = list(found)
        if not wanted or not self.exists():
            return
        totals = await self._of([usage_id_of_agent(agent.agent_id) for agent in wanted])
        for agent in wanted:
            own = totals.get(usage_id_of_agent(agent.agent_id))
            if own is not None:
                agent.usage.CopyFrom(UsageTotals.FromString(own[0]))

    async def _of(self, usage_ids: Sequence[str]) -> Mapping[str, tuple[bytes, bytes]]:
        rows = await self._database.read(lambda connection: list(_totals.rows(connection, usage_ids)))
        return {usage_id: (bytes(own), bytes(tree)) for usage_id, own, tree in rows}

    async def history(self, template_id: str) -> list[Sums]:
        """What the latest ended tasks of a template have used, each with all below it."""
        newest = (
            sa.select(tasks.c.task_id)
            .where(tasks.c.template_id == template_id, tasks.c.state.in_(TASK_FINAL))
            .order_by(tasks.c.create_revision.desc())
            .limit(_HISTORY)
        )
        task_ids = await self._database.read(lambda connection: list(connection.scalars(newest)))
        totals = await self._of([usage_id_of_task(task_id) for task_id in task_ids])
        return [Sums.of(UsageTotals.FromString(tree)) for _, tree in totals.values()]


def _task_bytes(totals: tuple[bytes, bytes] | None) -> bytes:
    if totals is None:
        return b""
    return Task(
        usage=UsageTotals.FromString(totals[0]), tree_usage=UsageTotals.FromString(totals[1])
    ).SerializeToString()


# -- what is asked ---------------------------------------------------------------------------


def _range_of(connection: Connection, request: QueryUsageRequest, now_ns: int) -> tuple[int, int]:
    """From when until when. Without an end, what clocks that are ahead have sent is in it, too."""
    end_ns = timestamp_ns(request.end_time) if request.HasField("end_time") else now_ns + _DAY
    if request.HasField("start_time"):
        start_ns = timestamp_ns(request.start_time)
    elif request.filter.task_ids or request.filter.root_task_ids:
        # Few records, from whenever: they say themselves when they begin.
        conditions = _conditions(request.filter, None)
        first = connection.scalar(sa.select(sa.func.min(usage_records.c.event_ns)).where(*conditions))
        start_ns = min(first, end_ns) if first is not None else end_ns - _DAY
    else:
        start_ns = (end_ns if request.HasField("end_time") else now_ns) - _DEFAULT_RANGE
    if request.HasField("start_time") and start_ns >= end_ns:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            "start_time is not before end_time, so there is nothing in between. Correct one of them.",
            violations=(("start_time", "must be before end_time"),),
        )
    return start_ns, end_ns


def _lines(
    connection: Connection, request: QueryUsageRequest, wanted: Range, keys: Mapping[int, Dims]
) -> Iterable[Line]:
    if wanted.start_ns >= wanted.end_ns:
        return ()
    of_records = [name for name in request.group_by if name not in _DIMS]
    asked = request.filter
    label = _frequent_label(connection, asked)
    indexed = asked.task_ids or asked.root_task_ids or (asked.labels and not label) or asked.unpriced
    odd = any(bound % SLOT_NS for bound in wanted.bounds[1:-1])
    summed = not (indexed or asked.HasField("unpriced") or odd or request.bucket == USAGE_BUCKET_MINUTE)
    of_keys = _keys_of(asked, keys)
    if summed and not of_records and not label:
        return from_sums(connection, wanted, of_keys)
    source, group = _grouped(of_records)

    def records(begin_ns: int, end_ns: int) -> Iterator[Line]:
        if not indexed:
            whole = Range(begin_ns, end_ns, (begin_ns, end_ns))
            edges: Iterator[Line] = iter(())
            _check_effort(
                with_value(connection, whole, None, f"label:{label}", asked.labels[label], lambda *_: edges)
                if label
                else from_sums(connection, whole, None)
            )
        inside = usage_records.c.event_ns >= begin_ns, usage_records.c.event_ns < end_ns
        return from_records(connection, wanted, (*inside, *_conditions(asked, None)), group=group, source=source)

    if label and summed and not of_records:
        return with_value(connection, wanted, of_keys, f"label:{label}", asked.labels[label], records)
    if summed and len(of_records) == 1 and not label:
        return from_values(connection, wanted, of_keys, of_records[0], records)
    return records(wanted.start_ns, wanted.end_ns)


def _frequent_label(connection: Connection, asked: UsageFilter) -> str:
    """The one label that is asked for, where so many records have it that their index is no help."""
    if len(asked.labels) != 1 or asked.task_ids or asked.root_task_ids:
        return ""
    [(name, value)] = asked.labels.items()
    some = sa.select(usage_labels.c.number).where(usage_labels.c.name == name, usage_labels.c.value == value)
    found = connection.scalar(sa.select(sa.func.count()).select_from(some.limit(_MANY + 1).subquery()))
    return name if (found or 0) > _MANY else ""


def _check_effort(lines: Iterable[Line]) -> None:
    """Refuses to read too many records one by one; how many there are the sums tell in no time."""
    found = sum(sums[0] for *_, sums in lines)
    if found > MOST_READ:
        raise KapellError(
            ERROR_REASON_USAGE_QUERY_TOO_LARGE,
            f"The answer would be summed from {found:,} records, at most {MOST_READ:,} are read. Ask for a shorter "
            "time or set a filter. Sums of whole days (of UTC, weeks and months of any zone) by one of label, task "
            "and root_task have no limit.",
            metadata={"limit": str(MOST_READ)},
        )


def _grouped(names: Sequence[str]) -> tuple[sa.FromClause, list[sa.ColumnElement[Any]]]:
    """The records with what else they are grouped by."""
    source: sa.FromClause = usage_records
    group: list[sa.ColumnElement[Any]] = []
    for index, name in enumerate(names):
        if name == "task":
            group.append(usage_records.c.task_id)
        elif name == "root_task":
            group.append(usage_records.c.root_id)
        else:
            label = usage_labels.alias(f"label_{index}")
            on = sa.and_(label.c.number == usage_records.c.number, label.c.name == name.removeprefix("label:"))
            source = source.outerjoin(label, on)
            group.append(label.c.value)
    return source, group


_FIELDS = (
    ("agent_ids", "agent_id"),
    ("agent_types", "agent_type"),
    ("template_ids", "template_id"),
    ("providers", "provider"),
    ("models", "model"),
)


def _keys_of(asked: UsageFilter, keys: Mapping[int, Dims]) -> set[int] | None:
    """The lines of the sums that a filter wants; None for all."""
    wanted = {field: frozenset(values) for name, field in _FIELDS if (values := getattr(asked, name))}
    if not wanted:
        return None
    return {key_id for key_id, dims in keys.items() if fits(dims, wanted)}


def _conditions(
    asked: UsageFilter,
    times: ListUsageRecordsRequest | RepriceUsageRequest | None,
    looked_at: Sequence[_Bound] = (),
) -> list[sa.ColumnElement[bool]]:
    """A filter as conditions on records; of a label only those that are looked at: it may be on all there are."""
    table = usage_records
    conditions: list[sa.ColumnElement[bool]] = []
    of_key = [usage_keys.c[field].in_(values) for name, field in _FIELDS if (values := list(getattr(asked, name)))]
    if of_key:
        conditions.append(table.c.key_id.in_(sa.select(usage_keys.c.key_id).where(*of_key)))
    if asked.task_ids:
        conditions.append(table.c.task_id.in_(list(asked.task_ids)))
    if asked.root_task_ids:
        conditions.append(table.c.root_id.in_(list(asked.root_task_ids)))
    for name, value in asked.labels.items():
        having = sa.select(usage_labels.c.number).where(
            usage_labels.c.name == name,
            usage_labels.c.value == value,
            *(one(usage_labels.c.number) for one in looked_at),
        )
        conditions.append(table.c.number.in_(having))
    if asked.HasField("unpriced"):
        # A literal, as the index on those without a price has it.
        zero: sa.ColumnElement[int] = sa.literal_column("0")
        conditions.append(table.c.unpriced > zero if asked.unpriced else table.c.unpriced == zero)
    if times is not None and times.HasField("start_time"):
        conditions.append(table.c.event_ns >= timestamp_ns(times.start_time))
    if times is not None and times.HasField("end_time"):
        conditions.append(table.c.event_ns < timestamp_ns(times.end_time))
    return conditions


# -- what is answered ------------------------------------------------------------------------


def _sum_up(
    lines: Iterable[Line], request: QueryUsageRequest, wanted: Range, dims_of: Mapping[int, Dims]
) -> QueryUsageResponse:
    keys = (
        None
        if not _restricts(request.filter)
        else {
            key_id
            for key_id, dims in dims_of.items()
            if fits(dims, {field: frozenset(v) for name, field in _FIELDS if (v := getattr(request.filter, name))})
        }
    )
    found: dict[tuple[int, tuple[str, ...]], Sequence[int]] = {}
    groups: dict[tuple[int, tuple[str, ...]], tuple[str, ...]] = {}
    unpriced: dict[int, int] = {}
    for stretch, key_id, values, sums in lines:
        if keys is not None and key_id not in keys:
            continue
        group = groups.get((key_id, values))
        if group is None:
            group = groups[key_id, values] = _group(request.group_by, dims_of[key_id], values)
        place = stretch, group
        line = found.get(place)
        if line is None and len(found) == _MOST_FOUND:
            raise _too_many(f"more than {_MOST_FOUND}")
        found[place] = sums if line is None else list(map(operator.add, line, sums))
        if sums[8]:
            unpriced[key_id] = unpriced.get(key_id, 0) + sums[8]
    kept = [(place, Sums._make(line)) for place, line in found.items() if any(line)]
    if len(kept) > MOST_ROWS:
        raise _too_many(str(len(kept)))
    kept.sort(key=lambda one: (one[0][0], -one[1].cost, one[0][1]))
    return _response(kept, wanted, unpriced, dims_of)


def _too_many(rows: str) -> KapellError:
    return KapellError(
        ERROR_REASON_USAGE_QUERY_TOO_LARGE,
        f"The answer would have {rows} rows, at most {MOST_ROWS} are given. "
        "Group by less, ask for longer stretches, or set a filter.",
        metadata={"limit": str(MOST_ROWS)},
    )


def _restricts(asked: UsageFilter) -> bool:
    return any(getattr(asked, name) for name, _ in _FIELDS)


def _group(names: Sequence[str], dims: Dims, values: tuple[str, ...]) -> tuple[str, ...]:
    """The values of what is grouped by, in its order: of the line, or of its records."""
    others = iter(values)
    return tuple(dims[_DIMS[name]] if name in _DIMS else next(others) for name in names)


def _response(
    kept: Sequence[tuple[tuple[int, tuple[str, ...]], Sums]],
    wanted: Range,
    unpriced: Mapping[int, int],
    dims_of: Mapping[int, Dims],
) -> QueryUsageResponse:
    response = QueryUsageResponse()
    total = Sums()
    for (stretch, group), sums in kept:
        row = response.rows.add(group=group)
        sums.write_to(row.usage)
        stamp(row.bucket_time, wanted.bounds[stretch])
        total = total.plus(sums)
    response.total.CopyFrom(total.message())
    stamp(response.start_time, wanted.start_ns)
    stamp(response.end_time, wanted.end_ns)
    models: dict[tuple[str, str], int] = {}
    for key_id, records in unpriced.items():
        dims = dims_of[key_id]
        models[dims.provider, dims.model] = models.get((dims.provider, dims.model), 0) + records
    most = sorted(((model, count) for model, count in models.items() if count > 0), key=lambda one: (-one[1], one[0]))
    for (provider, model), records in most[:_MOST_UNPRICED]:
        response.unpriced_models.add(provider=provider, model=model, records=records)
    return response


def _list(connection: Connection, request: ListUsageRecordsRequest, page: Page) -> ListUsageRecordsResponse:
    """A page, which ends before its size where its records are long."""
    table = usage_records
    served = request.record_ids or request.filter.task_ids or request.filter.root_task_ids
    edge = None if served else _edge(connection, page)
    looked_at = _looked_at(page, edge)
    conditions = [*_conditions(request.filter, request, looked_at), *(one(table.c.number) for one in looked_at)]
    if request.record_ids:
        conditions.append(table.c.record_id.in_(list(request.record_ids)))
    if not request.include_superseded:
        conditions.append(table.c.superseded_by == 0)
    columns: list[Any] = [table.c.number, table.c.superseded_by, table.c.data]
    columns.append(table.c.raw if request.include_raw else sa.null().label("raw"))
    statement = (
        sa.select(*columns)
        .where(*conditions)
        .order_by(table.c.number if page.oldest_first else table.c.number.desc())
        .limit(page.size + 1)
    )
    response = ListUsageRecordsResponse(revision=head(connection))
    size = last = 0
    with connection.execute(statement.execution_options(yield_per=64)) as rows:
        for number, superseded_by, data, raw in rows:
            size += len(data) + len(raw or b"")
            if len(response.records) == page.size or (response.records and size > ANSWER_BYTES):
                response.next_page_token = page.token(last)
                break
            last = number
            record = response.records.add()
            record.ParseFromString(data)
            record.superseded_by_version = superseded_by
            if raw:
                record.raw.ParseFromString(raw)
                record.keep_raw = True
        else:
            if edge is not None:
                response.next_page_token = page.token(edge)
    return response


def _looked_at(page: Page, edge: int | None) -> list[_Bound]:
    """The numbers that a page looks at: beyond its cursor, up to its edge."""
    bounds: list[_Bound] = []
    if edge is not None:
        bounds.append((lambda number: number <= edge) if page.oldest_first else (lambda number: number >= edge))
    cursor = page.cursor
    if cursor is not None:
        bounds.append((lambda number: number > cursor) if page.oldest_first else (lambda number: number < cursor))
    return bounds


def _edge(connection: Connection, page: Page) -> int | None:
    """The last record one page looks at for a filter without an index; None where that is the last there is.

    Records are numbered without gaps, so that a window of numbers is a number of rows.
    """
    last = connection.scalar(sa.select(sa.func.max(usage_records.c.number))) or 0
    if page.oldest_first:
        edge = (page.cursor or 0) + _WINDOW
        return edge if edge < last else None
    edge = (page.cursor if page.cursor is not None else last + 1) - _WINDOW
    return edge if edge > 1 else None
