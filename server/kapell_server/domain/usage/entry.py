"""What the ledger is made of: versions of records, running totals of series, sums of tasks and agents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kapell.v1.usage_pb2 import USAGE_BASIS_ESTIMATED, USAGE_BASIS_REPORTED, UsageRecord, UsageUpdate

from kapell_server.domain.times import timestamp_ns
from kapell_server.domain.usage.figures import Figures, Sums, nanos


class Dims(NamedTuple):
    """What records are summed by, and what every record of a line of the sums has in common."""

    agent_id: str
    agent_type: str
    template_id: str
    provider: str
    model: str


class Measure(NamedTuple):
    """What makes two reports of one use the same: its figures, without what Kapell reckons from them."""

    model: str
    figures: Figures
    units: Mapping[str, int]
    cost: int | None

    @classmethod
    def of(cls, record: UsageRecord) -> Measure:
        """The measure of a record; its cost only where it was reported."""
        said = record.HasField("cost") and record.cost_basis in (0, USAGE_BASIS_REPORTED)
        cost = nanos(record.cost) if said else None
        return cls(record.model, Figures.of(record.tokens), dict(record.units), cost)

    def covers(self, other: Measure) -> bool:
        """Whether the other says nothing that goes beyond this."""
        if other.model and other.model != self.model:
            return False
        if other.cost is not None and (self.cost is None or other.cost > self.cost):
            return False
        units = all(self.units.get(name, 0) >= number for name, number in other.units.items())
        return units and self.figures.covers(other.figures)


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of a record, as it stands in the ledger. The message must not be altered."""

    number: int
    """The order of recording."""
    key: int
    """The line of the sums it belongs to."""
    record: UsageRecord
    sums: Sums
    raw: bytes = b""
    superseded_by: int = 0
    """The version that replaced it; 0 for the one that counts."""

    @property
    def event_ns(self) -> int:
        """When it was used."""
        return timestamp_ns(self.record.event_time)


def sums_of(record: UsageRecord) -> Sums:
    """What a record adds to totals."""
    tokens = Figures.of(record.tokens)
    guessed = USAGE_BASIS_ESTIMATED in (record.basis, record.cost_basis)
    return Sums(1, *tokens, nanos(record.cost), int(record.unpriced), int(guessed))


def dims_of(record: UsageRecord) -> Dims:
    """What a record is summed by."""
    return Dims(record.agent_id, record.agent_type, record.template_id, record.provider, record.model)


@dataclass(frozen=True, slots=True)
class Series:
    """The largest running totals that were told of a series, and how many records they have made.

    `cost` is None until one is told.
    """

    count: int = 0
    figures: Figures = field(default_factory=Figures)
    units: Mapping[str, int] = field(default_factory=dict)
    cost: int | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """What a task or an agent has used. `told` is its latest event; `untold` says that there is more since."""

    own: Sums = field(default_factory=Sums)
    tree: Sums = field(default_factory=Sums)
    told: UsageUpdate | None = None
    create_revision: int = 0
    untold: bool = False


@dataclass(slots=True)
class UsageWrites:
    """What a batch has to write to the ledger."""

    entries: list[Entry] = field(default_factory=list)
    superseded: list[tuple[Entry, int]] = field(default_factory=list)
    """Versions that count no more, each with the version that does."""
    keys: dict[Dims, int] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    totals: dict[str, Total] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.entries or self.superseded or self.totals or self.series)


OTHERS = "used"
"""The usage_id of what has neither task nor agent."""


def usage_id_of_task(task_id: str) -> str:
    """The id of a task's totals: another prefix, not longer, so that it fits wherever ids do."""
    return "used_" + task_id.removeprefix("task_")


def usage_id_of_agent(agent_id: str) -> str:
    """The id of an agent's totals."""
    return "spent_" + agent_id.removeprefix("agent_")
