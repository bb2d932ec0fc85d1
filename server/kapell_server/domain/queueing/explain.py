"""Why a task is not running: every reason, from the same state that dispatch decides by.

Asked after dispatch, so what could be given out has been. The answer is true at its revision.
"""

from __future__ import annotations

from collections.abc import Iterator

from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE, Agent
from kapell.v1.approval_pb2 import APPROVAL_KIND_TASK_START
from kapell.v1.queue_pb2 import QUEUE_STATE_PAUSED, Queue
from kapell.v1.task_pb2 import (
    ATTEMPT_WAIT_KIND_BUDGET,
    TASK_STATE_AWAITING_APPROVAL,
    TASK_STATE_CANCELLING,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    WAIT_KIND_AGENT_LETTING_GO,
    WAIT_KIND_AGENT_NOT_ASKING,
    WAIT_KIND_AGENTS_BUSY,
    WAIT_KIND_APPROVAL,
    WAIT_KIND_BUDGET,
    WAIT_KIND_DEPENDENCY,
    WAIT_KIND_NO_AGENT,
    WAIT_KIND_NOT_BEFORE,
    WAIT_KIND_PROVIDER_RATE_LIMIT,
    WAIT_KIND_QUEUE_LIMIT,
    WAIT_KIND_QUEUE_PAUSED,
    WAIT_KIND_RETRY_BACKOFF,
    WAIT_KIND_TURN,
    Blocker,
    ExplainTaskRequest,
    ExplainTaskResponse,
    Task,
    WaitingOn,
    WaitKind,
)

from kapell_server.domain.queueing.queues import ALL
from kapell_server.domain.queueing.wording import NAMED, count_of, start_rate_blocker
from kapell_server.domain.state import State
from kapell_server.domain.tasks import deadlines, dependency
from kapell_server.domain.times import stamp, timestamp_ns
from kapell_server.domain.transitions import TASK_FINAL, task_state_name

_WAITS: dict[WaitKind.ValueType, str] = {
    WAIT_KIND_NOT_BEFORE: "It is not to start before its time.",
    WAIT_KIND_RETRY_BACKOFF: "Its last attempt failed; it is tried again after a pause.",
    WAIT_KIND_PROVIDER_RATE_LIMIT: "Its provider takes no more calls for now, as its agent has told.",
}


def explain(state: State, request: ExplainTaskRequest) -> ExplainTaskResponse:
    """Every reason why the task is not running, and its place in the queue."""
    task = state.task(request.task_id)
    response = ExplainTaskResponse(task=task, revision=state.revision)
    if task.state == TASK_STATE_PENDING:
        response.blockers.extend(_pending(state, task))
    elif task.state == TASK_STATE_AWAITING_APPROVAL:
        response.blockers.extend(_approvals(state, task))
    elif task.state == TASK_STATE_QUEUED:
        _explain_queued(state, task, response)
    elif task.state == TASK_STATE_RUNNING and task.HasField("pause"):
        response.blockers.append(_paused(state, task))
    elif task.state == TASK_STATE_CANCELLING:
        response.blockers.append(_letting_go(state, task))
    response.summary = _summary(task, response)
    return response


def _pending(state: State, task: Task) -> Iterator[Blocker]:
    # Nobody knows when a dependency is met: it is named first.
    for wait in sorted(task.waiting_on, key=lambda one: (one.HasField("until_time"), -one.until_time.ToNanoseconds())):
        if wait.kind == WAIT_KIND_DEPENDENCY:
            yield _dependencies(state, task)
        elif not dependency.is_waiting(task) or timestamp_ns(wait.until_time) > state.now_ns:
            yield _waits(wait)


