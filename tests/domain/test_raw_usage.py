"""Payloads of all sorts: whatever comes is read or refused with a reason, never a crash, and the algebra holds."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st
from kapell.v1.usage_pb2 import RawUsageFormat, RecordUsageRequest, UsageRecord
from kapell_server.domain.usage.figures import Figures
from kapell_server.domain.usage.raw import format_of, read_raw
from kapell_server.domain.usage.reading import RawUsageError

from tests.domain.usage_corpus import CORPUS
from tests.domain.world import World

FORMATS = RawUsageFormat.values()
WORDS = (
    *(
        "id",
        "type",
        "usage",
        "message",
        "model",
        "events",
        "modelUsage",
        "usageMetadata",
        "attributes",
        "update",
        "params",
    ),
    *("input_tokens", "output_tokens", "prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens"),
    *("cache_creation", "cache_creation_input_tokens", "cache_read_input_tokens", "reasoning_tokens", "cost", "amount"),
    *("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "sessionUpdate", "gen_ai.usage.input_tokens"),
    *(
        "info",
        "total_token_usage",
        "response",
        "object",
        "service_tier",
        "event.name",
        "key",
        "value",
        "intValue",
        "uuid",
    ),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**40),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(
        ["", "message", "message_start", "token_count", "usage_update", "response", "api_request", "12", "x\0"]
    ),
    st.text(max_size=5),
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), inner)
    ),
    max_leaves=20,
)
PAYLOADS = st.dictionaries(st.sampled_from(WORDS), JSON, max_size=8)


@settings(max_examples=150)
@given(payload=PAYLOADS, said=st.sampled_from(FORMATS))
def test_whatever_comes_is_read_or_refused_with_a_reason(payload: dict[str, Any], said: int) -> None:
    try:
        found = read_raw(payload, said)  # type: ignore[arg-type]
    except RawUsageError as refusal:
        assert str(refusal)
        return
    for one in found:
        assert all(count >= 0 for count in one.figures)
        assert one.figures.reasoning <= one.figures.output
        assert one.cost is None or one.cost >= 0
        assert len(one.record_id) <= 200


@settings(max_examples=60)
@given(payload=PAYLOADS)
def test_a_fuzzed_record_has_an_outcome_and_a_refused_one_leaves_nothing(payload: dict[str, Any]) -> None:
    world = World()
    try:
        raw = ParseDict(payload, Struct())
    except (ParseError, ValueError, TypeError):
        return  # JSON has no such value.

    [outcome] = world.do(RecordUsageRequest(records=[UsageRecord(raw=raw)])).outcomes

    assert all("\0" not in record.model + record.record_id for record in _records(world))
    assert (outcome.kind == 4) == bool(outcome.reason) == bool(outcome.message)
    assert bool(world.rows.usage.entries) == (outcome.kind == 1)


def _records(world: World) -> list[UsageRecord]:
    return [entry.record for entry in world.rows.usage.entries]


@pytest.mark.parametrize("name", CORPUS)
def test_the_shape_of_the_corpus_is_told_from_itself(name: str) -> None:
    for payload in CORPUS[name].payloads:
        told = RawUsageFormat.Name(format_of(payload)).removeprefix("RAW_USAGE_FORMAT_").lower()

        assert told.split("_")[0] == name.split("-")[0]


def test_an_instrumentation_that_leaves_caches_out_of_the_input_is_marked() -> None:
    attributes = {
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 100,
        "gen_ai.response.id": "a",
    }

    [found] = read_raw(attributes, 0)

    assert found.figures == Figures(uncached=5, cache_read=100)
    assert found.estimated == ("uncached_input_tokens",)


def test_codex_counts_up_and_is_cut_into_differences() -> None:
    world = World()

    def total(whole: int, cached: int, output: int) -> UsageRecord:
        usage = {"input_tokens": whole, "cached_input_tokens": cached, "output_tokens": output}
        payload = {"type": "event_msg", "payload": {"type": "token_count", "info": {"total_token_usage": usage}}}
        return UsageRecord(raw=ParseDict(payload, Struct()), series="thread-1", model="gpt-5")

    world.do(RecordUsageRequest(records=[total(100, 0, 10), total(250, 80, 30), total(250, 80, 30), total(100, 0, 10)]))

    entries = world.rows.usage.entries
    assert [tuple(Figures.of(entry.record.tokens)) for entry in entries] == [
        (100, 0, 0, 0, 10, 0),
        (70, 80, 0, 0, 20, 0),
    ]
    assert [entry.record.basis for entry in entries] == [1, 2]
