"""Asking from within a handler: the request, the wait for its decision, and parking.

The wait is a long poll that a commit ends, and it goes on through restarts of the server; heartbeats
say meanwhile what the attempt waits for, so it does not count as stalled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from kapell._worker.leases import Lease
from kapell._worker.session import CALL_TIMEOUT, Session
from kapell._worker.values import from_struct
from kapell.errors import LeaseLost
from kapell.messages import duration
from kapell.v1.approval_pb2 import (
    Approval,
    GetApprovalRequest,
    RequestApprovalRequest,
    WaitApprovalRequest,
)
from kapell.v1.approval_policy_pb2 import (
    APPROVAL_STATE_APPROVED,
    APPROVAL_STATE_CANCELLED,
    APPROVAL_STATE_EXPIRED,
    APPROVAL_STATE_PENDING,
    APPROVAL_STATE_REJECTED,
    ApprovalState,
)

_LONGEST_WAIT = 30.0
_FLUSH = 5.0
"""Seconds the log may take to arrive before an attempt is parked."""


class Parked(BaseException):
    """The attempt has ended and its task waits for an approval; a handler lets it pass."""


class Verdict:
    """What became of a request. True where it was approved, so that it reads like a question."""

    def __init__(self, approval: Approval) -> None:
        self.approval = approval

    def __bool__(self) -> bool:
        return self.approved

    def __repr__(self) -> str:
        return f"<Verdict {self.state} {self.option!r} {self.comment!r}>"

    @property
    def approved(self) -> bool:
        """Whether somebody, or a rule, has said yes."""
        return self.approval.state == APPROVAL_STATE_APPROVED

    @property
    def rejected(self) -> bool:
        """Whether somebody, or a rule, has said no."""
        return self.approval.state == APPROVAL_STATE_REJECTED

    @property
    def expired(self) -> bool:
        """Whether nobody has said anything in time; that is no refusal."""
        return self.approval.state == APPROVAL_STATE_EXPIRED

    @property
    def state(self) -> str:
        """As a word: "approved", "rejected", "expired" or "cancelled"."""
        return ApprovalState.Name(self.approval.state).removeprefix("APPROVAL_STATE_").lower()

    @property
    def option(self) -> str:
        """What was chosen: "approve", "deny" or the id of an option; empty where nobody has."""
        return self.approval.decisions[-1].option if self.approval.decisions else ""

    @property
    def comment(self) -> str:
        """What was said about it; for a free question the answer."""
        return self.approval.decisions[-1].comment if self.approval.decisions else ""

    @property
    def decided_by(self) -> str:
        """Who decided; empty where nobody has."""
        return self.approval.decisions[-1].decider.id if self.approval.decisions else ""

    @property
    def input(self) -> dict[str, object]:
        """The input to go on with: as it was edited with the decision, else as it was shown."""
        last = self.approval.decisions[-1] if self.approval.decisions else None
        if last is not None and last.HasField("edited_input"):
            return from_struct(last.edited_input)
        return from_struct(self.approval.content.input)


async def ask(session: Session, lease: Lease, request: RequestApprovalRequest) -> Verdict:
    """Asks, and waits until it was decided. Raises LeaseLost, and Parked where the request says so."""
    if request.park:
        # Nothing can be said under a lease that has ended.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH):
                await lease.log.sent()
    try:
        answer = await session.insist(session.approvals.RequestApproval, lambda: request)
    except LeaseLost:
        lease.lose()
        raise
    if answer.parked:
        lease.park()
        raise Parked
    approval = answer.approval
    while approval.state == APPROVAL_STATE_PENDING:
        if lease.cancelled.is_set():
            raise asyncio.CancelledError("the task was cancelled while it waited for an approval")
        wait = WaitApprovalRequest(approval_id=approval.approval_id, wait=duration(_LONGEST_WAIT))
        waited = await _or_cancelled(session, lease, wait)
        if waited is not None:
            approval = waited
    if approval.state == APPROVAL_STATE_CANCELLED and lease.cancelled.is_set():
        raise asyncio.CancelledError("the task was cancelled while it waited for an approval")
    return Verdict(approval)


async def read(session: Session, approval_id: str) -> Verdict:
    """What became of an approval the agent knows by its id."""
    request = GetApprovalRequest(approval_id=approval_id)
    return Verdict((await session.insist(session.approvals.GetApproval, lambda: request)).approval)


async def _or_cancelled(session: Session, lease: Lease, request: WaitApprovalRequest) -> Approval | None:
    """One long poll; None where the attempt is to stop first."""
    patience = request.wait.seconds + CALL_TIMEOUT
    poll = asyncio.create_task(
        session.insist(session.approvals.WaitApproval, lambda: request, timeout=patience),
        name=f"approval of {lease.task_id}",
    )
    stop = asyncio.create_task(lease.cancelled.wait(), name=f"cancel of {lease.task_id}")
    try:
        await asyncio.wait((poll, stop), return_when=asyncio.FIRST_COMPLETED)
        return poll.result().approval if poll.done() else None
    finally:
        poll.cancel()
        stop.cancel()


def details_text(details: Mapping[str, object] | str | None) -> str:
    """Details as people read them: a line each."""
    if details is None or isinstance(details, str):
        return details or ""
    return "\n".join(f"{name}: {value}" for name, value in details.items())
