"""The list, the buckets of a chart, what the command line shows and exports, and the ledger say the same."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from kapell import SyncClient
from kapell.discovery import Endpoint
from kapell.records import decimal, usage_record
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.usage_pb2 import UsageRecord

from tests.cli.shell import Shell
from tests.support.server_process import ServerProcess

MODELS = ("gpt-5", "claude-sonnet-4-5", "wonder-1")
CHANGES = {
    # Days on which clocks are changed, in hours of UTC.
    "Europe/Berlin": (datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2025, 10, 26, 1, tzinfo=UTC)),
    "America/New_York": (datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2025, 11, 2, 6, tzinfo=UTC)),
    "Australia/Lord_Howe": (datetime(2026, 4, 4, 15, tzinfo=UTC), datetime(2025, 10, 4, 15, 30, tzinfo=UTC)),
    "Asia/Kathmandu": (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)),
}
SINCE = ("--since", "2025-09-01", "--until", "2026-08-01T00:00:00Z")


def history(name: str, zone: str, random: Random) -> list[UsageRecord]:
    """Calls within two days of each change of clocks, with a label of their own; some come twice, some grow."""
    found = []
    for number in range(60):
        at = random.choice(CHANGES[zone]) + timedelta(seconds=random.randrange(-172_800, 172_800))
        call: dict[str, Any] = {"input_tokens": random.randrange(10**6), "output_tokens": 1 + random.randrange(10**5)}
        if random.random() < 0.2:
            call["cost"] = Decimal(random.randrange(10**10)).scaleb(-9)
        labels = {"history": name, **random.choice(({}, {"team": "a"}, {"team": "b"}))}
        named = {"record_id": f"{name}-{number}", "model": random.choice(MODELS), "labels": labels}
        found.append(usage_record(event_time=at, **named, **call))
    random.shuffle(found)
    return found + random.sample(found, 20)


def begin_of(record: UsageRecord, bucket: str, zone: str) -> str:
    """The day, week or month of a record by the calendar of its zone, as the table shows it."""
    day = datetime.fromtimestamp(record.event_time.seconds, ZoneInfo(zone)).date()
    if bucket == "week":
        day -= timedelta(days=day.weekday())
    return str(day)[:7] if bucket == "month" else str(day)


@pytest.mark.parametrize("zone", CHANGES)
def test_list_buckets_command_line_and_ledger_agree(shell: Shell, cli_server: ServerProcess, zone: str) -> None:
    name = zone.replace("/", "-")
    random = Random(name)
    mine = ("--label", f"history={name}", *SINCE)
    with SyncClient(Endpoint(address=cli_server.address, token=cli_server.admin_token)) as client:
        outcomes = client.usage.record(history(name, zone, random))
        listed = list(client.usage.iterate(labels={"history": name}, order=LIST_ORDER_OLDEST_FIRST))
        whole = client.usage.query(
            labels={"history": name}, start=datetime(2025, 9, 1, tzinfo=UTC), end=datetime(2026, 8, 1, tzinfo=UTC)
        ).total

    cost = sum((decimal(record.cost) for record in listed), Decimal())
    exported = list(csv.DictReader(io.StringIO(shell.pipe("usage", "export", *mine).out)))
    lines = [json.loads(line) for line in shell.pipe("usage", "export", "--format", "jsonl", *mine).lines]

    assert sorted(outcome.kind for outcome in outcomes) == [1] * 60 + [2] * 20
    assert (whole.records, decimal(whole.cost)) == (60, cost)
    assert [row["record_id"] for row in exported] == [line["recordId"] for line in lines]
    assert [row["record_id"] for row in exported] == [record.record_id for record in listed]
    assert sum(Decimal(row["cost_usd"]) for row in exported if row["cost_usd"] != "unpriced") == cost
    assert sum(int(row["output_tokens"]) for row in exported) == whole.tokens.output_tokens
    for bucket in ("day", "week", "month"):
        shown = shell.pipe("usage", "show", "--by", f"model,{bucket},label:team", "-z", zone, *mine)
        expected: dict[tuple[str, ...], list[Any]] = defaultdict(lambda: [0, 0, 0, Decimal()])
        for record in listed:
            line = expected[begin_of(record, bucket, zone), record.model, record.labels.get("team", "-")]
            line[0] += record.tokens.input_tokens
            line[1] += record.tokens.output_tokens
            line[2] += 1
            line[3] += decimal(record.cost) if record.HasField("cost") else 0
        assert {row[:3]: row[3:] for row in map(_row, shown.lines)} == {
            key: tuple(line) for key, line in expected.items()
        }, (bucket, shown.err)


def _row(line: str) -> tuple[Any, ...]:
    """A line of the table on a pipe: when, model, team, tokens in and out, records, cost."""
    when, model, team, given, _, out, records, cost = line.split("\t")
    known = Decimal() if cost == "unpriced" else Decimal(cost.partition(" +")[0].removeprefix("~"))
    return when, model, team, int(given), int(out), int(records), known
