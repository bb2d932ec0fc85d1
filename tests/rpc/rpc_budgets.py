"""The part of rpc_table about budgets, alerts and webhooks."""

from __future__ import annotations

from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.type.money_pb2 import Money
from kapell.v1 import alert_pb2, budget_pb2, task_pb2, webhook_pb2
from kapell.v1.alert_pb2 import ALERT_STATE_ACKNOWLEDGED
from kapell.v1.budget_pb2 import BUDGET_STATE_OPEN, BudgetAmount
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_DELETED
from kapell.v1.webhook_pb2 import WEBHOOK_DELIVERY_STATE_PENDING

from tests.rpc.rpc_cases import Case, Make
from tests.rpc.scene import Ask, Scene

_NO_BUDGET, _NO_RESERVATION, _NO_ALERT, _NO_WEBHOOK = "budget_none", "reservation_none", "alert_none", "webhook_none"
_NOBODY_LISTENS = "http://127.0.0.1:9/"
_SUBJECTS = {"budget": "budget_id", "alert": "alert_id", "webhook": "webhook_id"}


def dollars(units: int) -> BudgetAmount:
    """So much money."""
    return BudgetAmount(cost=Money(currency_code="USD", units=units))


def _spec(**fields: Any) -> budget_pb2.BudgetSpec:
    """A budget of what nobody does."""
    scope = budget_pb2.BudgetScope(agent_type="nobody-ever")
    return budget_pb2.BudgetSpec(**{"limit": dollars(10), "scope": scope, **fields})


def budget(scene: Scene, **fields: Any) -> str:
    """The id of a budget that nobody else knows."""
    budget_id = scene.name("budget_b")
    scene.ask("CreateBudget", budget_pb2.CreateBudgetRequest(budget_id=budget_id, spec=_spec(**fields)))
    return budget_id


def _reservation(scene: Scene, budget_id: str = "", units: int = 4) -> str:
    request = budget_pb2.ReserveBudgetRequest(budget_id=budget_id or budget(scene), amount=dollars(units))
    found: str = scene.ask("ReserveBudget", request).reservation.reservation_id
    return found


def _alert(scene: Scene) -> str:
    """The id of an alert that fires: a budget is half spent."""
    budget_id = budget(scene)
    settled = budget_pb2.SettleReservationRequest(reservation_id=_reservation(scene, budget_id), amount=dollars(5))
    scene.ask("SettleReservation", settled)
    wanted = alert_pb2.AlertFilter(subjects=[budget_id])
    [alert] = scene.ask("ListAlerts", alert_pb2.ListAlertsRequest(filter=wanted)).alerts
    return str(alert.alert_id)


def webhook(scene: Scene) -> str:
    """The id of a webhook for events that do not come, to an address where nobody listens."""
    webhook_id = scene.name("webhook_w")
    spec = webhook_pb2.WebhookSpec(url=_NOBODY_LISTENS, kinds=[EVENT_KIND_TASK_DELETED])
    scene.ask("CreateWebhook", webhook_pb2.CreateWebhookRequest(webhook_id=webhook_id, spec=spec))
    return webhook_id


def _delivery(scene: Scene) -> tuple[str, str]:
    webhook_id = webhook(scene)
    tested = scene.ask("TestWebhook", webhook_pb2.TestWebhookRequest(webhook_id=webhook_id)).delivery
    return webhook_id, tested.delivery_id


def _resend(webhook_id: str, delivery_id: str) -> Ask:
    return Ask(webhook_pb2.ResendWebhookDeliveryRequest(webhook_id=webhook_id, delivery_id=delivery_id))


def subject_of(message: Message | None) -> str:
    """The resource that a message is about, as "budget/ID"; empty for those of other services."""
    if message is None or message.DESCRIPTOR.file.name.rpartition("/")[2] not in (
        "budget.proto",
        "alert.proto",
        "webhook.proto",
    ):
        return ""
    named: Any = message
    for field in ("budget", "alert", "webhook", "reservation"):
        if field in message.DESCRIPTOR.fields_by_name and message.HasField(field):
            named = getattr(message, field)
    return next((f"{kind}/{getattr(named, field)}" for kind, field in _SUBJECTS.items() if hasattr(named, field)), "")


