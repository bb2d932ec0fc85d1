"""What clients may do to queues and limits."""

from __future__ import annotations

from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE
from kapell.v1.error_pb2 import ERROR_REASON_LIMIT_NOT_FOUND
from kapell.v1.queue_pb2 import (
    QUEUE_STATE_DRAINING,
    QUEUE_STATE_OPEN,
    QUEUE_STATE_PAUSED,
    ConcurrencyLimit,
    DeleteConcurrencyLimitRequest,
    DeleteConcurrencyLimitResponse,
    DrainQueueRequest,
    GetQueueStatsRequest,
    GetQueueStatsResponse,
    PauseQueueRequest,
    Queue,
    QueueState,
    QueueStats,
    ResumeQueueRequest,
    SetConcurrencyLimitRequest,
    UpdateQueueRequest,
)
from kapell.v1.watch_pb2 import EVENT_KIND_LIMIT_DELETED, EVENT_KIND_LIMIT_UPDATED, EVENT_KIND_QUEUE_UPDATED

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.queueing.queues import ALL
from kapell_server.domain.state import State
from kapell_server.domain.tasks.task import check_etag
from kapell_server.domain.times import set_duration, stamp

_MOST_QUEUES = 1000
_OUTPUT_ONLY = ("update_time", "etag", "revision", "running", "queued")


def pause(state: State, request: PauseQueueRequest) -> Queue:
    """Stops giving out tasks of a queue."""
    return _set_state(state, request.agent_type, QUEUE_STATE_PAUSED, request.reason)


def resume(state: State, request: ResumeQueueRequest) -> Queue:
    """Opens a queue again."""
    return _set_state(state, request.agent_type, QUEUE_STATE_OPEN, "")


def drain(state: State, request: DrainQueueRequest) -> Queue:
    """Refuses new tasks of a queue."""
    return _set_state(state, request.agent_type, QUEUE_STATE_DRAINING, request.reason)


def _set_state(state: State, agent_type: str, to: QueueState.ValueType, reason: str) -> Queue:
    current = find_queue(state, agent_type or ALL)
    if current.state == to and current.state_reason == reason:
        return current
    queue = copied(current)
    queue.state = to
    queue.state_reason = reason
    return _put(state, queue, ("state", "state_reason"))


def update(state: State, request: UpdateQueueRequest) -> Queue:
    """Sets or clears the limits of a queue."""
    current = find_queue(state, request.queue.agent_type)
    check_etag(request.etag, current.etag)
    queue = copied(current)
    changed = tuple(dict.fromkeys(request.update_mask.paths))
    for path in changed:
        match path:
            case "max_running":
                queue.ClearField("max_running")
                if request.queue.HasField("max_running"):
                    queue.max_running = request.queue.max_running
            case "start_rate":
                queue.ClearField("start_rate")
                if request.queue.HasField("start_rate"):
                    queue.start_rate.CopyFrom(request.queue.start_rate)
                else:
                    state.queues.starts.forget(f"queue/{queue.agent_type}")
            case _:
                raise AssertionError(f"update_mask {path} passed validation")
    return _put(state, queue, changed)


def _put(state: State, queue: Queue, changed: tuple[str, ...]) -> Queue:
    stamp(queue.update_time, state.now_ns)
    state.standing.put(queue, EVENT_KIND_QUEUE_UPDATED, changed)
    state.queues.touch(queue.agent_type)
    return queue


def find_queue(state: State, agent_type: str) -> Queue:
    """The queue as it was set, or an open one without limits. Not to be altered."""
    found = state.standing.find(Queue, agent_type)
    return found if found is not None else Queue(agent_type=agent_type, state=QUEUE_STATE_OPEN)


def set_limit(state: State, request: SetConcurrencyLimitRequest) -> ConcurrencyLimit:
    """Creates or replaces the limit of a key."""
    key = request.limit.key
    current = state.standing.find(ConcurrencyLimit, key)
    check_etag(request.etag, current.etag if current is not None else "")
    limit = ConcurrencyLimit()
    limit.CopyFrom(request.limit)
    for field in _OUTPUT_ONLY:
        limit.ClearField(field)  # type: ignore[arg-type]
    stamp(limit.update_time, state.now_ns)
    if not limit.HasField("start_rate"):
        state.queues.starts.forget(f"key/{key}")
    state.standing.put(limit, EVENT_KIND_LIMIT_UPDATED, ("max_running", "strategy", "start_rate", "description"))
    state.queues.keys.reopen(key)
    return limit


def delete_limit(state: State, request: DeleteConcurrencyLimitRequest) -> DeleteConcurrencyLimitResponse:
    """Forgets the limit of a key."""
    current = state.standing.find(ConcurrencyLimit, request.key)
    if current is None:
        raise KapellError(
            ERROR_REASON_LIMIT_NOT_FOUND,
            f"Concurrency key {request.key} has no limit of its own: it lets one task run at a time. "
            "List the limits to see which there are.",
            metadata={"key": request.key},
        )
    limit = ConcurrencyLimit()
    limit.CopyFrom(current)
    state.queues.starts.forget(f"key/{request.key}")
    state.standing.put(limit, EVENT_KIND_LIMIT_DELETED, (), deleted=True)
    state.queues.keys.reopen(request.key)
    return DeleteConcurrencyLimitResponse(revision=limit.revision)


def stats(state: State, request: GetQueueStatsRequest) -> GetQueueStatsResponse:
    """Counts what waits and what runs, by agent type."""
    served: dict[str, tuple[int, int]] = {}
    for agent in state.agents.values():
        if agent.state == AGENT_STATE_ACTIVE:
            free = agent.slots_total - state.leases.used(agent.agent_id)
            for agent_type in (*agent.agent_types, ALL):
                agents, slots = served.get(agent_type, (0, 0))
                served[agent_type] = agents + 1, slots + free
    known = {queue.agent_type for queue in state.standing.all(Queue)}
    wanted = set(request.agent_types) or known | (served.keys() - {ALL}) | state.queues.types()
    response = GetQueueStatsResponse(revision=state.revision)
    for agent_type in sorted(wanted)[:_MOST_QUEUES]:
        response.queues.append(_stats_of(state, agent_type, *served.get(agent_type, (0, 0))))
    return response


def _stats_of(state: State, agent_type: str, agents: int, free_slots: int) -> QueueStats:
    queues = state.queues
    ready = queues.ready
    types = queues.types() if agent_type == ALL else (agent_type,)
    found = QueueStats(queue=find_queue(state, agent_type), agents=agents, free_slots=free_slots)
    found.depth = sum(ready.depth(one) for one in types)
    found.blocked = sum(ready.blocked(one) for one in types)
    found.running = queues.running(agent_type)
    rates = [queues.rates(one) for one in types]
    found.add_rate = sum(added for added, _ in rates)
    found.dispatch_rate = sum(given for _, given in rates)
    oldest = min((since for one in types if (since := ready.oldest_ns(one))), default=0)
    if oldest:
        set_duration(found.oldest_age, max(0, state.now_ns - oldest))
    return found
