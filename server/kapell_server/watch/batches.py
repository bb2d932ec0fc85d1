"""From records to encoded messages: made once, given to every watcher that needs the same."""

from __future__ import annotations

from collections.abc import Sequence

from kapell_server.store.record import Record
from kapell_server.watch.filters import Filter
from kapell_server.wire import field

# A message ends with the record that reaches this size.
MESSAGE_BYTES = 256 * 1024
# Number of `events` in WatchResponse, WatchTasksResponse and WatchAgentsResponse.
_EVENTS = 1
_KEPT = 64


class Batches:
    """Messages made for one watcher and kept for those that need the very same one next.

    Watchers with equal filters move in step, so a wave of a thousand encodes once.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[bytes, int, int], tuple[bytes, int]] = {}

    def encode(self, wanted: Filter, cursor: int, records: Sequence[Record]) -> tuple[bytes, int]:
        """A message with those of `records` that match, b"" for none, and the cursor after it.

        `records` follow `cursor`; what does not fit into the message stays beyond the new cursor.
        """
        if not records:
            return b"", cursor
        key = (wanted.key, cursor, records[-1].revision)
        made = self._made.get(key)
        if made is None:
            made = _make(wanted, records)
            if len(self._made) >= _KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = made
        return made


def split(records: Sequence[Record]) -> list[bytes]:
    """Messages that together hold all of `records`."""
    messages: list[bytes] = []
    while records:
        message, count = _fill(records)
        messages.append(message)
        records = records[count:]
    return messages


def _make(wanted: Filter, records: Sequence[Record]) -> tuple[bytes, int]:
    matching = [record for record in records if wanted.matches(record)] if wanted.tests else records
    message, count = _fill(matching)
    if count < len(matching):
        return message, matching[count - 1].revision
    return message, records[-1].revision


def _fill(records: Sequence[Record]) -> tuple[bytes, int]:
    """One encoded WatchResponse and how many of `records` it holds."""
    parts: list[bytes] = []
    size = 0
    for record in records:
        parts.append(field(_EVENTS, record.data))
        size += len(record.data)
        if size >= MESSAGE_BYTES:
            break
    return b"".join(parts), len(parts)
