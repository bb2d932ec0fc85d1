"""Watches that outlive their connections: every event once, in order, whatever the network does.

A `Watch` holds a cursor. When its stream breaks it opens a new one after the last revision it
received, with the log's id, and drops what it has already. The initial state is handed out only
once it is complete: a snapshot that breaks off half-way is taken again unseen, because between
two halves of different snapshots a deletion would be lost.

States: not connected → connected (first message, always a bookmark) → lost → connected … → closed
(by the reader, or by an error that trying again cannot mend). The surprise: cancelling a reader,
as `asyncio.wait_for` does, closes only the stream; the next read resumes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, Self, TypedDict, TypeVar

from kapell.connection import Stream
from kapell.errors import KapellError, RevisionCompacted, Unavailable
from kapell.messages import duration
from kapell.reconnect import CONNECT_TIMEOUT, Reconnect
from kapell.v1.watch_pb2 import EVENT_KIND_SNAPSHOT, Bookmark, EventKind, WatchOptions

_SILENCE_MARGIN = 15.0


class _Event(Protocol):
    @property
    def revision(self) -> int: ...
    @property
    def kind(self) -> EventKind.ValueType: ...


E = TypeVar("E", bound=_Event)
_E_co = TypeVar("_E_co", bound=_Event, covariant=True)


class WatchMessage(Protocol[_E_co]):
    """What the three watching methods send."""

    @property
    def events(self) -> Iterable[_E_co]: ...
    @property
    def bookmark(self) -> Bookmark: ...
    def HasField(self, field_name: Literal["bookmark"]) -> bool: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchStart:
    """Where a watch begins and how much it puts up with."""

    after_revision: int | None = None
    """Events after this one; None means from now on, or, with `initial_state`, from the snapshot on."""
    log_id: str = ""
    """The log `after_revision` belongs to; empty leaves it unchecked."""
    initial_state: bool = False
    """First everything that matches, as SNAPSHOT events."""
    on_compacted: Literal["raise", "snapshot"] = "raise"
    """What to do when the log no longer reaches back to the cursor."""
    on_reset: Callable[[], None] | None = None
    """Called just before a snapshot that replaces what was handed out earlier: forget all of it."""
    on_link: Callable[[bool], None] | None = None
    """Called with False when a stream that was lost does not come back at once, and with True when it is back."""
    bookmark_interval: float = 10.0
    """Seconds, 1 to 60, between signs of life of a quiet stream."""
    silence_timeout: float | None = None
    """Seconds without a message after which a stream is given up; None: the bookmark interval and 15 s."""
    connect_timeout: float | None = CONNECT_TIMEOUT
    """Seconds to try for the first connection; None tries for ever. A lost one is always sought for ever."""


class WatchKeywords(TypedDict, total=False):
    """The fields of WatchStart as keyword arguments of the watching verbs."""

    after_revision: int | None
    log_id: str
    initial_state: bool
    on_compacted: Literal["raise", "snapshot"]
    on_reset: Callable[[], None] | None
    on_link: Callable[[bool], None] | None
    bookmark_interval: float
    silence_timeout: float | None
    connect_timeout: float | None


def split_start(keywords: Mapping[str, Any]) -> tuple[WatchStart, dict[str, Any]]:
    """Parts the keyword arguments of a watching verb: where it begins, and what it is to match."""
    names = WatchKeywords.__optional_keys__
    start = WatchStart(**{name: value for name, value in keywords.items() if name in names})
    return start, {name: value for name, value in keywords.items() if name not in names}


class Watch(Generic[E]):
    """An async iterator of events. `async with` it to be sure that it has begun; close it when done.

    Raises RevisionCompacted when the cursor is older than the log (unless it was asked for a
    snapshot then), Unavailable when the first connection fails, and whatever else the server
    refuses; after an error it is closed. One reader at a time.
    """

    def __init__(self, open_stream: Callable[[WatchOptions], Stream[WatchMessage[E]]], start: WatchStart) -> None:
        self._open = open_stream
        self._start = start
        self._stream: Stream[WatchMessage[E]] | None = None
        self._received = start.after_revision
        self._delivered = start.after_revision
        self._snapshot: list[E] | None = [] if start.initial_state else None
        self._ready: deque[E] = deque()
        self._closed = False
        self._reconnect = Reconnect(start.connect_timeout)
        self._silence_timeout = start.silence_timeout or start.bookmark_interval + _SILENCE_MARGIN
        self.log_id = start.log_id
        self.connected = False
        self._is_away = False
        self.reconnects = 0
        self.resets = 0

    @property
    def revision(self) -> int | None:
        """Every matching event up to this revision was handed out; None before that can be said.

        Together with `log_id` the place where a later watch goes on.
        """
        return self._delivered if self._ready else self._received

    async def ready(self) -> None:
        """Returns when the watch has begun: no later change will be missed. Errors as when reading."""
        while not self._reconnect.begun and not self._closed:
            await self._advance()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        while not self._ready:
            if self._closed:
                raise StopAsyncIteration
            await self._advance()
        event = self._ready.popleft()
        if event.kind != EVENT_KIND_SNAPSHOT:
            self._delivered = event.revision
        return event

    def close(self) -> None:
        """Ends the watch; a reader that waits sees its end. Closing twice is fine."""
        self._closed = True
        self._received = self.revision
        self._ready.clear()
        self._drop_stream()

    async def aclose(self) -> None:
        """As `close`, for `contextlib.aclosing`."""
        self.close()

    async def __aenter__(self) -> Self:
        await self.ready()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    async def _advance(self) -> None:
        """Takes the next message, or notes that the stream is lost and pauses."""
        try:
            message = await self._read()
        except KapellError as error:
            self._drop_stream()
            pause = self._pause_after(error)
            if pause is None:
                self.close()
                raise
            if pause and self._reconnect.begun:
                self._tell_link(is_away=True)
            await asyncio.sleep(pause)
            return
        except asyncio.CancelledError:
            self._drop_stream()
            raise
        if message is not None:
            self._take(message)

    async def _read(self) -> WatchMessage[E] | None:
        """The next message; None when the watch was closed meanwhile. A stream that ends is Unavailable."""
        if self._stream is None:
            self._stream = self._open(self._options())
        try:
            async with asyncio.timeout(self._silence_timeout):
                return await anext(self._stream)
        except StopAsyncIteration:
            if self._closed:
                return None
            raise Unavailable("the server ended the watch") from None
        except TimeoutError:
            raise Unavailable("the watch has been silent for too long") from None

    def _options(self) -> WatchOptions:
        options = WatchOptions(bookmark_interval=duration(self._start.bookmark_interval))
        if self._snapshot is not None:
            self._snapshot.clear()
            options.send_initial_state = True
        elif self._received is not None:
            options.start_after_revision = self._received
            options.log_id = self.log_id
        return options

    def _take(self, message: WatchMessage[E]) -> None:
        if not self.connected:
            self.connected = True
            self.reconnects += self._reconnect.begun
            self._tell_link(is_away=False)
        self._reconnect.succeeded()
        for event in message.events:
            self._take_event(event)
        if message.HasField("bookmark"):
            self._take_bookmark(message.bookmark)

    def _tell_link(self, *, is_away: bool) -> None:
        """Says once that the server is away, and once that it is back."""
        if self._is_away != is_away:
            self._is_away = is_away
            if self._start.on_link is not None:
                self._start.on_link(not is_away)

    def _take_event(self, event: E) -> None:
        if self._snapshot is not None:
            self._snapshot.append(event)
        elif self._received is None or event.revision > self._received:
            self._received = event.revision
            self._ready.append(event)

    def _take_bookmark(self, bookmark: Bookmark) -> None:
        self.log_id = bookmark.log_id
        if self._snapshot is None:
            self._received = max(self._received or 0, bookmark.revision)
        elif bookmark.snapshot_complete:
            self._ready.extend(self._snapshot)
            self._snapshot = None
            self._received = bookmark.revision
            if self.resets and self._start.on_reset is not None:
                self._start.on_reset()

    def _pause_after(self, error: KapellError) -> float | None:
        """Seconds until the next try; None when trying again is pointless."""
        if isinstance(error, RevisionCompacted) and self._start.on_compacted == "snapshot":
            self._received = self._delivered = None
            self._snapshot = []
            self.log_id = ""
            self.resets += 1
            return 0.0
        return self._reconnect.pause_after(error)

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        self.connected = False
        if stream is not None:
            stream.cancel()
