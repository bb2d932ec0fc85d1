"""One page of a list, with a limit on how many rows it may look at, whatever the filter.

What an index serves in the order of the list is asked of it, one part for each value (a state, a
template), and the parts are merged. What no index serves is looked for in windows, small ones
first; when a page has looked at its share, it comes back short, even empty, with a token to go on.
So it does, after one row at least, before its rows are more than about 1 MiB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from kapell_server.store.pages import ANSWER_BYTES, Page

SCAN_ROWS = 20_000
"""Rows one page may look at for a filter without an index."""
WINDOW = 500
"""Rows of the first window; later ones are larger where the database alone decides what matches."""
_GROWTH = 4

Conditions = Sequence[sa.ColumnElement[bool]]


@dataclass(frozen=True, slots=True)
class Rows:
    """A page: the matching rows' bytes, and the cursor to go on from (None at the end)."""

    data: list[bytes]
    next_cursor: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What is listed, in order of `key`.

    `parts` are disjoint, and an index gives each in order. `rest` is what SQL can say of a row but no
    index serves; `matches` what only the message tells.
    """

    key: sa.Column[Any]
    data: sa.Column[Any]
    parts: Sequence[Conditions] = ((),)
    rest: Conditions = ()
    matches: Callable[[bytes], bool] | None = None
    gapless: bool = False
    """Every number from the first to the last is a key, so that a window's end need not be looked up."""

    @property
    def is_served(self) -> bool:
        """Whether every row that is looked at matches."""
        return not self.rest and self.matches is None


def page_of(connection: Connection, listing: Listing, page: Page) -> Rows:
    """The rows that match, in the page's order."""
    budget = max(1, SCAN_ROWS // len(listing.parts))
    parts = [_Part(connection, listing, conditions, page).read(budget) for conditions in listing.parts]
    found = sorted((row for rows, _ in parts for row in rows), reverse=not page.oldest_first)
    edges = [edge for _, edge in parts if edge is not None]
    if edges:
        # Beyond the first edge a part may have rows that nobody has looked at.
        edge = min(edges) if page.oldest_first else max(edges)
        found = [row for row in found if (row[0] <= edge if page.oldest_first else row[0] >= edge)]
    count = _fitting(found, page.size)
    data = [bytes(data) for _, data in found[:count]]
    if len(found) > count:
        return Rows(data, found[count - 1][0])
    return Rows(data, edge if edges else None)


def _fitting(found: Sequence[tuple[int, Any]], most: int) -> int:
    """How many of these rows one page takes: `most`, or fewer where they are long, but one if there is any."""
    size = 0
    for index, (_, data) in enumerate(found[:most]):
        size += len(data)
        if index and size > ANSWER_BYTES:
            return index
    return min(most, len(found))


class _Part:
    """One part of a listing, for one page."""

    def __init__(self, connection: Connection, listing: Listing, conditions: Conditions, page: Page) -> None:
        self._connection = connection
        self._listing = listing
        self._conditions = conditions
        self._page = page
        key = listing.key
        self._order = key.asc() if page.oldest_first else key.desc()

    def read(self, budget: int) -> tuple[list[tuple[int, Any]], int | None]:
        """Up to a page and one more of (key, data), and the last key looked at; None for all of them."""
        most = self._page.size + 1
        if self._listing.is_served:
            rows = self._rows(self._page.cursor, None, most)
            return rows, rows[-1][0] if len(rows) == most else None
        matches = self._listing.matches
        found: list[tuple[int, Any]] = []
        position = self._page.cursor
        window = min(WINDOW, budget)
        while True:
            edge = self._edge(position, window)
            for row in self._rows(position, edge, None if matches else most - len(found)):
                if matches is None or matches(row[1]):
                    found.append(row)
                    if len(found) == most:
                        return found, row[0]
            budget -= window
            if edge is None or budget <= 0:
                return found, edge
            position = edge
            window = min(window if matches else window * _GROWTH, budget)

    def _rows(self, after: int | None, until: int | None, limit: int | None) -> list[tuple[int, Any]]:
        listing = self._listing
        statement = sa.select(listing.key, listing.data).where(*self._beyond(after), *listing.rest)
        if until is not None:
            statement = statement.where(listing.key <= until if self._page.oldest_first else listing.key >= until)
        rows = self._connection.execute(statement.order_by(self._order).limit(limit))
        return [(key, data) for key, data in rows]

    def _edge(self, after: int | None, window: int) -> int | None:
        """The last key of the window that begins after `after`; None where the part ends before."""
        key = self._listing.key
        if not self._listing.gapless:
            statement = sa.select(key).where(*self._beyond(after)).order_by(self._order).offset(window - 1).limit(1)
            return self._connection.scalar(statement)
        first, last = self._connection.execute(sa.select(sa.func.min(key), sa.func.max(key))).one()
        if first is None:
            return None
        if self._page.oldest_first:
            edge = (after if after is not None else first - 1) + window
            return edge if edge < last else None
        edge = (after if after is not None else last + 1) - window
        return edge if edge > first else None

    def _beyond(self, after: int | None) -> list[sa.ColumnElement[bool]]:
        conditions = list(self._conditions)
        if after is not None:
            key = self._listing.key
            conditions.append(key > after if self._page.oldest_first else key < after)
        return conditions
