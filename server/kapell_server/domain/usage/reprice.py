"""Costing records anew, by the prices as they are now: a new version for each whose cost differs.

The records are found past the writer and looked at again here, since they may have changed in between.
"""

from __future__ import annotations

from dataclasses import dataclass

from kapell.v1.usage_pb2 import USAGE_BASIS_REPORTED, RepriceUsageRequest, RepriceUsageResponse, UsageRecord

from kapell_server.domain.copied import copied
from kapell_server.domain.state import State
from kapell_server.domain.usage.figures import money, nanos
from kapell_server.domain.usage.growth import Growth
from kapell_server.domain.usage.ledger import keep, put_cost

MOST_CHANGED = 1_000
"""Records that one call costs anew: the writer is held up for no longer than by as many new records."""
_NOTE = "costed anew"


@dataclass(frozen=True, slots=True)
class RepriceCommand:
    """A RepriceUsage with the records it is about; `more` where others are left for the next call."""

    request: RepriceUsageRequest
    record_ids: tuple[str, ...]
    more: bool

    @property
    def request_id(self) -> str:
        return self.request.request_id


@dataclass(slots=True)
class Comparison:
    """What costing anew does, by model."""

    by_model: dict[tuple[str, str], list[int]]
    changed: int = 0

    def add(self, before: UsageRecord, after: UsageRecord) -> None:
        """Notes a record whose cost differs."""
        line = self.by_model.setdefault((after.provider, after.model), [0, 0, 0, 0])
        line[0] += 1
        line[1] += before.unpriced
        line[2] += nanos(before.cost)
        line[3] += nanos(after.cost)
        self.changed += 1

    def response(self) -> RepriceUsageResponse:
        """By model, the largest change first."""
        response = RepriceUsageResponse(changed=self.changed)
        lines = sorted(self.by_model.items(), key=lambda item: (-abs(item[1][3] - item[1][2]), item[0]))
        for (provider, model), (records, unpriced, before, after) in lines:
            response.models.add(
                provider=provider,
                model=model,
                records=records,
                unpriced_before=unpriced,
                cost_before=money(before),
                cost_after=money(after),
            )
        return response


def costed_anew(state: State, record: UsageRecord, request: RepriceUsageRequest) -> UsageRecord | None:
    """The record with its cost by the prices as they are; None where it stays as it is."""
    if record.cost_basis == USAGE_BASIS_REPORTED and not request.include_reported:
        return None
    fresh = copied(record)
    for name in ("cost", "cost_basis", "price_id", "unpriced"):
        fresh.ClearField(name)
    if "cost" in fresh.estimated_fields:
        fresh.estimated_fields.remove("cost")
    put_cost(state, fresh)
    if record.cost_basis == USAGE_BASIS_REPORTED and fresh.unpriced:
        return None
    differs = fresh.unpriced != record.unpriced or nanos(fresh.cost) != nanos(record.cost)
    return fresh if differs else None


def reprice(state: State, command: RepriceCommand) -> RepriceUsageResponse:
    """Costs the records anew that still differ."""
    found = Comparison({})
    growth = Growth(state)
    state.usage.prefetch(command.record_ids, ())
    for record_id in command.record_ids:
        versions = state.usage.versions(record_id)
        current = versions[-1] if versions else None
        fresh = costed_anew(state, current.record, command.request) if current is not None else None
        if current is None or fresh is None:
            continue
        found.add(current.record, fresh)
        fresh.note = _NOTE
        keep(state, fresh, current, growth)
    growth.apply()
    response = found.response()
    response.more = command.more
    response.revision = state.revision
    return response
