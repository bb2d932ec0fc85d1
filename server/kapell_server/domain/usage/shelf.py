"""The part of the ledger that a batch looks at, and its totals as they grow. Undone with the rest of State.

Nothing here is a truth of its own: versions are kept for one batch, totals and lines for as long as there is
room, and what is not in memory is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from kapell.v1.error_pb2 import ERROR_REASON_USAGE_LIMIT
from kapell.v1.usage_pb2 import UsageUpdate
from kapell.v1.watch_pb2 import EVENT_KIND_USAGE_UPDATE

from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import SECOND, stamp
from kapell_server.domain.usage.entry import Dims, Entry, Series, Total
from kapell_server.domain.usage.figures import MOST_SUM, NANO, Sums
from kapell_server.domain.usage.prices import PriceBook

if TYPE_CHECKING:
    from kapell_server.domain.state import State

SUBJECT = "usage"
"""What the timer is asked to look at, to tell of totals that have grown."""
TELL_EVERY = SECOND
"""The totals of a task or an agent are told of this often at most."""
_TOLD_AT_ONCE = 500
_MOST_TOTALS = 20_000
_MOST_KEYS = 50_000

Settler = Callable[["State", Entry, Entry | None], None]
"""Told of each record whose cost is known: the new version and, for a correction, the one it replaces."""


class UsageShelf:
    """Versions, series, lines and totals, and the prices that records are costed by."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.prices = PriceBook(state)
        self.settlers: list[Settler] = []
        """Called in the writer, in the change that records: budgets settle here."""
        self.last_number = 0
        self.last_key = 0
        self._versions: dict[str, list[Entry]] = {}
        self._series: dict[str, Series] = {}
        self._keys: dict[Dims, int] = {}
        self._totals: dict[str, Total] = {}
        self._untold: dict[str, None] = {}
        self._next_tell_ns = 0
        self._cost = 0
        self._tokens = 0

    def resume(self, numbers: tuple[int, int], whole: tuple[int, int], untold: Iterable[str]) -> None:
        """Takes over what the database has, at the start: the last numbers, and what all records cost and have used."""
        self.last_number, self.last_key = numbers
        self._cost, self._tokens = whole
        self._untold.update(dict.fromkeys(untold))
        if self._untold:
            self._state.schedule(self._state.now_ns, SUBJECT)

    def begin(self) -> None:
        """A batch begins: what the one before has looked at is forgotten, and what is too much of totals and lines."""
        self._versions.clear()
        self._series.clear()
        while len(self._totals) > _MOST_TOTALS:
            del self._totals[next(iter(self._totals))]
        while len(self._keys) > _MOST_KEYS:
            del self._keys[next(iter(self._keys))]

    # -- records -----------------------------------------------------------------------------

    def prefetch(self, record_ids: Iterable[str], series: Iterable[str]) -> None:
        """Loads in one query each what is not in memory."""
        missing = {record_id for record_id in record_ids if record_id and record_id not in self._versions}
        if missing:
            self._versions.update((record_id, []) for record_id in missing)
            for entry in self._state.loader.load_usage_versions(missing):
                self._versions[entry.record.record_id].append(entry)
        names = {name for name in series if name and name not in self._series}
        if names:
            self._series.update((name, Series()) for name in names)
            self._series.update(self._state.loader.load_usage_series(names))

    def versions(self, record_id: str) -> list[Entry]:
        """All versions of a record, the first one first."""
        if record_id not in self._versions:
            self.prefetch((record_id,), ())
        return self._versions[record_id]

    def series(self, name: str) -> Series:
        """The running totals of a series as they were last reported."""
        if name not in self._series:
            self.prefetch((), (name,))
        return self._series[name]

    def keep_series(self, name: str, series: Series) -> None:
        """Records the running totals of a series."""
        self._state.assign(self._series, name, series)
        self._state.assign(self._state.pending.usage.series, name, series)

    def keep(self, entry: Entry, previous: Entry | None) -> None:
        """Records a version; the one before counts no more. USAGE_LIMIT where a sum would grow too large."""
        state = self._state
        self._weigh(entry, previous)
        writes = state.pending.usage
        versions = self.versions(entry.record.record_id)
        versions.append(entry)
        writes.entries.append(entry)
        state.on_rollback(versions.pop)
        state.on_rollback(writes.entries.pop)
        if previous is not None:
            writes.superseded.append((previous, entry.record.version))
            state.on_rollback(writes.superseded.pop)
        for settle in self.settlers:
            settle(state, entry, previous)

    def _weigh(self, entry: Entry, previous: Entry | None) -> None:
        """Holds the sum of all records within 64 bits, and with it every sum of some of them.

        None of them counts less than nothing, so no other sum can be larger: a day's, a task's, a tree's, a query's.
        """
        cost = self._cost + entry.sums.cost - (previous.sums.cost if previous is not None else 0)
        tokens = self._tokens + entry.sums.tokens - (previous.sums.tokens if previous is not None else 0)
        if max(cost, tokens) > MOST_SUM:
            raise KapellError(
                ERROR_REASON_USAGE_LIMIT,
                f"All usage together would be more than the ledger can sum: {MOST_SUM // NANO:,} dollars, "
                f"or {MOST_SUM} tokens. Check the figures; where older ones are wrong, correct those.",
                metadata={"limit": str(MOST_SUM)},
            )
        self._state.on_rollback(self._weigh_back, self._cost, self._tokens)
        self._cost, self._tokens = cost, tokens

    def _weigh_back(self, cost: int, tokens: int) -> None:
        self._cost, self._tokens = cost, tokens

    def next_number(self) -> int:
        """The number of the next record."""
        self.last_number += 1
        self._state.on_rollback(self._take_back_number)
        return self.last_number

    def _take_back_number(self) -> None:
        self.last_number -= 1

    def key_of(self, dims: Dims) -> int:
        """The line of the sums for these values; a new one where there is none."""
        known = self._keys.get(dims)
        if known is None:
            known = self._state.loader.load_usage_key(dims)
            if known is not None:
                self._keys[dims] = known
                return known
            self.last_key += 1
            known = self.last_key
            self._state.on_rollback(self._take_back_key)
            self._state.assign(self._keys, dims, known)
            self._state.assign(self._state.pending.usage.keys, dims, known)
        return known

    def _take_back_key(self) -> None:
        self.last_key -= 1

    # -- totals ------------------------------------------------------------------------------

    def prefetch_totals(self, usage_ids: Iterable[str]) -> None:
        """Loads in one query what is not in memory."""
        missing = {usage_id for usage_id in usage_ids if usage_id not in self._totals}
        if missing:
            loaded = self._state.loader.load_usage_totals(missing)
            self._totals.update((usage_id, loaded.get(usage_id, Total())) for usage_id in missing)

    def total(self, usage_id: str) -> Total:
        """What a task or an agent has used."""
        self.prefetch_totals((usage_id,))
        return self._totals[usage_id]

    def add(self, usage_id: str, own: Sums, tree: Sums) -> None:
        """Adds to the totals, and has watchers told before long."""
        current = self.total(usage_id)
        grown = Total(current.own.plus(own), current.tree.plus(tree), current.told, current.create_revision, True)
        self._put_total(usage_id, grown)
        if usage_id not in self._untold:
            self._state.assign(self._untold, usage_id, None)
        self._state.schedule(max(self._state.now_ns, self._next_tell_ns), SUBJECT)

    def _put_total(self, usage_id: str, total: Total) -> None:
        self._state.assign(self._totals, usage_id, total)
        self._state.assign(self._state.pending.usage.totals, usage_id, total)

    def tell(self) -> None:
        """Puts an event for each total that has grown since its last one; what is too much is for the next batch."""
        state = self._state
        if state.now_ns < self._next_tell_ns:
            state.schedule(self._next_tell_ns, SUBJECT)
            return
        due = [usage_id for usage_id, _ in zip(self._untold, range(_TOLD_AT_ONCE), strict=False)]
        self.prefetch_totals(due)
        state.prefetch_tasks(f"task_{usage_id.partition('_')[2]}" for usage_id in due if usage_id.startswith("used_"))
        for usage_id in due:
            self._tell_of(usage_id)
        if self._untold:
            state.schedule(state.now_ns, SUBJECT)
        elif due:
            self._next_tell_ns = state.now_ns + TELL_EVERY

    def _tell_of(self, usage_id: str) -> None:
        state = self._state
        total = self._totals[usage_id]
        state.remove(self._untold, usage_id)
        update = UsageUpdate(usage_id=usage_id, usage=total.own.message())
        self._name_subject(update, usage_id)
        if update.task_id:
            update.tree_usage.CopyFrom(total.tree.message())
        stamp(update.update_time, state.now_ns)
        told = total.told
        since = told.revision if told is not None else 0
        changed = ("usage", "tree_usage")
        state.record(update, EVENT_KIND_USAGE_UPDATE, since, changed, created=told is None, deleted=False)
        self._put_total(usage_id, Total(total.own, total.tree, update, total.create_revision or update.revision))

    def _name_subject(self, update: UsageUpdate, usage_id: str) -> None:
        prefix, _, rest = usage_id.partition("_")
        if prefix == "spent":
            update.agent_id = f"agent_{rest}"
        elif rest:
            update.task_id = f"task_{rest}"
            task = self._state.find_task(update.task_id)
            if task is not None:
                update.root_task_id = task.root_task_id or task.task_id
            else:
                update.root_task_id = update.task_id
