"""When an agent whose process has ended is started again, and when that is given up.

An agent that is to be started again is PENDING, and says since when it may be: `next_start_time`. When that has
come the field is cleared, which is what the spawner waits for. Restarts in a row double the pause; a process that
was ACTIVE for long enough begins the row anew.
"""

from __future__ import annotations

from kapell.v1.agent_pb2 import (
    AGENT_STATE_DRAINING,
    AGENT_STATE_PENDING,
    RESTART_MODE_ALWAYS,
    RESTART_MODE_ON_FAILURE,
    Agent,
    RestartPolicy,
)
from kapell.v1.common_pb2 import ProcessExit

from kapell_server.domain.times import SECOND, duration_ns, stamp, timestamp_ns

_FIRST_PAUSE = SECOND
_LONGEST_PAUSE = 60 * SECOND
_STABLE_AFTER = 600 * SECOND
_MAX_RESTARTS = 5


def is_wanted(agent: Agent, *, failed: bool) -> bool:
    """Whether the policy asks for another start after this end."""
    if agent.end_requested or agent.state == AGENT_STATE_DRAINING:
        return False
    mode = agent.spec.restart.mode
    return mode == RESTART_MODE_ALWAYS or (failed and mode == RESTART_MODE_ON_FAILURE)


def is_given_up(agent: Agent, active_ns: int) -> bool:
    """Whether there have been as many restarts in a row as there may be. It was ACTIVE for `active_ns`, or 0."""
    policy = agent.spec.restart
    return _row(agent, active_ns) >= (policy.max_restarts or _MAX_RESTARTS)


def put_off(agent: Agent, now_ns: int, active_ns: int, reason: str, exit_: ProcessExit) -> int:
    """Makes the agent wait for its next start, and says when that is, in nanoseconds since 1970."""
    policy = agent.spec.restart
    row = _row(agent, active_ns) + 1
    next_ns = now_ns + pause_ns(policy, row)
    agent.state = AGENT_STATE_PENDING
    agent.state_reason = f"is started again ({row} of {policy.max_restarts or _MAX_RESTARTS} in a row): {reason}"[:1000]
    agent.restart_count += 1
    agent.restarts_in_a_row = row
    agent.exit.CopyFrom(exit_)
    agent.pid = 0
    stamp(agent.next_start_time, next_ns)
    return next_ns


def pause_ns(policy: RestartPolicy, row: int) -> int:
    """The pause before restart number `row` in a row, from 1."""
    first = duration_ns(policy.first_pause) or _FIRST_PAUSE
    longest = duration_ns(policy.longest_pause) or _LONGEST_PAUSE
    return max(first, min(first << min(row - 1, 30), longest))


def due_ns(agent: Agent) -> int:
    """When an agent that waits for its next start is to be looked at; 0 for any other."""
    return timestamp_ns(agent.next_start_time) if agent.state == AGENT_STATE_PENDING else 0


def _row(agent: Agent, active_ns: int) -> int:
    """Restarts in a row so far."""
    stable = duration_ns(agent.spec.restart.stable_after) or _STABLE_AFTER
    return 0 if active_ns >= stable else agent.restarts_in_a_row
