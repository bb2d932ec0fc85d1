"""The ledger's rows as the rules' memory has them: every version, and totals beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from kapell.v1.usage_pb2 import UsageUpdate
from kapell_server.domain.state import State
from kapell_server.domain.usage.entry import Dims, Entry, Series, Total, UsageWrites


class UsageRows:
    """Committed rows of the ledger. `entries` are all versions in the order of recording."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.keys: dict[Dims, int] = {}
        self.series: dict[str, Series] = {}
        self.totals: dict[str, Total] = {}
        self.told: dict[str, UsageUpdate] = {}

    def versions(self, record_ids: Iterable[str]) -> list[Entry]:
        wanted = set(record_ids)
        return [entry for entry in self.entries if entry.record.record_id in wanted]

    def counting(self) -> list[Entry]:
        """The versions that count."""
        return [entry for entry in self.entries if not entry.superseded_by]

    def commit(self, writes: UsageWrites) -> None:
        """Takes over what a batch has written."""
        self.entries += writes.entries
        for gone, version in writes.superseded:
            place = next(i for i, entry in enumerate(self.entries) if entry.number == gone.number)
            assert not self.entries[place].superseded_by, "a version is superseded once"
            self.entries[place] = dataclasses.replace(self.entries[place], superseded_by=version)
        assert not self.keys.keys() & writes.keys.keys(), "a line is inserted once"
        self.keys.update(writes.keys)
        self.series.update(writes.series)
        self.totals.update(writes.totals)

    def picture(self, state: State) -> object:
        """Everything of the ledger that a refused command must leave as it was."""
        shelf = state.usage
        return (
            [(entry.number, entry.superseded_by, entry.record.SerializeToString()) for entry in self.entries],
            dict(self.keys),
            dict(self.series),
            {usage_id: (total.own, total.tree, total.untold) for usage_id, total in self.totals.items()},
            (shelf.last_number, shelf.last_key, list(shelf._untold), shelf._cost, shelf._tokens),
        )
