"""The published tables of states: what may follow what, and what may be asked for when (T1, T3)."""

from __future__ import annotations

from collections.abc import Iterable

from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_DRAINING,
    AGENT_STATE_FAILED,
    AGENT_STATE_LOST,
    AGENT_STATE_PENDING,
    AGENT_STATE_STARTING,
    AGENT_STATE_TERMINATED,
    AGENT_STATE_TERMINATING,
    Agent,
    AgentState,
)
from kapell.v1.error_pb2 import ERROR_REASON_AGENT_STATE_CONFLICT, ERROR_REASON_TASK_STATE_CONFLICT
from kapell.v1.task_pb2 import (
    TASK_STATE_AWAITING_APPROVAL,
    TASK_STATE_CANCELLED,
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    Task,
    TaskState,
)

from kapell_server.domain.errors import KapellError

TASK_FINAL = frozenset({TASK_STATE_SUCCEEDED, TASK_STATE_FAILED, TASK_STATE_CANCELLED})
TASK_LEASED = frozenset({TASK_STATE_RUNNING, TASK_STATE_CANCELLING})
TASK_RESTING = frozenset({TASK_STATE_PENDING, TASK_STATE_AWAITING_APPROVAL})
"""Where a task waits without an agent, and in no queue; some have begun already."""

TASK_TRANSITIONS: dict[TaskState.ValueType, frozenset[TaskState.ValueType]] = {
    TASK_STATE_PENDING: frozenset(
        {TASK_STATE_AWAITING_APPROVAL, TASK_STATE_QUEUED, TASK_STATE_FAILED, TASK_STATE_CANCELLED}
    ),
    TASK_STATE_AWAITING_APPROVAL: frozenset(
        {TASK_STATE_PENDING, TASK_STATE_QUEUED, TASK_STATE_FAILED, TASK_STATE_CANCELLED}
    ),
    TASK_STATE_QUEUED: frozenset(
        {
            TASK_STATE_PENDING,
            TASK_STATE_AWAITING_APPROVAL,
            TASK_STATE_RUNNING,
            TASK_STATE_FAILED,
            TASK_STATE_CANCELLED,
        }
    ),
    TASK_STATE_RUNNING: frozenset(
        {
            TASK_STATE_PENDING,
            TASK_STATE_AWAITING_APPROVAL,
            TASK_STATE_QUEUED,
            TASK_STATE_CANCELLING,
            TASK_STATE_SUCCEEDED,
            TASK_STATE_FAILED,
            TASK_STATE_CANCELLED,
        }
    ),
    TASK_STATE_CANCELLING: frozenset(
        {
            TASK_STATE_PENDING,
            TASK_STATE_QUEUED,
            TASK_STATE_SUCCEEDED,
            TASK_STATE_FAILED,
            TASK_STATE_CANCELLED,
        }
    ),
    TASK_STATE_SUCCEEDED: frozenset(),
    TASK_STATE_FAILED: frozenset({TASK_STATE_QUEUED, TASK_STATE_AWAITING_APPROVAL, TASK_STATE_PENDING}),
    TASK_STATE_CANCELLED: frozenset({TASK_STATE_QUEUED, TASK_STATE_AWAITING_APPROVAL, TASK_STATE_PENDING}),
}
"""To QUEUED, or to AWAITING_APPROVAL in its place where the start must be approved; from RUNNING, where the agent has
parked. From the last two only RetryTask leads on, to PENDING where dependencies are not met. CANCELLING leads to
CANCELLED where a cancel was asked for, and to the others where a timeout stopped the attempt: a result that
comes all the same counts."""

AGENT_FINAL = frozenset({AGENT_STATE_TERMINATED, AGENT_STATE_FAILED})
AGENT_WORKING = frozenset({AGENT_STATE_ACTIVE, AGENT_STATE_DRAINING, AGENT_STATE_LOST})

AGENT_TRANSITIONS: dict[AgentState.ValueType, frozenset[AgentState.ValueType]] = {
    AGENT_STATE_PENDING: frozenset(
        {AGENT_STATE_STARTING, AGENT_STATE_ACTIVE, AGENT_STATE_TERMINATING, AGENT_STATE_FAILED}
    ),
    AGENT_STATE_STARTING: frozenset(
        {AGENT_STATE_PENDING, AGENT_STATE_ACTIVE, AGENT_STATE_TERMINATING, AGENT_STATE_FAILED}
    ),
    AGENT_STATE_ACTIVE: frozenset(
        {
            AGENT_STATE_PENDING,
            AGENT_STATE_DRAINING,
            AGENT_STATE_TERMINATING,
            AGENT_STATE_TERMINATED,
            AGENT_STATE_FAILED,
            AGENT_STATE_LOST,
        }
    ),
    AGENT_STATE_DRAINING: frozenset(
        {AGENT_STATE_ACTIVE, AGENT_STATE_TERMINATING, AGENT_STATE_TERMINATED, AGENT_STATE_FAILED}
    ),
    AGENT_STATE_LOST: frozenset(
        {
            AGENT_STATE_PENDING,
            AGENT_STATE_ACTIVE,
            AGENT_STATE_TERMINATING,
            AGENT_STATE_TERMINATED,
            AGENT_STATE_FAILED,
        }
    ),
    AGENT_STATE_TERMINATING: frozenset({AGENT_STATE_PENDING, AGENT_STATE_TERMINATED, AGENT_STATE_FAILED}),
    AGENT_STATE_TERMINATED: frozenset(),
    AGENT_STATE_FAILED: frozenset(),
}
"""Back to PENDING where its process has ended and is started again; see `workers/restart`."""


def task_state_name(state: int) -> str:
    """A state as people read it, for example "QUEUED"."""
    return TaskState.Name(state).removeprefix("TASK_STATE_")  # type: ignore[arg-type]


def agent_state_name(state: int) -> str:
    """A state as people read it, for example "ACTIVE"."""
    return AgentState.Name(state).removeprefix("AGENT_STATE_")  # type: ignore[arg-type]


def task_state_conflict(task: Task, action: str, allowed: Iterable[TaskState.ValueType]) -> KapellError:
    """The task's state does not allow `action` ("cancelled", "retried")."""
    names = ", ".join(sorted(task_state_name(state) for state in allowed))
    state = task_state_name(task.state)
    return KapellError(
        ERROR_REASON_TASK_STATE_CONFLICT,
        f"Task {task.task_id} cannot be {action}: it is {state}. It would have to be {names}.",
        metadata={"task_id": task.task_id, "state": state, "allowed": names},
    )


def agent_state_conflict(agent: Agent, action: str, allowed: Iterable[AgentState.ValueType]) -> KapellError:
    """The agent's state does not allow `action` ("drained", "given tasks")."""
    names = ", ".join(sorted(agent_state_name(state) for state in allowed))
    state = agent_state_name(agent.state)
    return KapellError(
        ERROR_REASON_AGENT_STATE_CONFLICT,
        f"Agent {agent.agent_id} cannot be {action}: it is {state}. It would have to be {names}.",
        metadata={"agent_id": agent.agent_id, "state": state, "allowed": names},
    )
