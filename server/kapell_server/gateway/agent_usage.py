"""What the telemetry of agents' command line tools says about usage, as records of the ledger.

Pure functions over OpenTelemetry's messages. Known are the event claude_code.api_request and the metric
claude_code.token.usage of Claude Code, the event codex.sse_event (kind response.completed) of Codex, and any event
with the attributes gen_ai.usage.*. Everything else is none of the ledger's business.

A request of a model that is told of twice must count once. Where an event has no id of its own, its record_id is
drawn from all that tells it apart, which is the same when an exporter sends the event again.
"""

from __future__ import annotations

import hashlib
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

Attributes = dict[str, Any]

TASK = "kapell.task_id"
"""The attribute, of a resource or an event, that names the task. OTEL_RESOURCE_ATTRIBUTES sets it."""
AGENT = "kapell.agent_id"
LABEL = "kapell.label."
"""Attributes of a resource that begin so become labels."""
_SESSIONS = ("session.id", "conversation.id")
_GENAI = "gen_ai.usage."
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
                    record.event_time.FromNanoseconds(entry.time_unix_nano or entry.observed_time_unix_nano)
                    if not record.event_time.ToNanoseconds():
                        record.ClearField("event_time")
                    yield record


def _of_event(entry: LogRecord, attributes: Attributes) -> UsageRecord | None:
    names = {entry.event_name, str(attributes.get("event.name", "")), entry.body.string_value}
    if names & {"claude_code.api_request"} or ("api_request" in names and "prompt.id" in attributes):
        return _claude(entry, attributes)
    if "codex.sse_event" in names:
        return _codex(entry, attributes) if attributes.get("event.kind") == "response.completed" else None
    if any(name.startswith(_GENAI) for name in attributes):
        return _gen_ai(entry, attributes)
    return None


def _claude(entry: LogRecord, attributes: Attributes) -> UsageRecord:
    """Input does not include what was read from or written to a cache. For how long it was written is not told."""
    tokens = TokenCounts(
        uncached_input_tokens=_count(attributes, "input_tokens"),
        cache_read_tokens=_count(attributes, "cache_read_tokens"),
        cache_write_5m_tokens=_count(attributes, "cache_creation_tokens"),
        output_tokens=_count(attributes, "output_tokens"),
    )
    record = UsageRecord(
        record_id=str(attributes.get("request_id") or _drawn_id("claude", entry, attributes)),
        provider="anthropic",
        model=str(attributes.get("model", "")),
        tokens=tokens,
        source="claude-code events",
    )
    _say_duration(record, attributes)
    return record


def _codex(entry: LogRecord, attributes: Attributes) -> UsageRecord:
    """Cached input is a part of the input, reasoning a part of the output."""
    given, cached = _count(attributes, "input_token_count"), _count(attributes, "cached_token_count")
    output = _count(attributes, "output_token_count")
    tokens = TokenCounts(
        uncached_input_tokens=max(given - cached, 0),
        cache_read_tokens=min(cached, given),
        output_tokens=output,
        reasoning_tokens=min(_count(attributes, "reasoning_token_count"), output),
    )
    record = UsageRecord(
        record_id=_drawn_id("codex", entry, attributes),
        provider="openai",
        model=str(attributes.get("model") or attributes.get("slug") or ""),
        tokens=tokens,
        basis=USAGE_BASIS_DERIVED,
        source="codex events",
    )
    _say_duration(record, attributes)
    return record


def _gen_ai(entry: LogRecord, attributes: Attributes) -> UsageRecord:
    raw = Struct()
    raw.update({name: value for name, value in attributes.items() if name.startswith("gen_ai.")})
    record_id = str(attributes.get("gen_ai.response.id") or _drawn_id("gen_ai", entry, attributes))
    return UsageRecord(record_id=record_id, raw=raw, raw_format=RAW_USAGE_FORMAT_OTEL_GENAI, source="otlp gen_ai")


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
        span = () if cumulative else (str(point.start_time_unix_nano), str(point.time_unix_nano))
        key = (*(f"{name}={value}" for name, value in sorted(attributes.items())), *span)
        _, tokens, _ = groups.setdefault(key, (attributes, TokenCounts(), point))
        value = point.as_int if point.HasField("as_int") else round(point.as_double)
        setattr(tokens, field, getattr(tokens, field) + max(value, 0))
    for key, (attributes, tokens, point) in groups.items():
        record = UsageRecord(
            provider="anthropic",
            model=str(attributes.get("model", "")),
            tokens=tokens,
            basis=USAGE_BASIS_DERIVED,
            source="claude-code metrics",
        )
        if cumulative:
            record.series = "claude:" + _digest(key)
        else:
            record.record_id = "claude:" + _digest(key)
        _say_whose(record, attributes)
        if point.time_unix_nano:
            record.event_time.FromNanoseconds(point.time_unix_nano)
        yield record


def _say_whose(record: UsageRecord, attributes: Attributes) -> None:
    record.task_id = str(attributes.get(TASK, ""))
    record.agent_id = str(attributes.get(AGENT, ""))
    for name, value in attributes.items():
        if name.startswith(LABEL):
            record.labels[name.removeprefix(LABEL)] = str(value)
    session = next((str(attributes[name]) for name in _SESSIONS if attributes.get(name)), "")
    if session:
        record.labels["session"] = session[:256]


def _say_duration(record: UsageRecord, attributes: Attributes) -> None:
    milliseconds = _count(attributes, "duration_ms")
    if milliseconds:
        record.duration.FromMilliseconds(milliseconds)


def _drawn_id(prefix: str, entry: LogRecord, attributes: Attributes) -> str:
    """The same for the same event, however often it is sent."""
    told = (f"{name}={attributes[name]}" for name in sorted(attributes))
    return f"{prefix}:{_digest((str(entry.time_unix_nano), *told))}"


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:40]


def _attributes(pairs: Iterable[KeyValue]) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind in ("string_value", "bool_value", "int_value", "double_value") else ""


def _count(attributes: Attributes, name: str) -> int:
    """A number, which some exporters send as text; 0 where there is none."""
    try:
        return max(int(float(attributes.get(name) or 0)), 0)
    except (TypeError, ValueError, OverflowError):
        return 0
