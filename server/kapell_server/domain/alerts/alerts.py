"""Alerts by what gives rise to them: fired once for as long as the cause is there.

Whoever finds a cause calls `fire`, as often as it likes, and `resolve` when it is gone; neither needs to know
whether there is an alert. So a new kind needs a value of AlertKind and these two calls, nothing here. The kinds
UNPRICED_MODEL is for the ledger to fire; nothing fires LOCK_HELD, as no lock outlives its ttl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.agent_pb2 import AGENT_ACTIVITY_SILENT, AGENT_STATE_LOST, Agent
from kapell.v1.alert_pb2 import (
    ALERT_KIND_AGENT_SILENT,
    ALERT_KIND_APPROVAL_OLD,
    ALERT_KIND_QUEUE_AGE,
    ALERT_KIND_UNPRICED_MODEL,
    ALERT_STATE_ACKNOWLEDGED,
    ALERT_STATE_FIRING,
    ALERT_STATE_RESOLVED,
    AcknowledgeAlertRequest,
    Alert,
    AlertKind,
)
from kapell.v1.approval_pb2 import Approval
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING
from kapell.v1.error_pb2 import ERROR_REASON_ALERT_NOT_FOUND
from kapell.v1.watch_pb2 import (
    EVENT_KIND_ALERT_ACKNOWLEDGED,
    EVENT_KIND_ALERT_DELETED,
    EVENT_KIND_ALERT_FIRED,
    EVENT_KIND_ALERT_RESOLVED,
)

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import SECOND, stamp, timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State

MOST_KEPT = 1_000
"""Alerts that are kept; beyond that the one that was resolved first is forgotten."""
QUEUE_SUBJECT = "age/"
APPROVAL_SUBJECT = "waits/"
"""Before the id of an approval that is looked at when it waits for too long."""

Cause = tuple[AlertKind.ValueType, str, int]
"""Kind, subject and percent: what there is at most one live alert of."""


class Alerts:
    """Which causes have a live alert. The alerts themselves stand among the standing resources."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._live: dict[Cause, str] = {}

    def load(self) -> None:
        """Takes over what the database has."""
        for alert in self._state.standing.all(Alert):
            if alert.state != ALERT_STATE_RESOLVED:
                self._live[alert.kind, alert.subject, alert.percent] = alert.alert_id
                self._state.schedule(timestamp_ns(alert.acknowledge_expire_time), alert.alert_id)

    def fire(self, kind: AlertKind.ValueType, subject: str, message: str, *, percent: int = 0) -> None:
        """The cause is there. Changes nothing where it has an alert already."""
        state = self._state
        if (kind, subject, percent) in self._live:
            return
        if kind == ALERT_KIND_UNPRICED_MODEL and len(self._live) >= MOST_KEPT:
            return  # The names of models are for whoever records usage to choose.
        alert = Alert(
            alert_id=state.new_id("alert"),
            kind=kind,
            state=ALERT_STATE_FIRING,
            subject=subject,
            percent=percent,
            message=message,
        )
        stamp(alert.fire_time, state.now_ns)
        stamp(alert.state_time, state.now_ns)
        state.assign(self._live, (kind, subject, percent), alert.alert_id)
        state.standing.put(alert, EVENT_KIND_ALERT_FIRED, ())
        self._forget()

    def resolve(self, kind: AlertKind.ValueType, subject: str, *, percent: int = 0) -> None:
        """The cause is gone. Changes nothing where it has no alert."""
        state = self._state
        alert_id = self._live.get((kind, subject, percent))
        if alert_id is None:
            return
        state.remove(self._live, (kind, subject, percent))
        alert = copied(self._get(alert_id))
        alert.state = ALERT_STATE_RESOLVED
        stamp(alert.state_time, state.now_ns)
        alert.ClearField("acknowledge_expire_time")
        state.standing.put(alert, EVENT_KIND_ALERT_RESOLVED, ("state",))

    def acknowledge(self, request: AcknowledgeAlertRequest) -> Alert:
        """Somebody has taken note, until a time where one is said."""
        state = self._state
        current = self._get(request.alert_id)
        if current.state == ALERT_STATE_RESOLVED:
            return current
        alert = copied(current)
        alert.state = ALERT_STATE_ACKNOWLEDGED
        stamp(alert.state_time, state.now_ns)
        alert.acknowledger.CopyFrom(state.caller.actor())
        alert.acknowledge_comment = request.comment
        alert.ClearField("acknowledge_expire_time")
        if request.HasField("expire_time"):
            alert.acknowledge_expire_time.CopyFrom(request.expire_time)
            state.schedule(max(timestamp_ns(request.expire_time), state.now_ns), alert.alert_id)
        return state.standing.put(alert, EVENT_KIND_ALERT_ACKNOWLEDGED, ("state", "acknowledger"))

    def look(self, alert_id: str) -> None:
        """An acknowledgement may have expired: then the alert fires again."""
        state = self._state
        current = state.standing.find(Alert, alert_id)
        if current is None or current.state != ALERT_STATE_ACKNOWLEDGED:
            return
        expire_ns = timestamp_ns(current.acknowledge_expire_time)
        if not expire_ns or expire_ns > state.now_ns:
            state.schedule(expire_ns, alert_id)
            return
        alert = copied(current)
        alert.state = ALERT_STATE_FIRING
        stamp(alert.state_time, state.now_ns)
        alert.ClearField("acknowledge_expire_time")
        state.standing.put(alert, EVENT_KIND_ALERT_FIRED, ("state",))

    # -- causes that are found here ----------------------------------------------------------

    def agent_changed(self, agent: Agent, *, deleted: bool) -> None:
        """An agent was put: it has fallen silent, or is heard of again, or is no more."""
        silent = agent.activity == AGENT_ACTIVITY_SILENT or agent.state == AGENT_STATE_LOST
        if silent and not deleted:
            text = f"Agent {agent.display_name or agent.agent_id} has not been heard of for a while."
            self.fire(ALERT_KIND_AGENT_SILENT, agent.agent_id, text)
        else:
            self.resolve(ALERT_KIND_AGENT_SILENT, agent.agent_id)

    def queue_grew(self, agent_type: str, queue_ns: int) -> None:
        """A task waits in the queue of a type since `queue_ns`: the queue is looked at when that is too long ago."""
        self._state.schedule(queue_ns + self._patience_ns, QUEUE_SUBJECT + agent_type)

    def queue_shrank(self, agent_type: str) -> None:
        """A task of a type waits no more: where that is too old, the queue is looked at."""
        if (ALERT_KIND_QUEUE_AGE, agent_type, 0) in self._live:
            self._state.schedule(self._state.now_ns, QUEUE_SUBJECT + agent_type)

    def look_at_queue(self, agent_type: str) -> None:
        """Whether the oldest task of a type waits for too long."""
        state = self._state
        oldest_ns = state.queues.ready.oldest_ns(agent_type)
        if oldest_ns and oldest_ns + self._patience_ns <= state.now_ns:
            minutes = self._patience_ns // SECOND // 60
            text = f"A task of the type {agent_type} has been waiting for an agent for more than {minutes} min."
            self.fire(ALERT_KIND_QUEUE_AGE, agent_type, text)
            return
        self.resolve(ALERT_KIND_QUEUE_AGE, agent_type)
        if oldest_ns:
            self.queue_grew(agent_type, oldest_ns)

    def approval_waits(self, approval: Approval) -> None:
        """An approval waits since it was asked for: it is looked at when that is too long ago."""
        due_ns = timestamp_ns(approval.create_time) + self._approval_patience_ns
        self._state.schedule(due_ns, APPROVAL_SUBJECT + approval.approval_id)

    def approval_is_over(self, approval_id: str) -> None:
        """An approval waits no more, whatever became of it."""
        self._state.forget_due(APPROVAL_SUBJECT + approval_id)
        self.resolve(ALERT_KIND_APPROVAL_OLD, approval_id)

    def look_at_approval(self, approval_id: str) -> None:
        """Whether an approval waits for too long."""
        approval = self._state.approvals.find(approval_id)
        if approval is None or approval.state != APPROVAL_STATE_PENDING:
            return
        if timestamp_ns(approval.create_time) + self._approval_patience_ns > self._state.now_ns:
            self.approval_waits(approval)
            return
        minutes = self._approval_patience_ns // SECOND // 60
        text = f"An approval has been waiting for a decision for more than {minutes} min: {approval.title}"
        self.fire(ALERT_KIND_APPROVAL_OLD, approval_id, text)

    @property
    def _approval_patience_ns(self) -> int:
        return int(self._state.settings.approval_old_alert * SECOND)

    @property
    def _patience_ns(self) -> int:
        return int(self._state.settings.queue_age_alert * SECOND)

    def _get(self, alert_id: str) -> Alert:
        alert = self._state.standing.find(Alert, alert_id)
        if alert is None:
            raise KapellError(
                ERROR_REASON_ALERT_NOT_FOUND,
                f"Alert {alert_id} was not found: it never existed or was forgotten. List the alerts to find its id.",
                metadata={"alert_id": alert_id},
            )
        return alert

    def _forget(self) -> None:
        """Makes room: the alerts are few, and stay so."""
        standing = self._state.standing
        if standing.count(Alert) > max(MOST_KEPT, len(self._live)):
            gone = next((alert for alert in standing.all(Alert) if alert.state == ALERT_STATE_RESOLVED), None)
            if gone is not None:
                standing.put(copied(gone), EVENT_KIND_ALERT_DELETED, (), deleted=True)


def acknowledge_alert(state: State, request: AcknowledgeAlertRequest) -> Alert:
    """Says that somebody has taken note of an alert."""
    return state.alerts.acknowledge(request)
