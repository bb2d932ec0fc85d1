"""Running work at the edge of what is reserved for it: it gets more where there is room, else it pauses, or stops.

Whoever changes figures names the attempts that may be concerned (`Budgets.at_edge`); they are looked at before the
batch gives out new work, and where an agent is about to be answered. So running work comes before new work, and an
attempt that reports its last usage with its end is not paused in between. A pause stands in the task, so that it
outlives a restart; nothing stops an attempt from using more, which is recorded as overrun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.approval_pb2 import Approval
from kapell.v1.approval_policy_pb2 import (
    APPROVAL_STATE_APPROVED,
    APPROVAL_STATE_CANCELLED,
    APPROVAL_STATE_EXPIRED,
    APPROVAL_STATE_REJECTED,
)
from kapell.v1.budget_pb2 import BUDGET_ACTION_CANCEL, BudgetPause
from kapell.v1.task_pb2 import ATTEMPT_WAIT_KIND_BUDGET, TASK_STATE_CANCELLING, TASK_STATE_RUNNING, Task, TaskFailure
from kapell.v1.watch_pb2 import (
    EVENT_KIND_BUDGET_UPDATED,
    EVENT_KIND_TASK_CANCELLING,
    EVENT_KIND_TASK_CONTINUED,
    EVENT_KIND_TASK_PAUSED,
)

from kapell_server.domain.approvals import for_budgets
from kapell_server.domain.budgets import resuming
from kapell_server.domain.budgets.amounts import milliseconds, set_amount, words
from kapell_server.domain.budgets.tally import FULL, Hold
from kapell_server.domain.copied import copied
from kapell_server.domain.times import SECOND, stamp

if TYPE_CHECKING:
    from kapell_server.domain.state import State
    from kapell_server.domain.workers.leases import Lease

HOLD_SUBJECT = "hold_"
"""Before the id of a task whose attempt is looked at when the time it has reserved is over."""
_LEAST_TIME_NS = SECOND
"""The shortest time by which an attempt is given more time."""


def meet_all(state: State) -> None:
    """Looks at all attempts that were named, each once."""
    named = state.budgets.at_edge
    if named:
        state.prefetch_tasks(named)
    while named:
        meet(state, next(iter(named)))


def meet(state: State, task_id: str) -> None:
    """Looks at one attempt: reserves more for what it uses beyond its reservation, or pauses, stops or continues it."""
    state.remove(state.budgets.at_edge, task_id)
    lease = state.leases.by_task.get(task_id)
    held = state.budgets.held(task_id)
    if lease is None or (task := state.task(task_id)).state != TASK_STATE_RUNNING:
        return
    stuck: Hold | None = None
    too_far: Hold | None = None
    has_more = False
    for hold in held:
        over = _over(state, lease, hold)
        if over < 0:
            continue
        more = _room_for_more(hold, over)
        if more:
            if over or task.pause.budget_id == hold.tally.budget_id:
                _reserve(state, hold, over, more)
                has_more = True
        elif hold.tally.actions.get(FULL) != BUDGET_ACTION_CANCEL:
            if stuck is None or hold.tally.budget_id == task.pause.budget_id:
                stuck = hold
        elif over:
            too_far = too_far or hold
    if has_more:
        state.budgets.write_holds(task_id)
    if too_far is not None:
        stop(state, task_id, f"it has used more than was reserved, and {state.budgets.told(too_far.tally)}")
    elif stuck is not None:
        _pause(state, lease, task, stuck)
    elif task.HasField("pause"):
        _go_on(state, task)


def look_at_hold(state: State, task_id: str) -> None:
    """The time that an attempt has reserved may be over."""
    lease = state.leases.by_task.get(task_id)
    if lease is not None:
        meet(state, task_id)
        watch_time(state, lease)


def watch_time(state: State, lease: Lease) -> None:
    """Asks for a look at the attempt when the time it has reserved is over; nothing where no time is."""
    held = state.budgets.held(lease.task_id)
    granted = min((hold.granted for hold in held if hold.tally.measure == "wall_time"), default=None)
    if granted is not None:
        due_ns = max(lease.start_ns + (granted + 1) * 1_000_000, state.now_ns + _LEAST_TIME_NS)
        state.schedule(due_ns, HOLD_SUBJECT + lease.task_id)


def leave(state: State, task_id: str) -> None:
    """The attempt ends: it is paused no more, and nobody needs to decide about it."""
    for hold in state.budgets.held(task_id):
        if task_id in hold.tally.paused:
            state.remove(hold.tally.paused, task_id)
            for_budgets.settled(state, hold.tally.budget_id, task_id, "the attempt has ended")


def answer(state: State, approval: Approval) -> None:
    """Whether a paused attempt may use more was decided, or is decided no more: no question, and no pause, hangs.

    Without an answer in time it ends as with a no. A question that somebody has withdrawn is asked again.
    """
    task_id = approval.task_id
    lease = state.leases.by_task.get(task_id)
    held = [hold for hold in state.budgets.held(task_id) if hold.tally.budget_id == approval.budget_id]
    if lease is None or not held:
        return
    task, [hold] = state.task(task_id), held
    if task.state != TASK_STATE_RUNNING or task.pause.approval_id != approval.approval_id:
        return
    if approval.state == APPROVAL_STATE_REJECTED:
        who = approval.decisions[-1].decider.id
        stop(state, task_id, f"{who} lets it use no more, and {state.budgets.told(hold.tally)}")
    elif approval.state == APPROVAL_STATE_EXPIRED:
        stop(state, task_id, f"nobody has let it use more in time, and {state.budgets.told(hold.tally)}")
    elif approval.state == APPROVAL_STATE_CANCELLED:
        state.budgets.at_edge[task_id] = None
    elif approval.state == APPROVAL_STATE_APPROVED:
        _let(state, hold, max(0, _over(state, lease, hold)))
        state.budgets.write_holds(task_id)
        state.budgets.put(hold.tally, EVENT_KIND_BUDGET_UPDATED, ("status",))
        state.budgets.at_edge[task_id] = None


def more_of(hold: Hold) -> int:
    """How much more is reserved at a time: as much again; of time the usual."""
    return _usual(hold) if hold.tally.measure == "wall_time" else max(hold.granted, _usual(hold))


def stop(state: State, task_id: str, why: str) -> None:
    """Tells the agent of a task to let go; the task fails when it has."""
    current = state.task(task_id)
    if current.state != TASK_STATE_RUNNING:
        return
    task = copied(current)
    task.state = TASK_STATE_CANCELLING
    task.ClearField("pause")
    task.failure.CopyFrom(TaskFailure(reason="BUDGET_EXCEEDED", message=why, retryable=False))
    task.state_reason = why
    stamp(task.state_time, state.tick_ns())
    state.put_task(task, EVENT_KIND_TASK_CANCELLING, ("state", "failure"))


def _over(state: State, lease: Lease, hold: Hold) -> int:
    """By how much an attempt has used more than was ever reserved for it; negative while something is left."""
    if hold.tally.measure == "wall_time":
        used = milliseconds(max(0, state.now_ns - lease.start_ns))
        return used - hold.granted if used > hold.granted else -1
    return hold.spent - hold.granted if hold.spent else -1


def _usual(hold: Hold) -> int:
    return hold.tally.usual


def _room_for_more(hold: Hold, over: int) -> int:
    """How much more may be reserved: as much again, else the usual. 0 where there is no room."""
    tally, least = hold.tally, _usual(hold)
    if tally.measure == "wall_time":
        most = least = max(least, over)  # What was used is not spent yet, so it is reserved with the rest.
    else:
        most = more_of(hold)
    if not tally.blocks(most):
        return most
    return 0 if tally.blocks(least) else least


def _reserve(state: State, hold: Hold, over: int, more: int) -> None:
    """Reserves more, beyond what was used without a reservation."""
    if hold.tally.measure != "wall_time":
        state.on_rollback(hold.restore, hold.granted, hold.reserved, hold.spent)
        hold.granted += over
    hold.tally.extend_hold(hold, more)


def _let(state: State, hold: Hold, over: int) -> None:
    """Reserves what somebody has approved. The limit grows by that, and by what was used beyond it, for this window."""
    tally, more = hold.tally, more_of(hold)
    if tally.measure == "wall_time":
        more += over
        resuming.extend(state, tally, more)
    else:
        resuming.extend(state, tally, more + min(over, max(0, -tally.room)))
    _reserve(state, hold, over, more)
    state.on_rollback(setattr, hold, "let", hold.let)
    hold.let += more


def _pause(state: State, lease: Lease, current: Task, hold: Hold) -> None:
    """Tells the attempt to use no more, and asks where the budget says so; at most once for each pause."""
    tally = hold.tally
    is_new = current.pause.budget_id != tally.budget_id
    if is_new and current.HasField("pause"):
        _forget(state, current, "another budget is in its way now")
    state.assign(tally.paused, current.task_id, None)
    waits = lease.waiting == ATTEMPT_WAIT_KIND_BUDGET or _over(state, lease, hold) > 0
    asks = tally.asks and waits
    if not is_new and (not asks or for_budgets.is_asked(state, tally.budget_id, current.task_id)):
        return
    task = copied(current)
    if is_new:
        task.pause.CopyFrom(_told(state, hold))
    if asks:
        approval = for_budgets.ask_about(state, task, hold, more_of(hold))
        task.pause.approval_id = approval.approval_id
    state.put_task(task, EVENT_KIND_TASK_PAUSED, ("pause",))
    state.budgets.stir(tally)
    if not tally.asks:
        state.budgets.want_of_room(tally)


def _told(state: State, hold: Hold) -> BudgetPause:
    tally = hold.tally
    pause = BudgetPause(budget_id=tally.budget_id)
    set_amount(pause.needed, tally.measure, _usual(hold))
    used = words(tally.measure, hold.granted)
    why = (
        "which starts nothing more"
        if tally.stopped
        else f"which has less than {words(tally.measure, _usual(hold))} left"
    )
    name = state.budgets.budget(tally).spec.display_name
    pause.reason = f"it has used the {used} that were reserved of budget {name}, {why}"
    stamp(pause.since_time, state.now_ns)
    return pause


def _go_on(state: State, current: Task) -> None:
    """The attempt may use more."""
    _forget(state, current, "there is room in the budget again")
    task = copied(current)
    task.ClearField("pause")
    state.put_task(task, EVENT_KIND_TASK_CONTINUED, ("pause",))


def _forget(state: State, task: Task, why: str) -> None:
    """The budget that has paused a task is in its way no more."""
    tally = state.budgets.tallies.get(task.pause.budget_id)
    if tally is not None:
        state.remove(tally.paused, task.task_id)
        for_budgets.settled(state, tally.budget_id, task.task_id, why)
        state.budgets.stir(tally)
