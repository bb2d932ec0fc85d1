"""Brings runnable tasks and waiting agents together (T6, T7).

Runs at the end of each batch, in the same transaction, over the polls that something happened
to. Polls get one task a round, so that work spreads over agents.
"""

from __future__ import annotations

from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE
from kapell.v1.worker_pb2 import LeaseTasksRequest

from kapell_server.domain.queueing.polls import Poll
from kapell_server.domain.queueing.ready import ReadyEntry
from kapell_server.domain.state import State
from kapell_server.domain.times import SECOND
from kapell_server.domain.workers import attempt, worker
from kapell_server.domain.workers.leases import Lease

_DEFAULT_TASKS = 1
_LOOK_AHEAD = 64
_STARVING_TURN = 4
"""Every so many tasks, an agent gets the one that has waited longest, if it waits too long."""


def poll(state: State, request: LeaseTasksRequest, handle: object) -> Poll:
    """Takes up a call for tasks: a repeated one gets its offers again, a new one joins the board."""
    agent = worker.hear(state, worker.may_poll(state, request.agent_id))
    waiting = Poll(
        agent_id=agent.agent_id,
        agent_types=list(agent.agent_types),
        max_tasks=request.max_tasks or _DEFAULT_TASKS,
        poll_id=request.poll_id,
        handle=handle,
    )
    if request.poll_id:
        held = state.leases.of_agent(agent.agent_id)
        waiting.taken = [lease for lease in held if lease.poll_id == request.poll_id]
    if not waiting.taken:
        state.polls.add(waiting)
        state.on_rollback(state.polls.remove, waiting)
    return waiting


def superseded(state: State, repeated: Poll) -> list[Poll]:
    """Gives up the calls that `repeated` repeats: nobody listens to them, but they stand first in line."""
    same = [poll for poll in state.polls.of_agent(repeated.agent_id) if poll.poll_id == repeated.poll_id]
    older = [poll for poll in same if poll is not repeated and repeated.poll_id]
    for waiting in older:
        give_up(state, waiting)
    return older


def give_up(state: State, waiting: Poll) -> None:
    """The poll's time is over, or nobody listens any more."""
    if state.polls.contains(waiting):
        state.polls.remove(waiting)
        state.on_rollback(state.polls.add, waiting)


def hand_back(state: State, waiting: Poll) -> None:
    """Nobody received the offers of this poll: they return to the queue at once and cost nothing."""
    for lease in waiting.taken:
        if state.leases.by_task.get(lease.task_id) is lease and not lease.confirmed:
            attempt.end_unconfirmed(state, lease, state.task(lease.task_id))


def dispatch(state: State) -> list[Poll]:
    """Leases what can be leased to the touched polls. Returns the polls that got something."""
    polls = [poll for poll in state.polls.take_touched() if _free(state, poll) > 0]
    if not polls:
        return []
    served: dict[Poll, None] = {}
    budget = dict.fromkeys(polls, state.settings.max_offer_bytes)
    ahead = 0
    while polls:
        if ahead <= 0:
            ahead = _prefetch(state, polls)
        still_hungry = []
        for waiting in polls:
            # Another poll of the same agent may have taken its last slot in this round.
            lease = _serve_one(state, waiting, budget) if _free(state, waiting) > 0 else None
            if lease is None:
                continue
            ahead -= 1
            waiting.taken.append(lease)
            state.on_rollback(waiting.taken.pop)
            served[waiting] = None
            if _free(state, waiting) > 0:
                still_hungry.append(waiting)
        polls = still_hungry
    for waiting in served:
        give_up(state, waiting)
    return list(served)


def _free(state: State, waiting: Poll) -> int:
    """How many tasks the poll may still get."""
    agent = state.agents.get(waiting.agent_id)
    if agent is None or agent.state != AGENT_STATE_ACTIVE or not state.polls.contains(waiting):
        return 0
    return min(agent.slots_total - state.leases.used(waiting.agent_id), waiting.max_tasks - len(waiting.taken))


def _serve_one(state: State, waiting: Poll, budget: dict[Poll, int]) -> Lease | None:
    """Leases the next task to the poll, if there is one and its content still fits the answer."""
    turn = state.turns.get(waiting.agent_id, 0) + 1
    starving_ns = 0
    if turn % _STARVING_TURN == 0:
        starving_ns = state.now_ns - int(state.settings.starving_after * SECOND)
    entry = state.queues.next_for(waiting.agent_types, starving_ns=starving_ns)
    if entry is not None and _lacks(state, waiting, entry):
        entry = _next_it_may_pay(state, waiting)
    if entry is None:
        return None
    task = state.task(entry.task_id)
    if waiting.taken and task.content_bytes > budget[waiting]:
        return None
    budget[waiting] -= task.content_bytes
    state.assign(state.turns, waiting.agent_id, turn)
    return attempt.grant(state, task, waiting.agent_id, waiting.poll_id)


def _lacks(state: State, waiting: Poll, entry: ReadyEntry) -> bool:
    """Whether a budget of the agent itself has no room for a task."""
    return state.budgets.agent_lacks(waiting.agent_id, state.task(entry.task_id)) is not None


def _next_it_may_pay(state: State, waiting: Poll) -> ReadyEntry | None:
    """The first task that the agent's own budget has room for; those before it are left to other agents."""
    if state.budgets.agent_is_stopped(waiting.agent_id):
        return None
    return state.queues.next_suiting(waiting.agent_types, lambda entry: not _lacks(state, waiting, entry))


def _prefetch(state: State, polls: list[Poll]) -> int:
    """Loads the tasks that are about to be leased, in one query; how many these are."""
    wanted = min(sum(_free(state, waiting) for waiting in polls), _LOOK_AHEAD)
    types = {agent_type for waiting in polls for agent_type in waiting.agent_types}
    ready = state.queues.ready
    next_ids = [entry.task_id for agent_type in types for entry in ready.about_first(agent_type, wanted)]
    state.prefetch_tasks(next_ids)
    return len(next_ids)
