"""Usage through the client and a real server: chunks, repeats, the watch, and what money it makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import pytest
from google.type.money_pb2 import Money
from kapell import Client
from kapell.errors import InvalidRequest, KapellError
from kapell.records import decimal, dollars, raw_usage_record, usage_record
from kapell.v1.template_pb2 import TemplateSpec
from kapell.v1.usage_pb2 import USAGE_OUTCOME_KIND_DUPLICATE, USAGE_OUTCOME_KIND_RECORDED, UsageEvent, UsageRecord
from kapell.v1.watch_pb2 import EVENT_KIND_SNAPSHOT
from kapell_server.testing import TestServer, serve


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    async with serve(tmp_path) as running:
        yield running


@pytest.fixture
async def client(server: TestServer) -> AsyncIterator[Client]:
    async with Client(server.address, token=server.admin_token) as connected:
        yield connected


def many(count: int, first: int = 0) -> list[UsageRecord]:
    return [
        usage_record(record_id=f"r{number}", model="gpt-5", output_tokens=1) for number in range(first, first + count)
    ]


async def test_a_thousand_records_of_one_call_are_remembered_as_one(client: Client) -> None:
    first = await client.usage.record(many(1000), request_id="mine")
    again = await client.usage.record(many(1000), request_id="mine")
    with pytest.raises(KapellError) as refusal:
        await client.usage.record([*many(999), *many(1, 5000)], request_id="mine")
    other = await client.usage.record(many(1000))
    total = (await client.usage.query()).total

    assert again == first
    assert [outcome.record_id for outcome in first] == [f"r{number}" for number in range(1000)]
    assert {outcome.kind for outcome in first} == {USAGE_OUTCOME_KIND_RECORDED}
    assert {outcome.kind for outcome in other} == {USAGE_OUTCOME_KIND_DUPLICATE}
    assert refusal.value.reason == "REQUEST_ID_REUSED"
    assert total.records == 1000
    assert decimal(total.cost) == Decimal("0.01")


async def test_a_watch_has_every_total_and_then_what_changes(client: Client) -> None:
    task = await client.tasks.create("nobody")
    await client.usage.record([usage_record(model="gpt-5", output_tokens=1, task_id=task.task_id)])
    async with client.usage.watch(task_ids=[task.task_id], after_revision=task.revision) as events:
        first = await anext(events)

    async with client.usage.watch(task_ids=[task.task_id], initial_state=True) as events:
        known = await anext(events)
        await client.usage.record([usage_record(model="gpt-5", output_tokens=2, task_id=task.task_id)])
        grown = await anext(events)

    assert first.usage.usage.tokens.output_tokens == 1
    assert (known.kind, known.usage) == (EVENT_KIND_SNAPSHOT, first.usage)
    assert grown.usage.usage.tokens.output_tokens == grown.usage.tree_usage.tokens.output_tokens == 3


async def test_the_last_event_of_each_total_under_load_is_what_the_ledger_has(client: Client) -> None:
    root = await client.tasks.create("nobody")
    tasks = [root, *[await client.tasks.create("nobody", parent_task_id=root.task_id) for _ in range(4)]]
    latest: dict[str, UsageEvent] = {}
    gaps: list[float] = []

    async def record(writer: int) -> None:
        for call in range(8):
            await client.usage.record(
                [
                    usage_record(
                        record_id=f"r{writer}-{call}-{number}",
                        model="gpt-5",
                        output_tokens=1 + number,
                        task_id=tasks[(writer + number) % len(tasks)].task_id,
                    )
                    for number in range(150)
                ]
            )

    async with client.usage.watch(root_task_ids=[root.task_id]) as events:
        async with asyncio.TaskGroup() as group:
            for writer in range(3):
                group.create_task(record(writer))
        current = [await client.tasks.get(task.task_id) for task in tasks]
        expected = {task.task_id: (task.usage, task.tree_usage) for task in current}
        summed = await client.usage.query(by=["task"], root_task_ids=[root.task_id])
        while {task_id: (event.usage.usage, event.usage.tree_usage) for task_id, event in latest.items()} != expected:
            event = await anext(events)
            before = latest.get(event.usage.task_id)
            if before is not None:
                gaps.append(event.event_time.ToNanoseconds() - before.event_time.ToNanoseconds())
            latest[event.usage.task_id] = event

    assert {row.group[0]: row.usage for row in summed.rows} == {one: own for one, (own, _) in expected.items()}
    assert summed.total == expected[root.task_id][1]
    assert summed.total.records == 3 * 8 * 150
    assert all(gap > 0.9 * 10**9 for gap in gaps), "about one event a second of each total"
    logged = [event async for event in client.events.iterate(kinds=["usage.update"], page_size=100)]
    newest = {event.usage.usage_id: event.usage for event in reversed(logged) if event.usage.task_id}
    assert newest == {event.usage.usage_id: event.usage for event in latest.values()}, "and no later one says otherwise"


async def test_a_template_is_estimated_by_what_its_tasks_did_cost(client: Client) -> None:
    await client.templates.create("greet", TemplateSpec(agent_type="nobody", prompt="say hello"))
    for tokens in (1, 2, 30):
        task = await client.tasks.create(template="greet")
        await client.usage.record([usage_record(model="gpt-5", output_tokens=tokens, task_id=task.task_id)])
        await client.tasks.cancel(task.task_id)

    estimate = await client.usage.estimate(template_id="greet", runs=10)

    assert (estimate.history.tasks, estimate.history.unpriced_tasks) == (3, 0)
    assert decimal(estimate.cost) == Decimal("0.0002")
    assert decimal(estimate.cost_p95) == Decimal("0.003")


async def test_pages_of_records_are_in_order_and_whole(client: Client) -> None:
    await client.usage.record(many(250))

    newest = [record.record_id async for record in client.usage.iterate(page_size=100)]

    assert newest == [f"r{number}" for number in reversed(range(250))]


def test_a_record_keeps_the_algebra() -> None:
    record = usage_record(model="m", input_tokens=100, cache_read_tokens=60, cache_write_1h_tokens=30, output_tokens=5)

    assert record.tokens.uncached_input_tokens == 10
    assert record.record_id.startswith("use_")
    with pytest.raises(InvalidRequest, match="more than the input_tokens"):
        usage_record(input_tokens=1, cache_read_tokens=2)


def test_texts_of_a_response_are_not_sent() -> None:
    record = raw_usage_record({"id": "a", "choices": [{"text": "secret"}], "usage": {"prompt_tokens": 1}, "n": [1, {}]})

    assert "secret" not in str(record)
    assert record.raw["usage"]["prompt_tokens"] == 1


@pytest.mark.parametrize(
    "amount", [Decimal("1.25"), 1.25, "1.25", Money(currency_code="USD", units=1, nanos=250_000_000)]
)
def test_dollars_are_exact(amount: object) -> None:
    assert decimal(dollars(amount)) == Decimal("1.25")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        dollars("much")
