"""What ends a batch: tasks whose dependencies were met become runnable, and runnable ones are given away.

In between those go that their concurrency keys do not let wait. Each of the three may meet or fail a
dependency of another task, so they take turns until nothing is left. Locks that have become free go to who waits
for them before dispatch; tasks that were offered theirs and found no agent leave the queue after it.
"""

from __future__ import annotations

from kapell_server.domain.budgets import edges
from kapell_server.domain.locks import grants
from kapell_server.domain.queueing import concurrency, dispatch
from kapell_server.domain.queueing.polls import Poll
from kapell_server.domain.state import State
from kapell_server.domain.tasks import dependency


def close(state: State) -> list[Poll]:
    """Does all that the batch has made possible. Returns the polls that got something."""
    served: list[Poll] = []
    room = dependency.MOST_AT_ONCE
    settled = 0
    edges.meet_all(state)
    while True:
        room -= dependency.resolve(state, room)
        settled = concurrency.settle_arrivals(state, settled)
        if state.edges.stirred and room > 0:
            continue
        grants.settle(state)
        state.queues.locks.let_offered_try()
        served += dispatch.dispatch(state)
        if state.queues.locks.end_turns():
            continue
        # What is left beyond the cap is for the next batch, which State asks for.
        if not state.edges.stirred or room <= 0:
            state.pools.demand_changed(state.polls.take_woken())
            return served
