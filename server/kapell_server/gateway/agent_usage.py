"""What the telemetry of agents' command line tools says about usage, as records of the ledger.

Pure functions over OpenTelemetry's messages. Which events tell of usage is for the ledger to say, which reads their
attributes as any raw payload (domain/usage/raw_otel): those of Claude Code, of Codex, and any with gen_ai.usage.*.
Of metrics claude_code.token.usage is known. Everything else is none of the ledger's business.

A request of a model that is told of twice must count once. Where an event has no id of its own, its record_id is
drawn from all that tells it apart, which is the same when an exporter sends the event again.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf.struct_pb2 import Struct
from kapell.v1.usage_pb2 import RAW_USAGE_FORMAT_OTEL_GENAI, USAGE_BASIS_DERIVED, TokenCounts, UsageRecord
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
)

from kapell_server.domain.usage import raw_otel

Attributes = dict[str, Any]

TASK = "kapell.task_id"
"""The attribute, of a resource or an event, that names the task. OTEL_RESOURCE_ATTRIBUTES sets it."""
AGENT = "kapell.agent_id"
LABEL = "kapell.label."
"""Attributes of a resource that begin so become labels."""
_SESSIONS = ("session.id", "conversation.id")
_OWN_IDS = ("request_id", "gen_ai.response.id", "response.id", "event.id")
_LONGEST = 200
_MOST_LABELS = 16
_MOST_TOKENS = 10**11
_LABEL_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._/-]{0,62}")
_YEAR_2000, _YEAR_2100 = 946_684_800 * 10**9, 4_102_444_800 * 10**9
_CLAUDE_METRIC = "claude_code.token.usage"
_CLAUDE_TYPES = {
    "input": "uncached_input_tokens",
    "output": "output_tokens",
    "cacheRead": "cache_read_tokens",
    "cacheCreation": "cache_write_5m_tokens",
}


def records_of_logs(batches: Iterable[ResourceLogs]) -> Iterator[UsageRecord]:
    """A record for each event that tells of a finished request to a model."""
    for batch in batches:
        resource = _attributes(batch.resource.attributes)
        for scope in batch.scope_logs:
            for entry in scope.log_records:
                attributes = resource | _attributes(entry.attributes)
                record = _of_event(entry, attributes)
                if record is not None:
                    _say_whose(record, attributes)
                    _say_when(record, entry.time_unix_nano or entry.observed_time_unix_nano)
                    yield record


def _of_event(entry: LogRecord, attributes: Attributes) -> UsageRecord | None:
    """The attributes go to the ledger as they are, which knows their shapes; only what is large stays behind."""
    name = entry.event_name or entry.body.string_value
    told = {"event.name": name, **attributes}
    if not raw_otel.is_meant(told):
        return None
    raw = Struct()
    raw.update({name: value for name, value in told.items() if len(str(value)) <= _LONGEST})
    own = next((str(told[name]) for name in _OWN_IDS if told.get(name)), "")
    return UsageRecord(
        record_id=_clean(own, 200) or _drawn_id(entry, attributes), raw=raw, raw_format=RAW_USAGE_FORMAT_OTEL_GENAI
    )


def records_of_metrics(batches: Iterable[ResourceMetrics]) -> Iterator[UsageRecord]:
    """A record for each session, model and interval of Claude Code's token counter."""
    for batch in batches:
        resource = _attributes(batch.resource.attributes)
        for scope in batch.scope_metrics:
            for metric in scope.metrics:
                if metric.name == _CLAUDE_METRIC:
                    yield from _of_counter(metric, resource)


def _of_counter(metric: Metric, resource: Attributes) -> Iterator[UsageRecord]:
    cumulative = metric.sum.aggregation_temporality == AGGREGATION_TEMPORALITY_CUMULATIVE
    groups: dict[tuple[str, ...], tuple[Attributes, TokenCounts, NumberDataPoint]] = {}
    for point in metric.sum.data_points:
        attributes = resource | _attributes(point.attributes)
        field = _CLAUDE_TYPES.get(str(attributes.pop("type", "")))
        if field is None:
            continue
        # A counter that began anew, with another start, is another one: its totals add to those before.
        span = (str(point.start_time_unix_nano), *(() if cumulative else (str(point.time_unix_nano),)))
        key = (*(f"{name}={value}" for name, value in sorted(attributes.items())), *span)
        _, tokens, _ = groups.setdefault(key, (attributes, TokenCounts(), point))
        value = _whole(point)
        # The same point twice is one; of running totals the largest counts.
        setattr(tokens, field, max(getattr(tokens, field), min(value, _MOST_TOKENS)))
    for key, (attributes, tokens, point) in groups.items():
        record = UsageRecord(
            provider="anthropic",
            model=_clean(attributes.get("model", ""), 200),
            tokens=tokens,
            basis=USAGE_BASIS_DERIVED,
            source="claude-code metrics",
        )
        if cumulative:
            record.series = "claude:" + _digest(key)
        else:
            record.record_id = "claude:" + _digest(key)
        _say_whose(record, attributes)
        _say_when(record, point.time_unix_nano)
        yield record


def _whole(point: NumberDataPoint) -> int:
    if point.HasField("as_int"):
        return point.as_int
    return round(point.as_double) if math.isfinite(point.as_double) else 0


def _say_whose(record: UsageRecord, attributes: Attributes) -> None:
    """What the ledger would refuse as a message is made to fit: one odd attribute must not cost all that was sent."""
    record.task_id = _clean(attributes.get(TASK, ""), 64)
    record.agent_id = _clean(attributes.get(AGENT, ""), 64)
    session = next((attributes[name] for name in _SESSIONS if attributes.get(name)), "")
    if session:
        record.labels["session"] = _clean(session, 256)
    for name, value in attributes.items():
        label = name.removeprefix(LABEL)
        if label != name and _LABEL_NAME.fullmatch(label) and len(record.labels) < _MOST_LABELS:
            record.labels[label] = _clean(value, 256)


def _say_when(record: UsageRecord, time_ns: int) -> None:
    """By the exporter's clock, where that can be true."""
    if _YEAR_2000 <= time_ns < _YEAR_2100:
        record.event_time.FromNanoseconds(time_ns)


def _clean(value: object, most: int) -> str:
    return str(value).replace("\0", "")[:most]


def _drawn_id(entry: LogRecord, attributes: Attributes) -> str:
    """The same for the same event, however often it is sent."""
    told = (f"{name}={attributes[name]}" for name in sorted(attributes))
    return "otlp:" + _digest((str(entry.time_unix_nano), *told))


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:40]


def _attributes(pairs: Iterable[KeyValue]) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind in ("string_value", "bool_value", "int_value", "double_value") else ""
