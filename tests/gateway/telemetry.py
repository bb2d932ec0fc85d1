"""Telemetry as agents' tools export it: shapes as documented by their makers, figures by us."""

from __future__ import annotations

from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    AGGREGATION_TEMPORALITY_DELTA,
)

AT_NS = 1_760_000_000_000_000_000


def attributes(**values: Any) -> list[KeyValue]:
    """Attributes; "__" in a name stands for a dot."""
    found = []
    for name, value in values.items():
        pair = KeyValue(key=name.replace("__", "."))
        field = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}[type(value)]
        setattr(pair.value, field, value)
        found.append(pair)
    return found


def logs(*events: tuple[str, dict[str, Any]], resource: dict[str, Any] | None = None) -> ExportLogsServiceRequest:
    """One export of events, each its body and its attributes."""
    request = ExportLogsServiceRequest()
    batch = request.resource_logs.add()
    batch.resource.attributes.extend(attributes(**(resource or {})))
    scope = batch.scope_logs.add()
    for number, (body, values) in enumerate(events):
        entry = scope.log_records.add(time_unix_nano=AT_NS + number)
        entry.body.string_value = body
        entry.attributes.extend(attributes(**values))
    return request


def claude_request(**values: Any) -> tuple[str, dict[str, Any]]:
    """Claude Code's event of a finished request."""
    known = {
        "event__name": "api_request",
        "event__sequence": 7,
        "session__id": "s-1",
        "prompt__id": "p-1",
        "model": "claude-sonnet-4-5-20250929",
        "cost_usd": "0.0125",
        "duration_ms": "2100",
        "input_tokens": "120",
        "output_tokens": "340",
        "cache_read_tokens": "15000",
        "cache_creation_tokens": "800",
    }
    return "claude_code.api_request", known | values


def codex_response(**values: Any) -> tuple[str, dict[str, Any]]:
    """Codex's event of a finished response."""
    known = {
        "event__name": "codex.sse_event",
        "event__kind": "response.completed",
        "event__timestamp": "2026-10-09T08:53:20.000Z",
        "conversation__id": "c-1",
        "model": "gpt-5-codex",
        "input_token_count": 1000,
        "cached_token_count": 600,
        "output_token_count": 200,
        "reasoning_token_count": 150,
        "tool_token_count": 1200,
    }
    return "codex.sse_event", known | values


def claude_counter(
    points: list[tuple[str, int]], *, cumulative: bool = False, end_ns: int = AT_NS
) -> ExportMetricsServiceRequest:
    """Claude Code's counter of tokens: a data point for each (type, value)."""
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="claude_code.token.usage")
    kinds = (AGGREGATION_TEMPORALITY_DELTA, AGGREGATION_TEMPORALITY_CUMULATIVE)
    metric.sum.aggregation_temporality = kinds[cumulative]
    for kind, value in points:
        point = metric.sum.data_points.add(start_time_unix_nano=AT_NS - 60, time_unix_nano=end_ns, as_double=value)
        point.attributes.extend(attributes(type=kind, session__id="s-1", model="claude-opus-4-5"))
    return request
