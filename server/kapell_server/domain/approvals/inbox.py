"""The inbox: what waits for a decision, what most tasks wait for first, then what expires first.

Asked of the writer's memory, after dispatch: all that is PENDING is there, and so are the edges between
tasks. Pages go by position, since the order changes with every decision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kapell.v1.approval_pb2 import Approval, ApprovalFilter, ListApprovalsRequest, ListApprovalsResponse

from kapell_server.domain.copied import copied
from kapell_server.domain.times import timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State

MOST_COUNTED = 1_000
_MOST_RECKONED = 100
"""Of so many approvals it is reckoned what waits behind them; beyond, the order is by expiry alone."""


def listed(state: State, request: ListApprovalsRequest, first: int, size: int) -> ListApprovalsResponse:
    """`size` entries of the inbox from number `first` on; its page token is the number to go on from, as text."""
    matches = approval_test(request.filter)
    found = [approval for approval in state.approvals.pending() if matches(approval)]
    found.sort(key=lambda one: (one.overdue, timestamp_ns(one.expire_time), one.approval_id))
    reckoned = [(blocks(state, one), one) for one in found[:_MOST_RECKONED]]
    reckoned.sort(key=lambda pair: -pair[0])
    entries = reckoned + [(0, one) for one in found[_MOST_RECKONED:]]
    response = ListApprovalsResponse(revision=state.revision, total=len(found))
    response.overdue = sum(one.overdue for one in found)
    for count, approval in entries[first : first + size]:
        entry = copied(approval)
        entry.blocks = count
        response.approvals.append(entry)
    if first + size < len(entries):
        response.next_page_token = str(first + size)
    return response


def blocks(state: State, approval: Approval) -> int:
    """How many tasks wait until this is decided: its own, those that depend on it, and its parents."""
    if not approval.task_id:
        return 0
    seen = {approval.task_id}
    level = [approval.task_id]
    while level and len(seen) < MOST_COUNTED:
        level = [
            dependant
            for task_id in level
            for dependant in state.edges.dependants.get(task_id, ())
            if dependant not in seen and not seen.add(dependant)  # type: ignore[func-returns-value]
        ]
    if approval.root_task_id and approval.root_task_id != approval.task_id:
        parents = state.families.of(approval.root_task_id)
        above = parents.get(approval.task_id, "")
        while above and above not in seen:
            seen.add(above)
            above = parents.get(above, "")
    return min(len(seen), MOST_COUNTED)


def approval_test(wanted: ApprovalFilter) -> Callable[[Approval], bool]:
    """Whether an approval matches a filter; for lists and watches alike."""
    states, kinds = frozenset(wanted.states), frozenset(wanted.kinds)
    tasks, agents, ids = frozenset(wanted.task_ids), frozenset(wanted.agent_ids), frozenset(wanted.approval_ids)

    def matches(approval: Approval) -> bool:
        return (
            (not states or approval.state in states)
            and (not kinds or approval.kind in kinds)
            and (not tasks or approval.task_id in tasks)
            and (not agents or approval.agent_id in agents)
            and (not ids or approval.approval_id in ids)
            and (not wanted.root_task_id or approval.root_task_id == wanted.root_task_id)
            and (not wanted.signature or approval.signature == wanted.signature)
            and approval.risk.level >= wanted.min_risk
        )

    return matches
