"""One watcher's place in the log, and what it is sent next.

Authority: the log. The ring is only its newest part in memory; a cursor that has fallen out
of it reads pages of the log until it is level again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from typing import Protocol

from kapell.v1.error_pb2 import ERROR_REASON_REVISION_COMPACTED, ERROR_REASON_REVISION_IN_FUTURE
from kapell.v1.event_pb2 import GetLogInfoResponse, WatchResponse
from kapell.v1.watch_pb2 import Bookmark, WatchOptions

from kapell_server.domain.errors import KapellError
from kapell_server.domain.tasks.retention import compacted
from kapell_server.store.record import Record
from kapell_server.watch.batches import Batches, split
from kapell_server.watch.filters import Filter, ResourceKind
from kapell_server.watch.ring import Ring

DEFAULT_BOOKMARK_SECONDS = 10.0
# Records looked at in one go; more would hold up the loop where a filter matches few.
READ_LIMIT = 512
SNAPSHOT_PAGE = 200


class LogReads(Protocol):
    """What following needs of the store; `kapell_server.store.reads.Reads` has it."""

    async def events_after(self, revision: int, limit: int) -> list[Record]: ...

    async def snapshot(
        self, kind: ResourceKind, after: int, until_revision: int, limit: int, ids: Collection[str] = ()
    ) -> tuple[list[Record], int | None]: ...

    async def log_info(self) -> GetLogInfoResponse: ...


class Log:
    """Where a watcher reads: the ring, the store behind it, and whose log it is."""

    def __init__(self, ring: Ring, reads: LogReads, *, log_id: str) -> None:
        self.ring = ring
        self.reads = reads
        self.log_id = log_id
        self.batches = Batches()

    async def start(self, options: WatchOptions) -> int:
        """The revision to start after. Raises KapellError where the log cannot be followed from there."""
        head = self.ring.head
        start = options.start_after_revision
        if options.log_id and options.log_id != self.log_id:
            oldest = (await self.reads.log_info()).oldest_revision
            raise KapellError(
                ERROR_REASON_REVISION_COMPACTED,
                f"The cursor belongs to log {options.log_id}, this server has log {self.log_id}:"
                " it was restored from a backup or is another server. Start over with send_initial_state.",
                metadata={"oldest": str(oldest), "current": str(head), "log_id": self.log_id},
            )
        if start == 0 and (options.send_initial_state or not options.log_id):
            return head
        if start > head:
            raise KapellError(
                ERROR_REASON_REVISION_IN_FUTURE,
                f"The watch is to start after revision {start}, but the newest is {head}."
                " Start after a revision that this server has sent, or with send_initial_state.",
                metadata={"current": str(head), "log_id": self.log_id},
            )
        await self._refuse_compacted(start)
        return start

    async def read(self, cursor: int) -> list[Record]:
        """Records that follow `cursor`, from the ring or, behind it, from the store."""
        records = self.ring.after(cursor, READ_LIMIT)
        if records is not None:
            return records
        await self._refuse_compacted(cursor)
        records = await self.reads.events_after(cursor, READ_LIMIT)
        if not records or records[0].revision != cursor + 1:
            raise self._compacted(cursor, await self.reads.log_info())
        return records

    def bookmark(self, revision: int, *, snapshot_complete: bool = False) -> bytes:
        """The encoded promise that everything up to `revision` was sent."""
        bookmark = Bookmark(revision=revision, log_id=self.log_id, snapshot_complete=snapshot_complete)
        return WatchResponse(bookmark=bookmark).SerializeToString()

    async def _refuse_compacted(self, cursor: int) -> None:
        """What was compacted counts as gone, whether its rows are still there or not."""
        info = await self.reads.log_info()
        if cursor < info.oldest_revision:
            raise self._compacted(cursor, info)

    def _compacted(self, cursor: int, info: GetLogInfoResponse) -> KapellError:
        return compacted(cursor, oldest=info.oldest_revision, current=self.ring.head, log_id=self.log_id)


class Cursor:
    """A watcher that has been sent everything up to `revision`."""

    def __init__(self, log: Log, wanted: Filter, revision: int, options: WatchOptions) -> None:
        self.revision = revision
        self._log = log
        self._wanted = wanted
        self._now = asyncio.get_running_loop().time
        self._bookmark_seconds = _bookmark_seconds(options)
        self._bookmark_due = self._now() + self._bookmark_seconds

    async def snapshot(self) -> AsyncGenerator[bytes, None]:
        """The matching resources that have not changed after `revision`, then a bookmark that says so.

        Those that have changed are left out: their events follow.
        """
        for kind in self._wanted.kinds_of_resource:
            after: int | None = 0
            while after is not None:
                records, after = await self._log.reads.snapshot(
                    kind, after, self.revision, SNAPSHOT_PAGE, self._wanted.ids
                )
                for message in split([record for record in records if self._wanted.matches(record)]):
                    yield message
        yield self._log.bookmark(self.revision, snapshot_complete=True)

    async def next(self) -> bytes:
        """Waits for the next message: events, or a bookmark after a time without any.

        Waiting comes before reading even right after a message: with many watchers that is what
        gathers events into few messages. Who is behind does not wait.
        """
        log = self._log
        while True:
            remaining = max(0.0, self._bookmark_due - self._now())
            if await log.ring.wait_beyond(self.revision, remaining):
                records = await log.read(self.revision)
                message, self.revision = log.batches.encode(self._wanted, self.revision, records)
                if message:
                    self._rest()
                    return message
                if len(records) == READ_LIMIT:
                    await asyncio.sleep(0)
            if self._now() >= self._bookmark_due:
                self._rest()
                return log.bookmark(self.revision)

    def _rest(self) -> None:
        self._bookmark_due = self._now() + self._bookmark_seconds


def _bookmark_seconds(options: WatchOptions) -> float:
    if not options.HasField("bookmark_interval"):
        return DEFAULT_BOOKMARK_SECONDS
    return options.bookmark_interval.ToNanoseconds() / 1e9
