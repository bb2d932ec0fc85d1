"""Following the log: one loop a watcher, for snapshot, events and bookmarks alike.

What a watcher is sent rises in revision without gap or duplicate (W1); a snapshot at R and
the events beyond R make the current state (W2).

A watcher is driven by whoever consumes its stream: while the consumer is stuck nothing is
read and nothing piles up, and nobody else notices. Ending consumers that are stuck for ever
is the rpc layer's part, for watches and all other streams alike.

Failures: REVISION_COMPACTED where the log no longer reaches back to the cursor or is another
log, REVISION_IN_FUTURE, TOO_MANY_WATCHES; SERVER_DRAINING ends every watch when the ring closes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from kapell.v1.error_pb2 import ERROR_REASON_TOO_MANY_WATCHES
from kapell.v1.watch_pb2 import WatchOptions

from kapell_server.domain.errors import KapellError
from kapell_server.watch.cursor import Cursor, Log, LogReads
from kapell_server.watch.filters import Filter
from kapell_server.watch.ring import Ring

DEFAULT_LIMIT = 10_000


class Watches:
    """Opens watches on one log and counts them in `open`. Belongs to the loop thread."""

    def __init__(self, ring: Ring, reads: LogReads, *, log_id: str, limit: int = DEFAULT_LIMIT) -> None:
        self.open = 0
        self._log = Log(ring, reads, log_id=log_id)
        self._limit = limit

    async def follow(self, wanted: Filter, options: WatchOptions) -> AsyncGenerator[bytes, None]:
        """Encoded WatchResponse messages, until the consumer stops asking; the first is a bookmark.

        The bytes are as good for WatchTasksResponse, WatchAgentsResponse and WatchUsageResponse. `aclose` it when done
        with it. Raises KapellError as the module says, before the first
        message for everything that could be known by then.
        """
        self._refuse_beyond_limit()
        self.open += 1
        try:
            cursor = Cursor(self._log, wanted, await self._log.start(options), options)
            yield self._log.bookmark(cursor.revision)
            if options.send_initial_state:
                async with aclosing(cursor.snapshot()) as snapshot:
                    async for message in snapshot:
                        yield message
            while True:
                yield await cursor.next()
        finally:
            self.open -= 1

    def _refuse_beyond_limit(self) -> None:
        if self.open >= self._limit:
            raise KapellError(
                ERROR_REASON_TOO_MANY_WATCHES,
                f"The server follows {self.open} watches, which is its limit of {self._limit}."
                " Close watches that are not needed, or let several consumers share one.",
                metadata={"limit": str(self._limit)},
                retry_after=5.0,
            )
