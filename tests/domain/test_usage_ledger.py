"""The ledger's rules: what counts once, what corrects, what is refused, and totals that are sums (B2, B3)."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.type.money_pb2 import Money
from kapell.v1.price_pb2 import Price, SetPriceRequest
from kapell.v1.task_pb2 import DeleteTaskRequest
from kapell.v1.usage_pb2 import (
    USAGE_BASIS_DERIVED,
    USAGE_BASIS_ESTIMATED,
    USAGE_BASIS_REPORTED,
    RecordUsageRequest,
    RepriceUsageRequest,
    TokenCounts,
    UsageOutcome,
    UsageOutcomeKind,
    UsageRecord,
)
from kapell.v1.worker_pb2 import (
    LEASE_DIRECTIVE_LOST,
    CompleteTaskRequest,
    FailTaskRequest,
    HeartbeatRequest,
    LeaseBeat,
    ReportUsageRequest,
)
from kapell_server.domain.errors import KapellError
from kapell_server.domain.usage.entry import usage_id_of_agent, usage_id_of_task
from kapell_server.domain.usage.figures import Figures, Sums, nanos
from kapell_server.domain.usage.reprice import RepriceCommand

from tests.domain.usage_corpus import CORPUS
from tests.domain.world import World, as_agent, as_program


def record(record_id: str = "msg_1", **fields: Any) -> UsageRecord:
    """A call of Sonnet 4.5 with 1000 in and 100 out, which costs 4,500,000 nanos, unless it says otherwise."""
    tokens = fields.pop("tokens", {"uncached_input_tokens": 1000, "output_tokens": 100})
    said = {"provider": "anthropic", "model": "claude-sonnet-4-5", "tokens": TokenCounts(**tokens), **fields}
    return UsageRecord(record_id=record_id, **said)


def raw(payload: dict[str, Any], **fields: Any) -> UsageRecord:
    return UsageRecord(raw=ParseDict(payload, Struct()), **fields)


def send(world: World, *records: UsageRecord) -> list[UsageOutcome]:
    return list(world.do(RecordUsageRequest(records=records)).outcomes)


def kinds(outcomes: list[UsageOutcome]) -> list[str]:
    return [UsageOutcomeKind.Name(outcome.kind).removeprefix("USAGE_OUTCOME_KIND_") for outcome in outcomes]


def counting(world: World) -> dict[str, tuple[tuple[int, ...], int | None]]:
    """What counts, by record_id: figures and cost."""
    return {
        entry.record.record_id: (
            tuple(Figures.of(entry.record.tokens)),
            nanos(entry.record.cost) if entry.record.HasField("cost") else None,
        )
        for entry in world.rows.usage.counting()
    }


def own(world: World, task_id: str) -> Sums:
    return world.rows.usage.totals[usage_id_of_task(task_id)].own


def tree(world: World, task_id: str) -> Sums:
    return world.rows.usage.totals[usage_id_of_task(task_id)].tree


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_has_the_totals_reckoned_by_hand_however_often_it_comes(name: str) -> None:
    world = World()
    case = CORPUS[name]

    for payload in case.payloads:
        send(world, raw(payload))
    assert counting(world) == case.expected
    world.do()
    before = world.rows.usage.picture(world.state)

    again = send(world, *[raw(payload) for payload in [*case.payloads, *reversed(case.payloads)]])

    assert set(kinds(again)) == {"DUPLICATE"}
    assert world.rows.usage.picture(world.state) == before


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_in_one_call_and_in_any_order_is_the_same(name: str) -> None:
    world = World()
    case = CORPUS[name]
    if name == "acp-running-cost":
        pytest.skip("how a running total is cut into records depends on when it was reported")

    send(world, *[raw(payload) for payload in reversed(case.payloads)])

    assert counting(world) == case.expected


@pytest.mark.parametrize("provider", ["anthropic", "openai", "gemini"])
@pytest.mark.parametrize("way", ["stream", "resumed", "forked", "sub-agent", "retried"])
def test_the_corpus_has_every_way_to_count_twice_of_every_provider(provider: str, way: str) -> None:
    assert any(name.startswith(provider) and way in name for name in CORPUS)


def test_a_payload_that_is_no_record_yet_says_so_and_changes_nothing() -> None:
    world = World()
    start = {"type": "message_start", "message": {"id": "m", "type": "message"}}

    outcomes = send(
        world,
        raw({}),
        raw({"hello": "world"}),
        raw(start),
        raw({"object": "response", "id": "resp_1", "usage": None}),
        raw({"usage": {"prompt_tokens": -1}, "id": "c"}),
        raw({"usage": {"prompt_tokens": 1.5}, "id": "c"}),
        raw({"usage": {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 6}}, "id": "c"}),
        raw({"type": "token_count", "info": {"total_token_usage": {"input_tokens": 5}}}),
        record(record_id=""),
        record(tokens={}),
        record(tokens={"output_tokens": 1, "reasoning_tokens": 2}),
        record(task_id="task_gone"),
        record(agent_id="agent_gone"),
    )

    assert set(kinds(outcomes)) == {"REFUSED"}
    assert all(outcome.message and outcome.reason for outcome in outcomes)
    assert [outcome.reason for outcome in outcomes[-2:]] == ["TASK_NOT_FOUND", "AGENT_NOT_FOUND"]
    assert world.rows.usage.entries == []


def test_one_refused_record_does_not_hinder_the_others() -> None:
    world = World()

    outcomes = send(world, record("a"), record("b", task_id="task_gone"), record("c"), record("a"))

    assert kinds(outcomes) == ["RECORDED", "REFUSED", "RECORDED", "DUPLICATE"]
    assert [nanos(outcome.cost) for outcome in outcomes] == [4_500_000, 0, 4_500_000, 4_500_000]
    assert set(counting(world)) == {"a", "c"}


def test_other_figures_are_refused_larger_ones_replace_and_corrections_supersede() -> None:
    world = World()
    send(world, record())

    smaller = record(tokens={"uncached_input_tokens": 999, "output_tokens": 100})
    askew = record(tokens={"uncached_input_tokens": 999, "output_tokens": 101})
    larger = record(tokens={"uncached_input_tokens": 1000, "output_tokens": 200})
    corrected = record(tokens={"uncached_input_tokens": 500, "output_tokens": 100}, correction=True, note="double")
    outcomes = send(world, smaller, askew, larger, corrected, larger, corrected, record())

    assert kinds(outcomes) == ["DUPLICATE", "REFUSED", "CORRECTED", "CORRECTED", "DUPLICATE", "DUPLICATE", "DUPLICATE"]
    assert outcomes[1].reason == "USAGE_CONFLICT"
    assert counting(world) == {"msg_1": ((500, 0, 0, 0, 100, 0), 3_000_000)}
    assert [(entry.record.version, entry.superseded_by) for entry in world.rows.usage.entries] == [
        (1, 2),
        (2, 3),
        (3, 0),
    ]


def test_totals_of_task_tree_and_agent_are_the_sums_of_their_records() -> None:
    world = World()
    agent = world.register()
    root = world.create(task_id="task_root")
    child = world.create(task_id="task_child", parent_task_id=root)
    leaf = world.create(task_id="task_leaf", parent_task_id=child)

    send(
        world,
        record("a", task_id=root),
        record("b", task_id=child),
        record("c", task_id=leaf, agent_id=agent),
    )
    send(world, record("c", correction=True, tokens={"uncached_input_tokens": 100_000}))

    assert [own(world, task).cost for task in (root, child, leaf)] == [4_500_000, 4_500_000, 300_000_000]
    assert [tree(world, task).records for task in (root, child, leaf)] == [3, 2, 1]
    assert tree(world, root).cost == 309_000_000
    spent = world.rows.usage.totals[usage_id_of_agent(agent)]
    assert spent.own == own(world, leaf)


@pytest.mark.parametrize("changes", [{"correction": True, "note": "mine"}, {"tokens": {"output_tokens": 10**6}}])
def test_an_attempt_changes_no_record_of_another_task(changes: dict[str, Any]) -> None:
    world = World()
    mine, other = world.running(), world.running()
    send(world, record("theirs", task_id=other, tokens={"output_tokens": 5}))
    send(world, record("nobodys", tokens={"output_tokens": 5}))
    send(world, record("before", task_id=mine, agent_id=world.register(), tokens={"output_tokens": 5}))
    before = counting(world)

    claim = {"tokens": {}, **changes}
    report = ReportUsageRequest(lease_token=world.token(mine), records=[record("theirs", **claim)])
    by_program = RecordUsageRequest(records=[record(name, **claim) for name in ("theirs", "nobodys", "before")])
    by_agent = world.do(report, caller=as_agent(world.agent(world.task(mine).lease.agent_id)))
    outcomes = [*by_agent.outcomes, *world.do(by_program, caller=as_program(world, mine)).outcomes]

    assert {outcome.reason for outcome in outcomes} == {"NOT_OWNER"}
    assert counting(world) == before
    assert own(world, other).output == 5
    again = record("theirs", task_id=other, tokens={"output_tokens": 5})
    assert kinds(send(world, again)) == ["DUPLICATE"]


def test_records_outlive_their_task_and_may_still_be_sent_again() -> None:
    world = World()
    task = world.create(priority=1)
    send(world, record("a", task_id=task))
    world.do(DeleteTaskRequest(task_id=task))
    if task in world.rows.tasks:
        world.do(DeleteTaskRequest(task_id=task))

    grown = record("a", task_id=task, tokens={"uncached_input_tokens": 1000, "output_tokens": 300})
    assert kinds(send(world, record("a", task_id=task), grown)) == ["DUPLICATE", "CORRECTED"]
    assert kinds(send(world, record("b", task_id=task))) == ["REFUSED"]
    assert own(world, task).output == 300


def test_an_unknown_model_is_unpriced_and_never_free() -> None:
    world = World()

    [outcome] = send(world, record(provider="acme", model="wonder-1"))

    assert outcome.unpriced
    assert not outcome.HasField("cost")
    [entry] = world.rows.usage.counting()
    assert entry.sums == Sums(records=1, uncached=1000, output=100, unpriced=1)


def test_a_reported_cost_counts_as_it_is() -> None:
    world = World()

    send(world, record("a", cost=Money(units=1, nanos=250_000_000)), record("b", model="wonder-1", cost=Money(nanos=7)))

    found = {entry.record.record_id: entry.record for entry in world.rows.usage.counting()}
    assert nanos(found["a"].cost) == 1_250_000_000
    assert nanos(found["b"].cost) == 7
    assert {one.cost_basis for one in found.values()} == {USAGE_BASIS_REPORTED}
    assert not any(one.unpriced for one in found.values())


def test_what_nobody_has_said_is_marked_as_estimated() -> None:
    world = World()

    send(
        world,
        record("a"),
        record("b", provider="openai", model="gpt-4o", tokens={"cache_write_5m_tokens": 10}),
        record("c", basis=USAGE_BASIS_ESTIMATED),
    )

    found = {entry.record.record_id: entry for entry in world.rows.usage.counting()}
    assert [found[name].record.cost_basis for name in "abc"] == [
        USAGE_BASIS_DERIVED,
        USAGE_BASIS_ESTIMATED,
        USAGE_BASIS_ESTIMATED,
    ]
    assert [found[name].sums.estimated for name in "abc"] == [0, 1, 1]
    assert list(found["b"].record.estimated_fields) == ["cost"]


def test_an_agent_reports_for_its_own_attempt_alone() -> None:
    world = World()
    worker = world.register()
    task, other = world.create(), world.create(agent_type="other")
    world.lease(worker)
    token = world.token(task)

    report = ReportUsageRequest(lease_token=token, records=[record("a"), record("b", task_id=other)])
    outcomes = list(world.do(report).outcomes)

    assert kinds(outcomes) == ["RECORDED", "REFUSED"]
    assert outcomes[1].reason == "NOT_OWNER"
    [entry] = world.rows.usage.counting()
    assert (entry.record.task_id, entry.record.attempt, entry.record.agent_id) == (task, 1, worker)


def test_usage_comes_with_heartbeats_and_with_the_end_of_an_attempt_and_once() -> None:
    world = World()
    worker = world.register()
    task = world.create(retry_policy={"max_attempts": 2})
    world.lease(worker)
    token = world.token(task)

    beat = HeartbeatRequest(agent_id=worker, leases=[LeaseBeat(lease_token=token, usage=[record("a")])])
    world.do(beat)
    failure = {"reason": "BROKEN", "message": "it broke"}
    failed = FailTaskRequest(lease_token=token, failure=failure, usage=[record("b"), record("", tokens={})])
    answer = world.do(failed)
    world.do(failed)
    world.advance(3600)
    world.lease(world.register(key="another"))
    done = CompleteTaskRequest(lease_token=world.token(task), usage=[record("a"), record("c")])
    world.do(done)
    world.do(done)

    assert [outcome.reason for outcome in answer.refused_usage] == ["REQUEST_INVALID"]
    assert [(entry.record.record_id, entry.record.attempt) for entry in world.rows.usage.counting()] == [
        ("a", 1),
        ("b", 1),
        ("c", 2),
    ]
    assert own(world, task).records == 3


def test_what_a_superseded_attempt_has_used_is_recorded_as_its_own_and_changes_nothing_else() -> None:
    world = World()
    worker = world.register()
    task = world.create()
    world.lease(worker)
    token = world.token(task)
    world.fail(task)
    world.advance(60)
    world.beat(worker)
    world.lease(worker)
    before = world.task(task)

    for _ in range(2):
        late = world.do(ReportUsageRequest(lease_token=token, records=[record("a")]))
        assert late.directive == LEASE_DIRECTIVE_LOST

    assert kinds(late.outcomes) == ["DUPLICATE"]
    [version] = world.rows.usage.versions(["a"])
    assert (version.record.task_id, version.record.attempt, version.record.agent_id) == (task, 1, worker)
    assert own(world, task).records == 1
    assert world.task(task) == before
    assert world.state.leases.by_task[task].attempt == 2
    for request in (
        CompleteTaskRequest(lease_token=token, usage=[record("b")]),
        FailTaskRequest(lease_token=token, usage=[record("b")]),
    ):
        with world.refuses("LEASE_LOST"):
            world.do(request)
    assert own(world, task).records == 1


def test_a_heartbeat_brings_the_usage_of_lost_leases() -> None:
    world = World()
    worker = world.register()
    task = world.create()
    world.lease(worker)
    token = world.token(task)
    world.fail(task)

    beat = LeaseBeat(lease_token=token, usage=[record("a")])
    [status] = world.do(HeartbeatRequest(agent_id=worker, leases=[beat])).leases

    assert status.directive == LEASE_DIRECTIVE_LOST
    assert own(world, task).records == 1


def test_usage_of_an_attempt_that_is_nobodys_is_refused() -> None:
    world = World()
    other = world.register()
    worker = world.register()
    task = world.create()
    world.lease(worker)
    token = world.token(task)
    world.complete(task)

    with world.refuses("NOT_OWNER"):
        world.do(ReportUsageRequest(lease_token=token, records=[record("a")]), caller=as_agent(world.agent(other)))
    with world.refuses("LEASE_LOST"):
        world.do(ReportUsageRequest(lease_token=token + "x", records=[record("a")]))
    world.delete(task)
    world.advance(1)
    again = world.create(task_id=task)
    world.beat(worker)
    world.lease(worker)
    world.complete(again)
    with world.refuses("LEASE_LOST"):
        world.do(ReportUsageRequest(lease_token=token, records=[record("a")]))


def test_totals_are_told_at_most_once_a_second_and_all_of_them() -> None:
    world = World()
    task = world.create()

    for number in range(5):
        send(world, record(f"r{number}", task_id=task))
    world.advance(2)
    told = world.events.count("usage.update")
    send(world, record("last", task_id=task))
    world.advance(2)

    assert told == 2
    assert world.events.count("usage.update") == 3
    assert Sums.of(world.rows.usage.told[usage_id_of_task(task)].usage) == own(world, task)
    assert not world.rows.usage.totals[usage_id_of_task(task)].untold


def test_costing_anew_changes_what_differs_and_only_that() -> None:
    world = World()
    task = world.create()
    send(
        world,
        record("a", task_id=task),
        record("b", provider="acme", model="wonder-1", task_id=task),
        record("c", task_id=task, cost=Money(units=1)),
    )
    price = {"provider": "acme", "model": "wonder-1", "rates": {"input": Money(units=1), "output": Money(units=2)}}
    world.do(SetPriceRequest(price=Price(**price)))
    answer = world.do(RepriceCommand(RepriceUsageRequest(), ("a", "b", "c"), False))
    again = world.do(RepriceCommand(RepriceUsageRequest(), ("a", "b", "c"), False))

    assert (answer.changed, again.changed) == (1, 0)
    [line] = answer.models
    assert (line.model, line.unpriced_before, nanos(line.cost_after)) == ("wonder-1", 1, 1_200_000)
    assert own(world, task) == Sums(3, 3000, 0, 0, 0, 300, 0, 4_500_000 + 1_200_000 + 1_000_000_000)
    assert kinds(send(world, record("b", provider="acme", model="wonder-1", task_id=task))) == ["DUPLICATE"]


def test_what_was_costed_anew_is_costed_anew_when_its_price_changes_again() -> None:
    world = World()
    send(world, record("a", provider="acme", model="wonder-1"))
    costs = []

    for dollars in (1, 2, 3):
        rates = {"input": Money(units=dollars), "output": Money(units=dollars)}
        world.do(SetPriceRequest(price=Price(provider="acme", model="wonder-1", rates=rates)))
        world.do(RepriceCommand(RepriceUsageRequest(), ("a",), False))
        [current] = world.rows.usage.counting()
        costs.append((nanos(current.record.cost), current.record.cost_basis))

    assert costs == [(dollars * 1_100_000, USAGE_BASIS_DERIVED) for dollars in (1, 2, 3)]


def test_a_refused_price_leaves_no_trace() -> None:
    world = World()
    euros = {"input": Money(currency_code="EUR", units=1), "output": Money(units=1)}

    with world.refuses("REQUEST_INVALID"):
        world.do(SetPriceRequest(price=Price(provider="acme", model="m", rates=euros)))


def test_settlers_are_told_of_each_record_with_its_cost() -> None:
    world = World()
    told: list[tuple[str, int, int | None]] = []

    def settle(_: Any, entry: Any, previous: Any) -> None:
        told.append((entry.record.record_id, entry.sums.cost, previous.sums.cost if previous else None))

    world.state.usage.settlers.append(settle)
    send(world, record("a"), record("a"), record("a", correction=True, tokens={"output_tokens": 1}))

    assert told == [("a", 4_500_000, None), ("a", 15_000, 4_500_000)]


def test_a_refusal_in_the_middle_of_a_settlement_rolls_the_record_back() -> None:
    world = World()

    def settle(_: Any, entry: Any, __: Any) -> None:
        if entry.record.record_id == "b":
            raise KapellError(1, "no")

    world.state.usage.settlers.append(settle)
    outcomes = send(world, record("a"), record("b"))

    assert kinds(outcomes) == ["RECORDED", "REFUSED"]
    assert set(counting(world)) == {"a"}
    assert world.state.usage.last_number == 1
