"""Alerts: one for as long as its cause is there, and quiet for as long as somebody has taken note."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money
from kapell.v1.alert_pb2 import (
    ALERT_KIND_AGENT_SILENT,
    ALERT_KIND_QUEUE_AGE,
    ALERT_KIND_UNPRICED_MODEL,
    ALERT_STATE_ACKNOWLEDGED,
    ALERT_STATE_FIRING,
    ALERT_STATE_RESOLVED,
    AcknowledgeAlertRequest,
    Alert,
)
from kapell.v1.usage_pb2 import RecordUsageRequest, TokenCounts, UsageRecord
from kapell_server.domain.alerts import alerts

from tests.domain.spending import Purse, cents
from tests.domain.world import World


def _alert(world: World, alert_id: str) -> Alert:
    found = world.rows.standing["alert", alert_id]
    assert isinstance(found, Alert)
    return found


def _only(world: Purse) -> Alert:
    [alert] = world.alerts()
    return alert


def test_a_silent_agent_fires_an_alert_until_it_is_heard_again() -> None:
    world = Purse()
    agent_id = world.register()

    world.advance(8)
    alert = _only(world)
    assert (alert.kind, alert.subject) == (ALERT_KIND_AGENT_SILENT, agent_id)
    world.advance(5)
    assert _only(world) == alert
    world.beat(agent_id)

    assert world.alerts() == []
    assert _alert(world, alert.alert_id).state == ALERT_STATE_RESOLVED


def test_a_queue_that_is_too_old_fires_an_alert_until_its_oldest_task_is_gone() -> None:
    world = Purse(queue_age_alert=60.0)
    first = world.create("review")
    world.advance(30)
    world.create("review")

    world.advance(31)
    alert = _only(world)
    assert (alert.kind, alert.subject) == (ALERT_KIND_QUEUE_AGE, "review")
    world.cancel(first)
    world.advance(0)
    assert world.alerts() == []
    world.advance(30)

    assert _only(world).kind == ALERT_KIND_QUEUE_AGE


def test_an_acknowledged_alert_fires_again_when_the_time_is_over_and_its_cause_is_there() -> None:
    world = Purse()
    world.budget(cents(100))
    world.use(cost=50)
    alert = _only(world)
    until = Timestamp(seconds=world.now_ns // 1_000_000_000 + 60)

    noted = world.do(AcknowledgeAlertRequest(alert_id=alert.alert_id, comment="on it", expire_time=until))
    assert noted.state == ALERT_STATE_ACKNOWLEDGED
    assert noted.acknowledger.id == "admin"
    world.advance(59)
    assert _alert(world, alert.alert_id).state == ALERT_STATE_ACKNOWLEDGED
    world.advance(1)

    assert _alert(world, alert.alert_id).state == ALERT_STATE_FIRING
    assert world.events.count("alert.fired") == 2


def test_an_acknowledgement_without_an_end_holds_until_the_cause_is_gone() -> None:
    world = Purse()
    world.budget(cents(100))
    world.use(cost=50)
    world.do(AcknowledgeAlertRequest(alert_id=_only(world).alert_id))

    world.advance(86_400)
    assert _only(world).state == ALERT_STATE_ACKNOWLEDGED
    world.set_limit(cents(1000))

    assert world.alerts() == []


def test_a_resolved_alert_stays_so() -> None:
    world = Purse()
    world.budget(cents(100))
    world.use(cost=50)
    alert_id = _only(world).alert_id
    world.set_limit(cents(1000))

    assert world.do(AcknowledgeAlertRequest(alert_id=alert_id)).state == ALERT_STATE_RESOLVED
    with world.refuses("ALERT_NOT_FOUND"):
        world.do(AcknowledgeAlertRequest(alert_id="alert_nothing"))


def test_the_alerts_that_are_kept_are_few(monkeypatch: object) -> None:
    world = Purse()
    world.deciders[tuple] = lambda state, cause: (
        state.alerts.fire(ALERT_KIND_UNPRICED_MODEL, cause[0], "no price"),
        state.alerts.resolve(ALERT_KIND_UNPRICED_MODEL, cause[0]) if cause[1] else None,
    )
    world.do(("stays", False))
    world.do(*[(f"model-{number}", True) for number in range(alerts.MOST_KEPT + 5)])

    assert world.state.standing.count(Alert) == alerts.MOST_KEPT
    assert _only(world).subject == "stays"
    assert world.events.count("alert.deleted") == 6


def test_a_reported_cost_does_not_resolve_that_a_model_has_no_price() -> None:
    world = World()
    for number in range(6):
        said = {"cost": Money(currency_code="USD", units=1)} if number % 2 else {}
        use = UsageRecord(record_id=f"msg_{number}", model="nobody-knows", tokens=TokenCounts(output_tokens=1), **said)
        world.do(RecordUsageRequest(records=[use]))

    assert [alert.state for alert in world.state.standing.all(Alert)] == [ALERT_STATE_FIRING]


def test_names_of_models_that_are_made_up_do_not_fill_the_memory() -> None:
    world = World()
    for start in range(0, 1_200, 100):
        uses = [
            UsageRecord(record_id=f"msg_{n}", model=f"made-up-{n}", tokens=TokenCounts(output_tokens=1))
            for n in range(start, start + 100)
        ]
        world.do(RecordUsageRequest(records=uses))

    assert world.state.standing.count(Alert) == 1_000