def alter(request: Any) -> bool:
    """Makes a request of these services another; whether it was one."""
    for field in ("reservation_id", *_SUBJECTS.values()):
        if field in request.DESCRIPTOR.fields_by_name:
            setattr(request, field, f"{field.removesuffix('_id')}_another")
            return request.DESCRIPTOR.file.name.endswith(("budget.proto", "alert.proto", "webhook.proto"))
    return False


def of_budget(request: type[Any], **fields: Any) -> dict[str, Make]:
    """The refusal of every rpc about one budget."""
    return {"BUDGET_NOT_FOUND": lambda scene: Ask(request(budget_id=_NO_BUDGET, **fields))}


def _of_reservation(request: type[Any], **fields: Any) -> dict[str, Make]:
    return {"RESERVATION_NOT_FOUND": lambda scene: Ask(request(reservation_id=_NO_RESERVATION, **fields))}


def _of_webhook(request: type[Any], **fields: Any) -> dict[str, Make]:
    return {"WEBHOOK_NOT_FOUND": lambda scene: Ask(request(webhook_id=_NO_WEBHOOK, **fields))}


def _bad_tokens(request: type[Any]) -> dict[str, Make]:
    return {"PAGE_TOKEN_INVALID: damaged": lambda scene: Ask(request(page_token="not-a-token"))}


def _update(budget_id: str, *paths: str, etag: str = "", **fields: Any) -> Ask:
    mask = FieldMask(paths=paths or ["display_name"])
    said = _spec(**{"display_name": "Other", **fields})
    return Ask(budget_pb2.UpdateBudgetRequest(budget_id=budget_id, spec=said, update_mask=mask, etag=etag))


def _creation(scene: Scene, **fields: Any) -> Ask:
    return Ask(budget_pb2.CreateBudgetRequest(budget_id=scene.name("budget_c"), spec=_spec(**fields)))


def _mars() -> budget_pb2.BudgetWindow:
    calendar = budget_pb2.CalendarWindow(unit=budget_pb2.CALENDAR_UNIT_DAY, time_zone="Mars/Base")
    return budget_pb2.BudgetWindow(calendar=calendar)