def _dependencies(state: State, task: Task) -> Blocker:
    """The tasks that it still waits for, as it has named them."""
    unmet = state.edges.unmet.get(task.task_id, {})
    first = next(entry for entry in task.dependencies if entry.task_id in unmet)
    name = first.name if first.name == first.task_id else f"{first.name} ({first.task_id})"
    others = f", and {count_of(len(unmet) - 1, 'more task')}" if len(unmet) > 1 else ""
    text = f"It waits for {name}, which is {task_state_name(state.task(first.task_id).state)}{others}."
    ids = [entry.task_id for entry in task.dependencies if entry.task_id in unmet]
    blocker = Blocker(kind=WAIT_KIND_DEPENDENCY, message=text, blocked_by=ids[:NAMED])
    blocker.since_time.CopyFrom(task.state_time)
    return blocker


def _approvals(state: State, task: Task) -> Iterator[Blocker]:
    """The approvals that it waits for: of its start, or the one its agent has parked it for."""
    for approval in state.approvals.of_task(task.task_id):
        if approval.kind != APPROVAL_KIND_TASK_START and not approval.parked:
            continue
        what = "its start" if approval.kind == APPROVAL_KIND_TASK_START else f"what its agent wants: {approval.title}"
        late = " Its time is over." if approval.overdue else ""
        text = f"Somebody must approve {what} (kapell approval show {approval.approval_id}).{late}"
        blocker = Blocker(kind=WAIT_KIND_APPROVAL, message=text, blocked_by=[approval.approval_id])
        blocker.since_time.CopyFrom(approval.create_time)
        if not approval.overdue:
            blocker.until_time.CopyFrom(approval.expire_time)
        yield blocker


def _waits(wait: WaitingOn) -> Blocker:
    blocker = Blocker(kind=wait.kind, message=_WAITS.get(wait.kind, "It waits."))
    if wait.provider:
        blocker.blocked_by.append(wait.provider)
    if wait.HasField("until_time"):
        blocker.until_time.CopyFrom(wait.until_time)
    return blocker


def _explain_queued(state: State, task: Task, response: ExplainTaskResponse) -> None:
    blockers = [*held_by_queue(state, task.agent_type), *state.queues.gate_blockers(task)]
    place = state.queues.ready.place_of(task.task_id)
    assert place is not None, "a QUEUED task has a place"
    agents = list(_agents(state, task.agent_type))
    nobody = bool(agents) and agents[0].kind == WAIT_KIND_NO_AGENT
    response.blockers.extend([*agents, *blockers] if nobody else [*blockers, *agents])
    if not blockers:
        ahead, exact = state.queues.ahead_of(place[0])
        response.position = ahead + 1
        response.position_at_least = not exact
        if ahead and not nobody:
            message = f"{'' if exact else 'At least '}{count_of(ahead, 'task')} of its type come first."
            response.blockers.append(Blocker(kind=WAIT_KIND_TURN, message=message))


def held_by_queue(state: State, agent_type: str) -> Iterator[Blocker]:
    """What keeps the queue of a type, or all queues, from giving out tasks."""
    for name in (agent_type, ALL):
        queue = state.standing.find(Queue, name)
        if queue is None:
            continue
        which = "All queues are" if name == ALL else f"The queue {name} is"
        if queue.state == QUEUE_STATE_PAUSED:
            why = f": {queue.state_reason}" if queue.state_reason else ""
            blocker = Blocker(kind=WAIT_KIND_QUEUE_PAUSED, message=f"{which} paused{why}.", blocked_by=[name])
            blocker.since_time.CopyFrom(queue.update_time)
            yield blocker
        if state.queues.is_full(queue):
            run = f"{count_of(queue.max_running, 'task')} at a time"
            yield Blocker(kind=WAIT_KIND_QUEUE_LIMIT, message=f"{which} limited to {run}.", blocked_by=[name])
        if queue.HasField("start_rate"):
            free_ns = state.queues.starts.next_ns(f"queue/{name}", queue.start_rate)
            if free_ns:
                yield start_rate_blocker(f"{which} at its limit of starts", name, queue.start_rate.count, free_ns)


