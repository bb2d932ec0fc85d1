"""The oracle of every watch test: W1 and W2, knowing nothing of how a watch works.

Feed it each message in the order received; it fails at the first broken promise.
"""

from __future__ import annotations

from kapell.v1.event_pb2 import Event, WatchResponse
from kapell.v1.watch_pb2 import EVENT_KIND_SNAPSHOT, EventKind

_ENDS = ("LOCK_EXPIRED", "LOCK_RELEASED", "LOCK_REVOKED", "SESSION_CLOSED", "SESSION_EXPIRED")
_DELETED = frozenset(
    number
    for name, number in EventKind.items()
    if name.endswith("_DELETED") or name.removeprefix("EVENT_KIND_") in _ENDS
)


class WatchChecker:
    """Checks one watch, over any number of resumed streams.

    `gapless`: the watch has no filter, so every revision must come. `state` is what the watch
    says the resources are: id to the revision of the latest change.
    """

    def __init__(self, *, gapless: bool = True) -> None:
        self.state: dict[str, int] = {}
        self.revisions: list[int] = []
        self.messages = 0
        self.bookmarks = 0
        self.cursor: int | None = None
        self._gapless = gapless
        self._fresh = True
        self._in_snapshot = False

    def begin_stream(self, *, snapshot: bool = False) -> None:
        """A new stream follows; with `snapshot` it was asked for the initial state."""
        self._fresh = True
        self._in_snapshot = snapshot
        if snapshot:
            self.state.clear()
            self.cursor = None

    def take(self, message: WatchResponse) -> None:
        """Checks the next message of the stream."""
        self.messages += 1
        if self._fresh:
            assert message.HasField("bookmark"), "the first message of a stream is a bookmark"
            self._fresh = False
        if message.HasField("bookmark"):
            assert not message.events, "a message is either events or a bookmark"
            self._take_bookmark(message)
        else:
            assert message.events, "a message without a bookmark has events"
        for event in message.events:
            self._take_event(event)

    def _take_bookmark(self, message: WatchResponse) -> None:
        self.bookmarks += 1
        bookmark = message.bookmark
        assert bookmark.log_id, "a bookmark names its log"
        if self.cursor is not None:
            assert bookmark.revision >= self.cursor, f"bookmark {bookmark.revision} after {self.cursor}"
            if self._gapless:
                assert bookmark.revision == self.cursor, f"bookmark {bookmark.revision}, sent {self.cursor}"
        if bookmark.snapshot_complete:
            assert self._in_snapshot, "snapshot_complete comes once, and only where it was asked for"
            self._in_snapshot = False
        self.cursor = bookmark.revision

    def _take_event(self, event: Event) -> None:
        resource_id, revision = _resource(event)
        assert self.cursor is not None
        if event.kind == EVENT_KIND_SNAPSHOT:
            assert self._in_snapshot, "SNAPSHOT events come before snapshot_complete"
            assert event.revision <= self.cursor, f"snapshot at {self.cursor} holds {event.revision}"
            assert resource_id not in self.state, f"{resource_id} twice in one snapshot"
            self.state[resource_id] = event.revision
            return
        assert not self._in_snapshot, "events follow the snapshot"
        assert event.revision > self.cursor, f"revision {event.revision} after {self.cursor}"
        if self._gapless:
            assert event.revision == self.cursor + 1, f"revision {event.revision} after {self.cursor}: a gap"
        assert revision == event.revision, "an event carries the resource as of its own revision"
        self.cursor = event.revision
        self.revisions.append(event.revision)
        if event.kind in _DELETED:
            self.state.pop(resource_id, None)
        else:
            self.state[resource_id] = event.revision


def _resource(event: Event) -> tuple[str, int]:
    """Its name, which no resource of another kind has, and its revision: of whatever kind the event is."""
    kind = event.WhichOneof("resource")
    assert kind is not None, f"event {event.revision} has no resource"
    resource = getattr(event, kind)
    key = resource.DESCRIPTOR.fields_by_number[1].name
    name = getattr(resource, key)
    return name if key.endswith("_id") else f"{kind} {name}", resource.revision
