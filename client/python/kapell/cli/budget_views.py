"""How budgets, alerts, webhooks and their deliveries are shown: their columns and cards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.cli import states, times
from kapell.cli.output import View
from kapell.cli.table import Cell, Column, Line
from kapell.cli.terminal import visible
from kapell.cli.times import until

if TYPE_CHECKING:
    from kapell.v1.alert_pb2 import Alert
    from kapell.v1.budget_pb2 import Budget, BudgetAmount
    from kapell.v1.webhook_pb2 import Webhook, WebhookDelivery

_SCOPES = {"agent_type": "type", "agent_id": "agent", "template_id": "template", "root_task_id": "tree"}
_UNITS = {1: "daily", 2: "weekly", 3: "monthly"}
_ACTIONS = {1: "notify", 2: "approval", 3: "stop", 4: "cancel"}
BUDGET, WEBHOOK = "budget_", "webhook_"


def _text(amount: BudgetAmount) -> str:
    from kapell.amounts import amount_text

    return amount_text(amount)


def short_id(budget_id: str) -> str:
    """The id as people type it: "nightly"."""
    return budget_id.removeprefix(BUDGET)


def scope_text(budget: Budget) -> str:
    """Whose work it is about: "all", "type:review", "label:team=search"."""
    scope = budget.spec.scope
    kind = scope.WhichOneof("scope")
    if kind is None or kind == "all":
        return kind or "named"
    return f"{_SCOPES.get(kind, kind)}:{getattr(scope, kind)}"


def window_text(budget: Budget) -> str:
    """Over which time: "daily Europe/Berlin", "last 24h 00m", "lifetime"."""
    window = budget.spec.window
    match window.WhichOneof("window"):
        case "rolling":
            return f"last {times.short(window.rolling.seconds + window.rolling.nanos / 1e9)}"
        case "calendar":
            return f"{_UNITS.get(window.calendar.unit, '?')} {window.calendar.time_zone}"
        case _:
            return "lifetime"


def budget_state(budget: Budget) -> Cell:
    """Whether new work gets through."""
    look = states.BUDGET_STATES.get(_name_of_state(budget), states.UNKNOWN)
    return Cell(look.word, look.colour, look.mark)


def _name_of_state(budget: Budget) -> str:
    from kapell.v1.budget_pb2 import BudgetState

    return BudgetState.Name(budget.status.state)


def _spent(budget: Budget) -> str:
    from kapell.amounts import amount_number

    limit = amount_number(budget.spec.limit)
    if budget.status.HasField("extended_by"):
        limit += amount_number(budget.status.extended_by)
    share = f" ({amount_number(budget.status.spent) / limit:.0%})" if limit else ""
    return f"{_text(budget.status.spent)}{share}"


def _limit(budget: Budget) -> str:
    more = f" + {_text(budget.status.extended_by)}" if budget.status.HasField("extended_by") else ""
    return f"{_text(budget.spec.limit)}{more}"


def budget_text(budget: Budget) -> str:
    """As "nightly  $4.00 of $5.00"."""
    return f"{budget.spec.display_name}  {_text(budget.status.spent)} of {_limit(budget)}"


def _reset(budget: Budget) -> str:
    return until(budget.status.reset_time) if budget.status.HasField("reset_time") else "-"


def _thresholds(budget: Budget) -> str:
    crossed, lifted = set(budget.status.crossed_percents), set(budget.status.lifted_percents)

    def told(percent: int, action: int) -> str:
        mark = " (lifted)" if percent in lifted else " (crossed)" if percent in crossed else ""
        return f"{percent}% {_ACTIONS.get(action, '?')}{mark}"

    return ", ".join(told(one.percent, one.action) for one in budget.spec.thresholds)


def _budget_card(budget: Budget) -> list[Line]:
    status = budget.status
    span = " to ".join(times.local(time) for time in (status.window_start_time, status.window_end_time) if time.seconds)
    return [
        Line("Budget", short_id(budget.budget_id)),
        Line("Name", budget.spec.display_name),
        Line("State", budget_state(budget)),
        Line("Limit", _limit(budget)),
        Line("Spent", _spent(budget)),
        Line("Reserved", f"{_text(status.reserved)} by {status.holders}" if status.holders else "-"),
        Line("Remaining", _text(status.remaining)),
        Line("Overrun", f"{_text(status.overrun)} beyond the limit" if status.HasField("overrun") else ""),
        Line("Paused", f"{status.paused} running" if status.paused else ""),
        Line("Scope", scope_text(budget)),
        Line("Window", window_text(budget)),
        Line("Since", span),
        Line("Comes back", _reset(budget)),
        Line("Thresholds", _thresholds(budget)),
        Line("If unknown", f"a task reserves {_text(budget.spec.default_estimate)}"),
        Line("For", budget.spec.description),
        Line("Created", times.local(budget.create_time)),
        Line("Revision", str(budget.revision)),
    ]


BUDGETS = View(
    columns=(
        Column("BUDGET", lambda b: Cell(short_id(b.budget_id))),
        Column("STATE", budget_state),
        Column("LIMIT", _limit, right=True),
        Column("SPENT", _spent, right=True),
        Column("RESERVED", lambda b: _text(b.status.reserved), right=True, spare=True),
        Column("RESET", _reset, spare=True),
        Column("SCOPE", scope_text, flexible=True, keep=16),
        Column("WINDOW", window_text, wide=True),
        Column("THRESHOLDS", _thresholds, wide=True),
        Column("NAME", lambda b: b.spec.display_name, wide=True),
    ),
    id=lambda b: b.budget_id,
    card=_budget_card,
    brief=(
        Column("BUDGET", lambda b: Cell(short_id(b.budget_id))),
        Column("STATE", budget_state),
        Column("SPENT", lambda b: f"{_text(b.status.spent)} of {_limit(b)}"),
    ),
)


def alert_state(alert: Alert) -> Cell:
    """Whether somebody has to look."""
    from kapell.v1.alert_pb2 import AlertState

    look = states.ALERT_STATES.get(AlertState.Name(alert.state), states.UNKNOWN)
    return Cell(look.word, look.colour, look.mark)


def alert_kind(alert: Alert) -> str:
    """What it is about, in words: "budget threshold"."""
    from kapell.v1.alert_pb2 import AlertKind

    return AlertKind.Name(alert.kind).removeprefix("ALERT_KIND_").lower().replace("_", " ")


ALERTS = View(
    columns=(
        Column("ALERT", lambda a: Cell(a.alert_id)),
        Column("STATE", alert_state),
        Column("AGE", lambda a: times.age(a.fire_time), right=True),
        Column("WHAT", lambda a: a.message, flexible=True),
        Column("KIND", alert_kind, wide=True),
        Column("SUBJECT", lambda a: a.subject, wide=True),
        Column("NOTED BY", lambda a: a.acknowledger.id or "-", wide=True),
        Column("COMMENT", lambda a: a.acknowledge_comment or "-", wide=True),
    ),
    id=lambda a: a.alert_id,
    brief=(
        Column("ALERT", lambda a: Cell(a.alert_id)),
        Column("STATE", alert_state),
        Column("WHAT", lambda a: a.message, flexible=True),
    ),
)


def _kinds(webhook: Webhook) -> str:
    return ",".join(states.event_name(kind) for kind in webhook.spec.kinds)


WEBHOOKS = View(
    columns=(
        Column("WEBHOOK", lambda w: Cell(w.webhook_id.removeprefix(WEBHOOK))),
        Column("URL", lambda w: w.spec.url, flexible=True),
        Column("EVENTS", _kinds, flexible=True),
        Column("FOR", lambda w: w.spec.description or "-", wide=True),
    ),
    id=lambda w: w.webhook_id,
)


def delivery_state(delivery: WebhookDelivery) -> Cell:
    """What became of it."""
    from kapell.v1.webhook_pb2 import WebhookDeliveryState

    look = states.DELIVERY_STATES.get(WebhookDeliveryState.Name(delivery.state), states.UNKNOWN)
    return Cell(look.word, look.colour, look.mark)


def delivery_text(delivery: WebhookDelivery) -> str:
    """The last answer, or why there was none."""
    return visible(delivery.error) or (str(delivery.status_code) if delivery.status_code else "-")


DELIVERIES = View(
    columns=(
        Column("DELIVERY", lambda d: Cell(d.delivery_id)),
        Column("STATE", delivery_state),
        Column("TYPE", lambda d: d.type, spare=True),
        Column("TRIES", lambda d: str(d.tries), right=True),
        Column("AGE", lambda d: times.age(d.create_time), right=True),
        Column("ANSWER", delivery_text, flexible=True, keep=24),
        Column("NEXT", lambda d: until(d.next_try_time) if d.HasField("next_try_time") else "-", wide=True),
    ),
    id=lambda d: d.delivery_id,
)