def _agents(state: State, agent_type: str) -> Iterator[Blocker]:
    """Why no agent takes a task of this type now; nothing where one could."""
    serving = [
        agent
        for agent in state.agents.values()
        if agent.state == AGENT_STATE_ACTIVE and agent_type in agent.agent_types
    ]
    if not serving:
        yield _no_agent(state, agent_type)
        return
    free = [agent for agent in serving if state.leases.used(agent.agent_id) < agent.slots_total]
    if not free:
        text = f"The agents that serve {agent_type} are busy: {len(serving)} of {len(serving)}."
        yield Blocker(kind=WAIT_KIND_AGENTS_BUSY, message=text, blocked_by=_ids(serving))
    elif not any(state.polls.of_agent(agent.agent_id) for agent in free):
        text = f"{count_of(len(free), 'agent')} with a free slot did not ask for a task yet."
        yield Blocker(kind=WAIT_KIND_AGENT_NOT_ASKING, message=text, blocked_by=_ids(free))


def _no_agent(state: State, agent_type: str) -> Blocker:
    blocker = Blocker(kind=WAIT_KIND_NO_AGENT)
    what = f"No agent that serves {agent_type} is active"
    for profile in state.pools.serving(agent_type):
        setback = state.pools.setbacks.get(profile.profile)
        if profile.profile in state.pools.cramped:
            blocker.message = (
                f"{what}; the pool {profile.profile} starts no more, since the server may have no more agents"
            )
            blocker.message += f" than {state.settings.max_agents}. Terminate some, or raise max_agents."
            return blocker
        if setback is None or setback.until_ns <= state.now_ns:
            blocker.message = f"{what}; the pool {profile.profile} starts one."
            return blocker
        stamp(blocker.until_time, setback.until_ns)
        failed = f"the last {setback.row} of them" if setback.row > 1 else "the last one"
        blocker.message = f"{what}; the pool {profile.profile} waits before it starts one, since {failed} failed"
        blocker.message += f": {setback.reason}" if setback.reason else "."
        return blocker
    blocker.message = f"{what}. Spawn one, or start a worker."
    return blocker


def _ids(agents: list[Agent]) -> list[str]:
    return [agent.agent_id for agent in agents[:NAMED]]


def _paused(state: State, task: Task) -> Blocker:
    """Why a running attempt is told to use no more, and whether it heeds that."""
    pause = task.pause
    heeds = "It waits" if task.waiting.kind == ATTEMPT_WAIT_KIND_BUDGET else "It is told to pause"
    asked = f" Approval {pause.approval_id} decides about it." if pause.approval_id else ""
    text = f"{heeds}: {pause.reason}.{asked}"
    blocker = Blocker(kind=WAIT_KIND_BUDGET, message=text, blocked_by=[pause.budget_id])
    blocker.since_time.CopyFrom(pause.since_time)
    tally = state.budgets.tallies.get(pause.budget_id)
    if tally is not None and (next_ns := tally.next_ns()):
        stamp(blocker.until_time, next_ns)
    return blocker


def _letting_go(state: State, task: Task) -> Blocker:
    text = f"Agent {task.lease.agent_id} was told to stop and has not yet let go."
    blocker = Blocker(kind=WAIT_KIND_AGENT_LETTING_GO, message=text, blocked_by=[task.lease.agent_id])
    blocker.since_time.CopyFrom(task.state_time)
    stamp(blocker.until_time, deadlines.state_deadline_ns(task, state.settings))
    return blocker


def _summary(task: Task, response: ExplainTaskResponse) -> str:
    if task.state == TASK_STATE_RUNNING and not response.blockers:
        return f"It is running: agent {task.lease.agent_id} has it."
    if task.state in TASK_FINAL:
        why = f": {task.state_reason}" if task.state_reason else ""
        return f"It has ended: {task_state_name(task.state)}{why}."
    if not response.blockers:
        return "Nothing is in its way: the next agent that asks gets it."
    more = len(response.blockers) - 1
    return response.blockers[0].message + (f" {count_of(more, 'more reason')}." if more else "")
