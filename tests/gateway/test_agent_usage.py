"""What telemetry of agents' tools says about usage."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict
from kapell.v1.usage_pb2 import RAW_USAGE_FORMAT_OTEL_GENAI, RecordUsageRequest, TokenCounts, UsageRecord
from kapell_server.domain.usage import raw_otel
from kapell_server.domain.usage.figures import Figures
from kapell_server.domain.usage.reading import RawUsage
from kapell_server.gateway.agent_usage import records_of_logs, records_of_metrics
from kapell_server.rpc.validation import collect_violations

from tests.gateway.telemetry import AT_NS, claude_counter, claude_request, codex_response, logs


def read(record: UsageRecord) -> RawUsage:
    """As the ledger reads the record's payload."""
    [found] = raw_otel.read(MessageToDict(record.raw))
    return found


def test_a_request_of_claude_code_is_a_record_with_its_cache_beside_its_input() -> None:
    [record] = records_of_logs(logs(claude_request()).resource_logs)

    found = read(record)
    assert found.figures == Figures(uncached=120, cache_read=15000, cache_write_5m=800, output=340)
    assert (found.provider, found.model) == ("anthropic", "claude-sonnet-4-5-20250929")
    assert found.cost == 12_500_000
    assert record.event_time.ToNanoseconds() == AT_NS
    assert dict(record.labels) == {"session": "s-1"}


def test_a_response_of_codex_has_its_cached_input_taken_out_of_the_input() -> None:
    [record] = records_of_logs(logs(codex_response()).resource_logs)

    found = read(record)
    assert found.figures == Figures(uncached=400, cache_read=600, output=200, reasoning=150)
    assert (found.provider, found.model) == ("openai", "gpt-5-codex")


def test_an_odd_attribute_does_not_cost_the_record() -> None:
    resource = {"kapell__label__a b": "x", "kapell__label__team": "a\0b" * 200, "kapell__task_id": "t" * 200}
    [record] = records_of_logs(logs(claude_request(session__id="s" * 999), resource=resource).resource_logs)

    assert set(record.labels) == {"session", "team"}
    assert collect_violations(RecordUsageRequest(records=[record])) == []


def test_events_without_usage_are_left_alone() -> None:
    events = logs(
        ("claude_code.user_prompt", {"event__name": "user_prompt", "prompt_length": "12"}),
        ("claude_code.tool_result", {"event__name": "tool_result", "duration_ms": "12"}),
        codex_response(event__kind="response.output_item.done"),
        ("codex.tool_result", {"event__name": "codex.tool_result"}),
    )

    assert list(records_of_logs(events.resource_logs)) == []


def test_an_event_that_is_sent_again_has_the_same_record_id_and_another_one_has_not() -> None:
    first, again = (next(records_of_logs(logs(codex_response()).resource_logs)) for _ in range(2))
    other = next(records_of_logs(logs(codex_response(output_token_count=201)).resource_logs))

    assert first.record_id == again.record_id
    assert first.record_id != other.record_id


def test_the_id_of_the_provider_is_the_record_id_where_the_event_tells_it() -> None:
    [record] = records_of_logs(logs(claude_request(request_id="req_011CU")).resource_logs)

    assert record.record_id == "req_011CU"


def test_the_resource_says_whose_usage_it_is() -> None:
    resource = {"kapell__task_id": "task_a", "kapell__agent_id": "agent_b", "kapell__label__team": "search"}
    [record] = records_of_logs(logs(claude_request(), resource=resource).resource_logs)

    assert (record.task_id, record.agent_id, record.labels["team"]) == ("task_a", "agent_b", "search")


def test_generic_events_go_to_the_ledger_as_they_are() -> None:
    event = {"gen_ai__usage__input_tokens": 10, "gen_ai__usage__output_tokens": 5, "gen_ai__response__id": "resp_1"}
    [record] = records_of_logs(logs(("gen_ai.client.inference", event)).resource_logs)

    assert record.raw_format == RAW_USAGE_FORMAT_OTEL_GENAI
    assert record.record_id == "resp_1"
    assert record.raw["gen_ai.usage.input_tokens"] == 10


def test_the_data_points_of_one_interval_are_one_record() -> None:
    points = [("input", 10), ("output", 20), ("cacheRead", 30), ("cacheCreation", 40), ("unheard-of", 50)]
    [record] = records_of_metrics(claude_counter(points).resource_metrics)

    assert record.tokens == TokenCounts(
        uncached_input_tokens=10, output_tokens=20, cache_read_tokens=30, cache_write_5m_tokens=40
    )
    assert record.record_id and not record.series


def test_two_intervals_are_two_records_and_running_totals_are_one_series() -> None:
    delta = [
        next(records_of_metrics(claude_counter([("input", 1)], end_ns=AT_NS + end).resource_metrics)) for end in (0, 9)
    ]
    totals = [
        next(records_of_metrics(claude_counter([("input", 1)], cumulative=True, end_ns=AT_NS + end).resource_metrics))
        for end in (0, 9)
    ]

    assert delta[0].record_id != delta[1].record_id
    assert totals[0].series == totals[1].series != ""


def test_a_counter_that_began_anew_is_another_series_and_the_same_point_twice_is_one() -> None:
    first, again = (
        claude_counter([("input", 5), ("input", 5)], cumulative=True),
        claude_counter([("input", 3)], cumulative=True),
    )
    again.resource_metrics[0].scope_metrics[0].metrics[0].sum.data_points[0].start_time_unix_nano += 1

    [one] = records_of_metrics(first.resource_metrics)
    [other] = records_of_metrics(again.resource_metrics)

    assert one.tokens.uncached_input_tokens == 5
    assert one.series != other.series
