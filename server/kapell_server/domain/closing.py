"""What ends a batch: tasks whose dependencies were met become runnable, and runnable ones are given away.

Giving a task away may meet the dependency of another one, so both take turns until nothing is left.
"""

from __future__ import annotations

from kapell_server.domain import dependency, dispatch
from kapell_server.domain.polls import Poll
from kapell_server.domain.state import State


def close(state: State) -> list[Poll]:
    """Does all that the batch has made possible. Returns the polls that got something."""
    served: list[Poll] = []
    room = dependency.MOST_AT_ONCE
    while True:
        room -= dependency.resolve(state, room)
        served += dispatch.dispatch(state)
        # What is left beyond the cap is for the next batch, which State asks for.
        if not state.edges.stirred or room <= 0:
            return served
