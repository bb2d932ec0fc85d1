"""How usage comes into the ledger: read, checked, costed and kept, each record once (B3), with an outcome of its own.

What is known by a record_id only ever grows: figures that go no further than a version of it change nothing, so
everything may be sent again in any order; larger ones, as of a stream that went on, make a new version. Whatever
else differs is refused, unless it says that it is a correction. A series works the same way: its running totals
are compared with the largest that were seen, and only what goes beyond them is recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kapell.v1.error_pb2 import (
    ERROR_REASON_AGENT_NOT_FOUND,
    ERROR_REASON_NOT_OWNER,
    ERROR_REASON_REQUEST_INVALID,
    ERROR_REASON_TASK_NOT_FOUND,
    ERROR_REASON_USAGE_CONFLICT,
)
from kapell.v1.task_pb2 import TaskAttempt
from kapell.v1.usage_pb2 import (
    USAGE_BASIS_DERIVED,
    USAGE_BASIS_ESTIMATED,
    USAGE_BASIS_REPORTED,
    USAGE_BASIS_UNSPECIFIED,
    USAGE_OUTCOME_KIND_CORRECTED,
    USAGE_OUTCOME_KIND_DUPLICATE,
    USAGE_OUTCOME_KIND_RECORDED,
    USAGE_OUTCOME_KIND_REFUSED,
    RecordUsageRequest,
    RecordUsageResponse,
    UsageOutcome,
    UsageOutcomeKind,
    UsageRecord,
)

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.times import SECOND, stamp, timestamp_ns
from kapell_server.domain.usage.entry import Entry, Measure, dims_of, sums_of
from kapell_server.domain.usage.figures import Figures, money
from kapell_server.domain.usage.growth import Growth
from kapell_server.domain.usage.raw import read_raw
from kapell_server.domain.usage.reading import RawUsage, RawUsageError, plain
from kapell_server.domain.usage.series import Step, step_of
from kapell_server.domain.workers.speaking import attempt_of_the_past

_MOST_RAW = 16_384
_DAY = 86_400 * SECOND
_OUTPUT_ONLY = (
    *("version", "agent_type", "root_task_id", "template_id", "cost_basis", "price_id", "unpriced", "derived_fields"),
    *("estimated_fields", "superseded_by_version", "record_time", "recorder"),
)


@dataclass(slots=True)
class _Use:
    """One use of a model on its way in; `raw` is its payload where that is to be kept."""

    record: UsageRecord
    raw: bytes = b""


def record_usage(state: State, request: RecordUsageRequest) -> RecordUsageResponse:
    """Takes the records of a client, each for itself; those of a program are its attempt's."""
    lease_id = state.caller.lease
    lease = state.leases.meant_by(lease_id) if lease_id is not None else None
    if lease_id is not None and lease is None:
        raise attempt_of_the_past(lease_id)
    outcomes = take(state, request.records, lease.record if lease is not None else None)
    return RecordUsageResponse(outcomes=outcomes, revision=state.revision)


def take(state: State, records: Sequence[UsageRecord], attempt: TaskAttempt | None = None) -> list[UsageOutcome]:
    """Takes records, as those of one attempt where it is said, which may have ended; an outcome for each."""
    read = [_read(record) for record in records]
    uses = [use for one in read if not isinstance(one, UsageOutcome) for use in one]
    _prefetch(state, (use.record for use in uses), attempt)
    growth = Growth(state)
    outcomes = [one if isinstance(one, UsageOutcome) else _take_all(state, one, attempt, growth) for one in read]
    growth.apply()
    return outcomes


def refused(outcomes: Iterable[UsageOutcome]) -> list[UsageOutcome]:
    """Those that were refused."""
    return [outcome for outcome in outcomes if outcome.kind == USAGE_OUTCOME_KIND_REFUSED]


def _prefetch(state: State, records: Iterable[UsageRecord], attempt: TaskAttempt | None) -> None:
    found = list(records)
    state.usage.prefetch((record.record_id for record in found), (record.series for record in found))
    task_ids = {record.task_id for record in found if record.task_id}
    if attempt is not None:
        task_ids.add(attempt.task_id)
    # A task, its parent, the parent's parent: a query for each generation, not for each task.
    while task_ids:
        state.prefetch_tasks(task_ids)
        parents = (task.parent_task_id for task_id in task_ids if (task := state.find_task(task_id)) is not None)
        task_ids = {parent_id for parent_id in parents if parent_id}


