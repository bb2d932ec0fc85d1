"""Usage and prices on the command line: what is shown is what the ledger has, and what is missing is said."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from google.type.money_pb2 import Money
from kapell import SyncClient
from kapell.cli.money import cost_of, exact, rate, shown
from kapell.discovery import Endpoint
from kapell.records import usage_record
from kapell.v1.usage_pb2 import USAGE_BASIS_ESTIMATED, UsageTotals

from tests.cli.shell import Result, Shell, compare, forget
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="module")
def ledger(shell: Shell, cli_server: ServerProcess) -> Iterator[Shell]:
    """The shell, with a task and some usage of two days in March 2026 and a price that was set."""
    created = shell.pipe("task", "create", "-t", "nobody", "--id", "task_used", "--label", "team=web", "look at it")
    assert created.code == 0, created.err

    first, second = (datetime(2026, 3, day, 23, 30, tzinfo=UTC) for day in (27, 28))
    large: Any = {"model": "gpt-5", "input_tokens": 1_000_000, "cache_read_tokens": 400_000}
    large |= {"output_tokens": 50_000, "reasoning_tokens": 20_000}
    guess = usage_record(record_id="r4", model="gpt-4o", input_tokens=2_000, output_tokens=10, event_time=second)
    guess.basis = USAGE_BASIS_ESTIMATED
    with SyncClient(Endpoint(address=cli_server.address, token=cli_server.admin_token)) as client:
        outcomes = client.usage.record(
            [
                usage_record(record_id="r1", task_id="task_used", event_time=first, **large),
                usage_record(record_id="r2", model="gpt-5", input_tokens=3, output_tokens=1, event_time=second),
                usage_record(record_id="r3", model="wonder-1", input_tokens=500, output_tokens=5, event_time=second),
                guess,
                usage_record(record_id="=r5", model="gpt-5", cost="0.25", output_tokens=1, event_time=second),
            ]
        )
        assert {outcome.kind for outcome in outcomes} == {1}
        yield shell


GUIDE = Path(__file__).resolve().parents[2] / "server/docs/how-to/know-what-work-costs.md"
SINCE = ("--since", "2026-03-01", "--until", "2026-04-01T00:00:00Z")
READING = {
    "usage-show": ("usage", "show", *SINCE),
    "usage-show-by-day": ("usage", "show", "--by", "model,day", "-z", "Europe/Berlin", *SINCE),
    "usage-show-by-label": ("usage", "show", "--by", "label:team,task", *SINCE),
    "usage-export": ("usage", "export", *SINCE),
    "usage-estimate": (
        *("usage", "estimate", "--model", "claude-sonnet-4-5", "--input-tokens", "50000"),
        *("--cache-read", "40000", "--output-tokens", "2000", "--runs", "20"),
    ),
    "usage-estimate-unpriced": ("usage", "estimate", "--model", "wonder-1", "--output-tokens", "5"),
    "price-list": ("price", "list", "--provider", "google"),
    "price-get": ("price", "get", "claude-haiku-5-5-20261007"),
    "price-get-unknown": ("price", "get", "wonder-1"),
}


@pytest.mark.parametrize("name", READING)
def test_transcript(ledger: Shell, name: str) -> None:
    line = READING[name]
    runs = [(" ".join(line), ledger.terminal(*line)), (" ".join((*line, "| cat")), ledger.pipe(*line))]

    compare(name, forget("\n".join(_transcript(*run) for run in runs), {}))


def _transcript(line: str, result: Result) -> str:
    err = "".join(f"(stderr) {written}\n" for written in result.err.splitlines())
    return f"$ kapell {line}\n{result.out}{err}[exit {result.code}]\n"


def test_what_is_shown_is_the_sum_of_what_is_exported(ledger: Shell) -> None:
    rows = list(csv.DictReader(io.StringIO(ledger.pipe("usage", "export", *SINCE).out)))
    lines = [json.loads(one) for one in ledger.pipe("usage", "export", "--format", "jsonl", *SINCE).lines]
    answer = json.loads(ledger.pipe("usage", "show", "--by", "model,day", "-o", "json", *SINCE).out)

    exported = sum(Decimal(row["cost_usd"]) for row in rows if row["cost_usd"] != "unpriced")
    total = answer["total"]["cost"]
    assert Decimal(int(total.get("units", 0))) + Decimal(total["nanos"]).scaleb(-9) == exported
    assert sum(int(row["output_tokens"]) for row in rows) == int(answer["total"]["tokens"]["outputTokens"])
    assert sum(row["cost_usd"] == "unpriced" for row in rows) == int(answer["total"]["unpricedRecords"]) == 1
    assert [line["recordId"] for line in lines] == ["r1", "r2", "r3", "r4", "=r5"]
    assert rows[-1]["record_id"] == "'=r5", "no spreadsheet takes it for a formula"


@pytest.mark.parametrize(("until", "records"), [("2026-04-26T23:29:59Z", 5), ("2026-04-27T12:00:00Z", 4)])
def test_without_a_beginning_the_same_thirty_days_are_shown_and_exported(
    ledger: Shell, until: str, records: int
) -> None:
    shown = json.loads(ledger.pipe("usage", "show", "-o", "json", "--until", until).out)
    exported = ledger.pipe("usage", "export", "--until", until).lines
    of_task = ledger.pipe("usage", "export", "--task", "task_used", "--until", until).lines

    assert int(shown["total"]["records"]) == len(exported) - 1 == records
    assert [line.split(",")[0] for line in of_task[1:]] == ["r1"]


def test_what_is_typed_wrong_is_answered_with_the_help_that_has_it(ledger: Shell) -> None:
    nameless = ledger.pipe("usage", "show", "--by", "label:")
    cached = ledger.pipe("usage", "estimate", "--model", "gpt-5", "--cache-read", "10")
    dollars = ledger.pipe("price", "set", "acme", "m", "--input-price", "much", "--output-price", "1")

    assert [one.code for one in (nameless, cached, dollars)] == [2, 2, 2]
    assert "a label needs its name" in nameless.err
    assert "--input-tokens" in cached.err
    assert dollars.err.splitlines()[-1] == "  next: kapell price set --help"


def test_ids_are_whole_where_other_columns_can_be_left_out(ledger: Shell, cli_server: ServerProcess) -> None:
    task_id = "task_01m83cr33sakq3pb37xtw1dcxm"
    assert ledger.pipe("task", "create", "-t", "nobody", "--id", task_id, "look").code == 0
    with SyncClient(Endpoint(address=cli_server.address, token=cli_server.admin_token)) as client:
        client.usage.record([usage_record(record_id="narrow", task_id=task_id, model="gpt-5", output_tokens=1)])

    shown = ledger.terminal("usage", "show", "--by", "task,model,day", "--task", task_id)

    assert task_id in shown.out


def test_a_price_is_set_and_what_was_unpriced_is_costed_anew(ledger: Shell) -> None:
    dry = ledger.pipe("price", "set", "acme", "wonder-2", "--input-price", "1", "--output-price", "2", "--dry-run")
    put = ledger.pipe("price", "set", "acme", "wonder-2", "--input-price", "1", "--output-price", "2.5", "-o", "id")
    price_id = put.out.strip()

    nothing = ledger.pipe("price", "reprice", "--model", "wonder-2", "--yes")
    gone = ledger.pipe("price", "delete", price_id)

    assert "Nothing was changed" in dry.err
    assert put.code == 0, put.err
    assert "Every cost is as the prices say" in nothing.err
    assert (gone.code, gone.out) == (0, f"{price_id}\tdeleted\n")
    assert ledger.pipe("price", "get", "wonder-2").code == 3


def test_a_price_is_deleted_by_its_model_where_one_is_meant(ledger: Shell) -> None:
    prices = ("--input-price", "1", "--output-price", "2")
    ledger.pipe("price", "set", "acme", "wonder-3", *prices)
    for since in ("2026-01-01", "2026-02-01"):
        assert ledger.pipe("price", "set", "acme", "org/wonder-4", *prices, "--from", since).code == 0

    gone = ledger.pipe("price", "delete", "acme/wonder-3")
    unknown = ledger.pipe("price", "delete", "acme/wonder-3")
    several = ledger.pipe("price", "delete", "acme/org/wonder-4")
    shipped = ledger.pipe("price", "delete", "shipped/openai/gpt-5@2026-10-16")
    listed = ledger.pipe(*shlex.split(several.err.rpartition("next: kapell ")[2]))

    assert (gone.code, gone.out) == (0, "acme/wonder-3\tdeleted\n")
    assert (unknown.code, unknown.out) == (3, "")
    assert "No price was set for acme/wonder-3" in unknown.err
    assert several.code == 5
    ids = several.err.partition("name one of ")[2].partition("\n")[0].split(", ")
    assert [line.count(one) for one, line in zip(ids, listed.lines, strict=True)] == [1, 1]
    assert shipped.code == 3
    assert "next: kapell price list" in shipped.err
    assert ledger.pipe("price", "delete", "--yes", *ids).code == 0


def test_what_the_server_finds_wrong_is_looked_up_in_the_help_of_the_command(ledger: Shell) -> None:
    wrong = ledger.pipe("price", "set", "acme", "wonder 5", "--input-price", "1", "--output-price", "2")

    assert wrong.code == 2
    assert wrong.err.splitlines()[-1] == "  next: kapell price set --help"


def test_money_is_never_rounded_to_nothing() -> None:
    assert shown(Money()) == "$0.00"
    assert shown(Money(nanos=1)) == "<$0.000001"
    assert shown(Money(nanos=4_500_000)) == "$0.0045"
    assert shown(Money(nanos=72_000_000)) == "$0.072"
    assert rate(Money(nanos=75_000_000)) == "$0.075"
    assert shown(Money(units=1234, nanos=567_000_000)) == "$1,234.57"
    assert exact(Money(units=1, nanos=10)) == "1.00000001"
    assert cost_of(UsageTotals(records=2, unpriced_records=2)) == "unpriced"
    assert cost_of(UsageTotals(records=2, unpriced_records=1, cost=Money(units=1))) == "$1.00 +1 unpriced"
    assert cost_of(UsageTotals(records=2, estimated_records=1, cost=Money(units=1))) == "~$1.00"


def test_the_commands_of_the_guide_work(ledger: Shell) -> None:
    lines = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("kapell ")]

    for line in lines:
        words = shlex.split(line.partition(" > ")[0].replace("TASK_ID", "task_used"), comments=True)[1:]
        if words[:2] == ["event", "watch"]:
            continue
        result = ledger.pipe(*words)
        assert result.code == 0, (line, result.err)
    assert len(lines) >= 10
