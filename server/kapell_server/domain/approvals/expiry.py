"""When the time of an approval is over: an outcome of its own, never somebody's refusal (A4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.approval_pb2 import Approval
from kapell.v1.approval_policy_pb2 import (
    APPROVAL_STATE_EXPIRED,
    APPROVAL_STATE_PENDING,
    EXPIRY_ACTION_ESCALATE,
    EXPIRY_ACTION_HOLD,
)
from kapell.v1.watch_pb2 import EVENT_KIND_APPROVAL_ESCALATED, EVENT_KIND_APPROVAL_EXPIRED

from kapell_server.domain.approvals import outcome
from kapell_server.domain.copied import copied
from kapell_server.domain.times import duration_ns, stamp, timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State


def look_at_approval(state: State, approval_id: str) -> None:
    """Does what time asks of an approval; nothing where it was decided first."""
    approval = state.approvals.find(approval_id)
    if approval is not None:
        look_first(state, approval)


def look_first(state: State, current: Approval) -> Approval:
    """The approval as it is now that its time may be over."""
    if current.state != APPROVAL_STATE_PENDING or current.overdue:
        return current
    if timestamp_ns(current.expire_time) > state.now_ns:
        state.approvals.watch(current)
        return current
    approval = copied(current)
    action = current.policy.on_expiry
    if action == EXPIRY_ACTION_HOLD:
        approval.overdue = True
        approval.state_reason = "its time is over; it waits on"
        return state.approvals.put(approval, EVENT_KIND_APPROVAL_EXPIRED, ("overdue",))
    if action == EXPIRY_ACTION_ESCALATE and not current.escalated:
        approval.escalated = True
        approval.state_reason = "nobody has decided in time; others may now as well"
        stamp(approval.expire_time, state.now_ns + duration_ns(current.policy.timeout))
        return state.approvals.put(approval, EVENT_KIND_APPROVAL_ESCALATED, ("escalated", "expire_time"))
    approval.state = APPROVAL_STATE_EXPIRED
    approval.state_reason = "nobody has decided in time"
    stamp(approval.end_time, state.now_ns)
    put = state.approvals.put(approval, EVENT_KIND_APPROVAL_EXPIRED, ("state",))
    outcome.carry_out(state, put)
    return put