# -- reading ---------------------------------------------------------------------------------


def _read(record: UsageRecord) -> list[_Use] | UsageOutcome:
    """The uses that a sent record tells of; the refusal where it cannot be read."""
    try:
        if not record.HasField("raw"):
            return [_Use(_plain(record))]
        if record.raw.ByteSize() > _MOST_RAW:
            raise RawUsageError(f"it has {record.raw.ByteSize()} bytes, at most {_MOST_RAW} are taken")
        found = read_raw(plain(record.raw), record.raw_format)
        if len(found) > 1 and record.series:
            raise RawUsageError(f"it tells of {len(found)} models, which cannot all be one series")
        raw = record.raw.SerializeToString() if record.keep_raw else b""
        return [_Use(_from_raw(record, one), raw) for one in found]
    except RawUsageError as error:
        what = f"raw cannot be read: {error}" if record.HasField("raw") else str(error)
        return _refusal(record.record_id, ERROR_REASON_REQUEST_INVALID, what)


def _plain(sent: UsageRecord) -> UsageRecord:
    record = copied(sent)
    for name in _OUTPUT_ONLY:
        record.ClearField(name)  # type: ignore[arg-type]
    if record.basis == USAGE_BASIS_UNSPECIFIED:
        record.basis = USAGE_BASIS_REPORTED
    _check(record)
    return record


def _from_raw(sent: UsageRecord, found: RawUsage) -> UsageRecord:
    """What was sent, with what its payload tells; the sender knows better where both say something."""
    record = copied(sent)
    for name in (*_OUTPUT_ONLY, "raw", "raw_format", "keep_raw", "tokens", "units"):
        record.ClearField(name)  # type: ignore[arg-type]
    record.record_id = sent.record_id or found.record_id
    record.provider = sent.provider or found.provider
    record.model = sent.model or found.model
    record.source = sent.source or found.source
    record.service_tier = sent.service_tier or found.service_tier
    if found.series:
        record.series = sent.series or ("" if found.series == "*" else found.series)
        if not record.series:
            raise RawUsageError("its figures are running totals; say of what by `series`, for example the session's id")
    found.figures.write_to(record.tokens)
    record.units.update(found.units)
    if found.cost is not None and not sent.HasField("cost"):
        record.cost.CopyFrom(money(found.cost))
    record.derived_fields.extend(found.derived)
    record.estimated_fields.extend(found.estimated)
    if sent.basis == USAGE_BASIS_UNSPECIFIED:
        derived = USAGE_BASIS_DERIVED if found.derived else USAGE_BASIS_REPORTED
        record.basis = USAGE_BASIS_ESTIMATED if found.estimated else derived
    _check(record)
    return record


def _check(record: UsageRecord) -> None:
    """What validation cannot see. Raises RawUsageError."""
    if record.series and record.correction:
        raise RawUsageError("series and correction exclude each other")
    if not record.record_id and not record.series:
        raise RawUsageError("record_id is empty: set it to the provider's id of the response, so that it counts once")
    figures = Figures.of(record.tokens)
    if figures.reasoning > figures.output:
        raise RawUsageError(
            f"reasoning_tokens ({figures.reasoning}) are a part of output_tokens ({figures.output}) and cannot be more"
        )
    used = any(figures) or any(record.units.values()) or record.HasField("cost") or record.HasField("duration")
    if not used and not record.correction:
        raise RawUsageError("nothing was used: there are no tokens, no units and no cost")
    figures.write_to(record.tokens)
    record.provider = record.provider.lower()
    if record.HasField("cost"):
        record.cost.currency_code = "USD"


# -- taking ----------------------------------------------------------------------------------


def _take_all(state: State, uses: Sequence[_Use], attempt: TaskAttempt | None, growth: Growth) -> UsageOutcome:
    """All uses that one sent record tells of, together or not at all; the outcome is that of the first."""
    mark = state.mark()
    kept = growth.mark()
    outcomes = []
    for use in uses:
        record_id = use.record.record_id
        try:
            outcomes.append(_take(state, use, attempt, growth))
        except KapellError as error:
            state.rollback(mark)
            growth.rollback(kept)
            return _refusal(record_id, error.reason, error.message)
    news = [outcome for outcome in outcomes if outcome.kind != USAGE_OUTCOME_KIND_DUPLICATE]
    return (news or outcomes)[0]