BUDGETS: dict[str, Case] = {
    "CreateBudget": Case(
        works=_creation,
        holds=lambda answer: (
            answer.budget.revision == answer.revision
            and answer.budget.status.state == BUDGET_STATE_OPEN
            and len(answer.budget.spec.thresholds) == 3
        ),
        refused={
            "ID_TAKEN": lambda scene: Ask(budget_pb2.CreateBudgetRequest(budget_id=budget(scene), spec=_spec())),
            "REQUEST_INVALID: no such zone": lambda scene: _creation(scene, window=_mars()),
            "REQUEST_INVALID: an estimate of something else": lambda scene: _creation(
                scene, default_estimate=BudgetAmount(tokens=1)
            ),
        },
        malformed=({"spec": {"limit": {"tasks": "-1"}}}, "spec.limit.tasks"),
    ),
    "GetBudget": Case(
        works=lambda scene: Ask(budget_pb2.GetBudgetRequest(budget_id=budget(scene))),
        holds=lambda answer: answer.budget.status.remaining == dollars(10),
        refused=of_budget(budget_pb2.GetBudgetRequest),
        malformed=({}, "budget_id"),
    ),
    "ListBudgets": Case(
        works=lambda scene: Ask(budget_pb2.ListBudgetsRequest(page_size=len(budget(scene)[:1]))),
        holds=lambda answer: answer.budgets[0].status.HasField("remaining"),
        refused=_bad_tokens(budget_pb2.ListBudgetsRequest),
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "UpdateBudget": Case(
        works=lambda scene: _update(budget(scene), "limit", "display_name", limit=dollars(20)),
        holds=lambda answer: answer.budget.spec.limit == dollars(20) and answer.budget.spec.display_name == "Other",
        refused={
            "BUDGET_NOT_FOUND": lambda scene: _update(_NO_BUDGET),
            "ETAG_MISMATCH": lambda scene: _update(budget(scene), etag="other"),
            "REQUEST_INVALID: another measure": lambda scene: _update(
                budget(scene), "limit", limit=BudgetAmount(tokens=5)
            ),
        },
        malformed=({"budgetId": "budget_a", "updateMask": "scope"}, "update_mask"),
    ),
    "DeleteBudget": Case(
        works=lambda scene: Ask(budget_pb2.DeleteBudgetRequest(budget_id=budget(scene))),
        holds=lambda answer: answer.revision > 0,
        refused=of_budget(budget_pb2.DeleteBudgetRequest),
        malformed=({}, "budget_id"),
    ),
    "ResumeBudget": Case(
        works=lambda scene: Ask(budget_pb2.ResumeBudgetRequest(budget_id=budget(scene), extend_by=dollars(3))),
        holds=lambda answer: answer.budget.status.remaining == dollars(13),
        refused={
            **of_budget(budget_pb2.ResumeBudgetRequest),
            "REQUEST_INVALID: another measure": lambda scene: Ask(
                budget_pb2.ResumeBudgetRequest(budget_id=budget(scene), extend_by=BudgetAmount(tasks=1))
            ),
        },
        malformed=({"budgetId": "budget_a", "reason": "x" * 501}, "reason"),
    ),
    "ReserveBudget": Case(
        works=lambda scene: Ask(budget_pb2.ReserveBudgetRequest(budget_id=budget(scene), amount=dollars(4))),
        holds=lambda answer: answer.reservation.amount == dollars(4) and answer.revision > 0,
        refused={
            **of_budget(budget_pb2.ReserveBudgetRequest, amount=dollars(1)),
            "BUDGET_EXCEEDED": lambda scene: Ask(
                budget_pb2.ReserveBudgetRequest(budget_id=budget(scene), amount=dollars(11))
            ),
            "REQUEST_INVALID: another measure": lambda scene: Ask(
                budget_pb2.ReserveBudgetRequest(budget_id=budget(scene), amount=BudgetAmount(tasks=1))
            ),
        },
        malformed=({"budgetId": "budget_a", "amount": {"tokens": "1"}, "ttl": "0s"}, "ttl"),
    ),
    "SettleReservation": Case(
        works=lambda scene: Ask(
            budget_pb2.SettleReservationRequest(reservation_id=_reservation(scene), amount=dollars(3))
        ),
        holds=lambda answer: answer.budget.status.spent == dollars(3) and not answer.budget.status.holders,
        refused={
            **_of_reservation(budget_pb2.SettleReservationRequest, amount=dollars(1)),
            "REQUEST_INVALID: another measure": lambda scene: Ask(
                budget_pb2.SettleReservationRequest(reservation_id=_reservation(scene), amount=BudgetAmount(tasks=1))
            ),
        },
        malformed=({"reservationId": "r"}, "amount"),
    ),
    "ReleaseReservation": Case(
        works=lambda scene: Ask(budget_pb2.ReleaseReservationRequest(reservation_id=_reservation(scene))),
        holds=lambda answer: answer.budget.status.remaining == dollars(10),
        refused=_of_reservation(budget_pb2.ReleaseReservationRequest),
        malformed=({}, "reservation_id"),
    ),
    "ListAlerts": Case(
        works=lambda scene: Ask(alert_pb2.ListAlertsRequest(page_size=len(_alert(scene)[:1]))),
        holds=lambda answer: len(answer.alerts) == 1,
        refused=_bad_tokens(alert_pb2.ListAlertsRequest),
        malformed=({"filter": {"states": [0]}}, "filter.states[0]"),
    ),
    "AcknowledgeAlert": Case(
        works=lambda scene: Ask(alert_pb2.AcknowledgeAlertRequest(alert_id=_alert(scene), comment="seen")),
        holds=lambda answer: answer.alert.state == ALERT_STATE_ACKNOWLEDGED,
        refused={
            "ALERT_NOT_FOUND": lambda scene: Ask(alert_pb2.AcknowledgeAlertRequest(alert_id=_NO_ALERT)),
        },
        malformed=({"alertId": "a", "comment": "x" * 501}, "comment"),
    ),
    "CreateWebhook": Case(
        works=lambda scene: Ask(
            webhook_pb2.CreateWebhookRequest(
                webhook_id=scene.name("webhook_c"),
                spec=webhook_pb2.WebhookSpec(url="http://127.0.0.1:9/a/secret?b=c", kinds=[EVENT_KIND_TASK_DELETED]),
            )
        ),
        holds=lambda answer: answer.secret.startswith("whsec_") and answer.webhook.spec.url == "http://127.0.0.1:9/…",
        refused={
            "ID_TAKEN": lambda scene: Ask(
                webhook_pb2.CreateWebhookRequest(
                    webhook_id=webhook(scene), spec=webhook_pb2.WebhookSpec(url=_NOBODY_LISTENS)
                )
            ),
        },
        malformed=({"spec": {"url": "ftp://127.0.0.1/"}}, "spec.url"),
    ),
    "ListWebhooks": Case(
        works=lambda scene: Ask(webhook_pb2.ListWebhooksRequest(page_size=len(webhook(scene)[:1]))),
        holds=lambda answer: len(answer.webhooks) == 1,
        refused=_bad_tokens(webhook_pb2.ListWebhooksRequest),
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "DeleteWebhook": Case(
        works=lambda scene: Ask(webhook_pb2.DeleteWebhookRequest(webhook_id=webhook(scene))),
        holds=lambda answer: answer.revision > 0,
        refused=_of_webhook(webhook_pb2.DeleteWebhookRequest),
        malformed=({}, "webhook_id"),
    ),
    "TestWebhook": Case(
        works=lambda scene: Ask(webhook_pb2.TestWebhookRequest(webhook_id=webhook(scene))),
        holds=lambda answer: answer.delivery.tries == 1 and bool(answer.delivery.error),
        refused=_of_webhook(webhook_pb2.TestWebhookRequest),
        malformed=({}, "webhook_id"),
    ),
    "ListWebhookDeliveries": Case(
        works=lambda scene: Ask(webhook_pb2.ListWebhookDeliveriesRequest(webhook_id=_delivery(scene)[0])),
        holds=lambda answer: [one.type for one in answer.deliveries] == ["webhook.test"],
        refused={
            **_of_webhook(webhook_pb2.ListWebhookDeliveriesRequest),
            "PAGE_TOKEN_INVALID: damaged": lambda scene: Ask(
                webhook_pb2.ListWebhookDeliveriesRequest(webhook_id=webhook(scene), page_token="not-a-token")
            ),
        },
        malformed=({"webhookId": "w", "pageSize": 501}, "page_size"),
    ),
    "ResendWebhookDelivery": Case(
        works=lambda scene: _resend(*_delivery(scene)),
        holds=lambda answer: answer.delivery.state == WEBHOOK_DELIVERY_STATE_PENDING,
        refused={
            **_of_webhook(webhook_pb2.ResendWebhookDeliveryRequest, delivery_id="delivery_none"),
            "WEBHOOK_NOT_FOUND: no such delivery": lambda scene: _resend(webhook(scene), "delivery_none"),
        },
        malformed=({"webhookId": "w"}, "delivery_id"),
    ),
}

OF_CREATE_TASK: dict[str, Make] = {
    "BUDGET_NOT_FOUND": lambda scene: Ask(task_pb2.CreateTaskRequest(task=scene.spec(budget_id=_NO_BUDGET))),
}

_SPEC = {"limit": {"tokens": "5"}}
_OF_BUDGET = ("GetBudget", "DeleteBudget", "ResumeBudget")
VALID_OF_BUDGETS: dict[str, dict[str, Any]] = {
    "CreateBudget": {"spec": _SPEC},
    "UpdateBudget": {"budgetId": "budget_a", "spec": _SPEC, "updateMask": "limit"},
    **{name: {"budgetId": "budget_a"} for name in _OF_BUDGET},
    "ReserveBudget": {"budgetId": "budget_a", "amount": {"tokens": "5"}},
    "SettleReservation": {"reservationId": "reservation_a", "amount": {"tokens": "5"}},
    "ReleaseReservation": {"reservationId": "reservation_a"},
    "AcknowledgeAlert": {"alertId": "alert_a"},
    "CreateWebhook": {"spec": {"url": "http://127.0.0.1/"}},
    "DeleteWebhook": {"webhookId": "webhook_a"},
    "TestWebhook": {"webhookId": "webhook_a"},
    "ListWebhookDeliveries": {"webhookId": "webhook_a"},
    "ResendWebhookDelivery": {"webhookId": "webhook_a", "deliveryId": "delivery_a"},
}
"""Requests that pass validation, of the methods that require something."""