def _take(state: State, use: _Use, attempt: TaskAttempt | None, growth: Growth) -> UsageOutcome:
    record = use.record
    if attempt is not None:
        _own(record, attempt)
    step = step_of(state, record, own=attempt is not None) if record.series else None
    if record.series and step is None:
        return UsageOutcome(record_id=record.series, kind=USAGE_OUTCOME_KIND_DUPLICATE)
    if step is not None and not step.is_record:
        amended = _go_on(state, record.series, step, growth)
        if amended:
            return _outcome(amended[0].record, USAGE_OUTCOME_KIND_CORRECTED)
        return UsageOutcome(record_id=record.series, kind=USAGE_OUTCOME_KIND_DUPLICATE)
    versions = state.usage.versions(record.record_id)
    current = versions[-1] if versions else None
    kind = USAGE_OUTCOME_KIND_RECORDED
    if current is not None:
        if not _is_news(record, versions):
            return _outcome(current.record, USAGE_OUTCOME_KIND_DUPLICATE)
        if attempt is not None:
            _check_own(current.record, attempt)
        kind = USAGE_OUTCOME_KIND_CORRECTED
        if not record.correction:
            # Whose it is was said before; by now the task may be gone.
            record.ClearField("task_id")
            record.ClearField("agent_id")
    _place(state, record, attempt)
    if current is not None:
        record = _next_version(record, current.record)
    if step is not None:
        _go_on(state, record.series, step, growth)
    put_cost(state, record)
    return _outcome(keep(state, record, current, growth, use.raw).record, kind)


def _go_on(state: State, series: str, step: Step, growth: Growth) -> list[Entry]:
    """The series is at its next totals; the records that this amends, the last one first."""
    state.usage.keep_series(series, step.series)
    return [keep(state, fresh, entry, growth) for entry, fresh in step.amended]


def _own(record: UsageRecord, attempt: TaskAttempt) -> None:
    """Makes the use that of the attempt. NOT_OWNER where it claims to be another's."""
    for name, own in (("task_id", attempt.task_id), ("agent_id", attempt.agent_id)):
        said = getattr(record, name)
        if said and said != own:
            raise KapellError(
                ERROR_REASON_NOT_OWNER,
                f"An agent reports for its own attempt: {name} is {own}, not {said}. Leave it out.",
                metadata={name: said},
            )
        setattr(record, name, own)
    record.attempt = attempt.attempt


def _check_own(recorded: UsageRecord, attempt: TaskAttempt) -> None:
    """An attempt changes what its agent has used for its task, and nobody else's. Raises NOT_OWNER."""
    if recorded.task_id != attempt.task_id or recorded.agent_id not in ("", attempt.agent_id):
        raise KapellError(
            ERROR_REASON_NOT_OWNER,
            f"Usage {recorded.record_id} is in the ledger as another's, so {attempt.agent_id} cannot change it."
            " Use the id that the provider gave to the response.",
            metadata={"record_id": recorded.record_id},
        )


def _is_news(record: UsageRecord, versions: Sequence[Entry]) -> bool:
    """Whether the record goes beyond what is known of it; USAGE_CONFLICT where it contradicts that."""
    sent = Measure.of(record)
    current = versions[-1].record
    if record.correction:
        known = (entry.record for entry in versions if entry.record.correction)
        return not any(Measure.of(one) == sent and one.note == record.note for one in known)
    if any(Measure.of(entry.record).covers(sent) for entry in versions):
        # The same figures, which are no longer a guess, are news: a stream has ended.
        certain = current.basis == USAGE_BASIS_ESTIMATED and record.basis != USAGE_BASIS_ESTIMATED
        return certain and not current.correction and sent.covers(Measure.of(current))
    if current.correction or not sent.covers(_without_cost(current, sent)):
        raise KapellError(
            ERROR_REASON_USAGE_CONFLICT,
            f"Usage {record.record_id} is in the ledger with other figures, which these do not go beyond. "
            "If these are right, send them with `correction`.",
            metadata={"record_id": record.record_id},
        )
    return True


def _without_cost(current: UsageRecord, sent: Measure) -> Measure:
    """What is recorded; without its reported cost where the sender knows none."""
    measure = Measure.of(current)
    return measure if sent.cost is not None else measure._replace(cost=None)


def _next_version(record: UsageRecord, current: UsageRecord) -> UsageRecord:
    """The next version of a record: whose it is and when stays, unless it is a correction that says otherwise."""
    for name in ("task_id", "agent_id", "agent_type", "root_task_id", "template_id", "provider", "model", "source"):
        said = getattr(record, name)
        if not record.correction or not said:
            setattr(record, name, getattr(current, name) or said)
    if not record.correction or not record.attempt:
        record.attempt = current.attempt
    if not record.correction or not record.HasField("event_time"):
        record.event_time.CopyFrom(current.event_time)
    labels = {**current.labels, **record.labels}
    record.labels.clear()
    record.labels.update(labels)
    return record


def _place(state: State, record: UsageRecord, attempt: TaskAttempt | None) -> None:
    """Whose use it is: of which task and agent. TASK_NOT_FOUND or AGENT_NOT_FOUND."""
    if attempt is None and record.agent_id and state.find_agent(record.agent_id) is None:
        raise KapellError(
            ERROR_REASON_AGENT_NOT_FOUND,
            f"Agent {record.agent_id} was not found. Leave agent_id out to record the usage all the same.",
            metadata={"agent_id": record.agent_id},
        )
    if record.HasField("event_time") and timestamp_ns(record.event_time) > state.now_ns + _DAY:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID, "event_time is more than a day ahead. Check the clock of the sender."
        )
    if not record.task_id:
        return
    task = state.find_task(record.task_id)
    if task is None:
        raise KapellError(
            ERROR_REASON_TASK_NOT_FOUND,
            f"Task {record.task_id} was not found. Leave task_id out to record the usage all the same.",
            metadata={"task_id": record.task_id},
        )
    record.agent_type = task.agent_type
    record.template_id = task.template_id
    record.root_task_id = task.root_task_id or task.task_id
    for name, value in task.labels.items():
        # A label of a task may hold anything; those of records are in columns, which take no NUL.
        if name not in record.labels and "\0" not in value:
            record.labels[name] = value


# -- keeping ---------------------------------------------------------------------------------


def keep(state: State, record: UsageRecord, previous: Entry | None, growth: Growth, raw: bytes = b"") -> Entry:
    """Makes a record, which has its cost, the version that counts. Takes ownership of the message."""
    record.version = previous.record.version + 1 if previous is not None else 1
    stamp(record.record_time, state.now_ns)
    record.recorder.CopyFrom(state.caller.actor())
    entry = Entry(state.usage.next_number(), state.usage.key_of(dims_of(record)), record, sums_of(record), raw)
    state.usage.keep(entry, previous)
    growth.add(record, entry.sums)
    if previous is not None:
        growth.take_off(previous.record, previous.sums)
    return entry


def put_cost(state: State, record: UsageRecord) -> None:
    """Sets what a record costs: as reported, else by the price that counts when it was used, else unpriced."""
    if not record.HasField("event_time"):
        stamp(record.event_time, state.now_ns)
    prices = state.usage.prices
    record.provider = record.provider or prices.provider_of(record.model)
    if record.HasField("cost"):
        record.cost_basis = USAGE_BASIS_REPORTED
        return
    figures = Figures.of(record.tokens)
    at_ns = timestamp_ns(record.event_time)
    cost = prices.cost(record.provider, record.model, at_ns, figures, record.units, record.service_tier)
    record.unpriced = cost.nanos is None
    record.price_id = cost.price_id
    if cost.nanos is not None:
        record.cost.CopyFrom(money(cost.nanos))
        guessed = cost.guessed or record.basis == USAGE_BASIS_ESTIMATED
        record.cost_basis = USAGE_BASIS_ESTIMATED if guessed else USAGE_BASIS_DERIVED
        if cost.guessed:
            record.estimated_fields.append("cost")


def _outcome(record: UsageRecord, kind: UsageOutcomeKind.ValueType) -> UsageOutcome:
    outcome = UsageOutcome(record_id=record.record_id, kind=kind, version=record.version, unpriced=record.unpriced)
    if record.HasField("cost"):
        outcome.cost.CopyFrom(record.cost)
    return outcome


def _refusal(record_id: str, reason: int, message: str) -> UsageOutcome:
    error = KapellError(reason, message)  # type: ignore[arg-type]
    return UsageOutcome(record_id=record_id, kind=USAGE_OUTCOME_KIND_REFUSED, reason=error.reason_name, message=message)
