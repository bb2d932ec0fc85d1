"""Who may speak for an agent: itself, and for one that a user has registered also this user.

A spawned agent speaks for itself alone, by the token of its instance: the server has started its process, so
nobody else is it. An external one is its user's, who is known by the agent's creator, so this holds for agents
of older databases as well. Administrators may speak for external agents.
"""

from __future__ import annotations

from kapell.v1.agent_pb2 import Agent
from kapell.v1.common_pb2 import SCOPE_ADMIN
from kapell.v1.error_pb2 import ERROR_REASON_NOT_OWNER, ERROR_REASON_TOKEN_INVALID

from kapell_server.domain.access import Caller, CallerKind, LeaseId
from kapell_server.domain.errors import KapellError

EXTERNAL = "external"


def speaks(agent: Agent | None, caller: Caller) -> bool:
    """Whether the caller may speak for this agent."""
    match caller.kind:
        case CallerKind.SYSTEM:
            return True
        case CallerKind.AGENT:
            return agent is not None and agent.agent_id == caller.agent_id
        case CallerKind.USER:
            if agent is None or agent.runtime != EXTERNAL:
                return False
            return SCOPE_ADMIN in caller.scopes or agent.creator == caller.actor()
    return False


def check(agent: Agent | None, agent_id: str, caller: Caller) -> None:
    """Raises NOT_OWNER where the caller may not speak for the agent."""
    if not speaks(agent, caller):
        raise not_spoken_for(agent, agent_id, caller)


def not_spoken_for(agent: Agent | None, agent_id: str, caller: Caller) -> KapellError:
    """NOT_OWNER, with what to do."""
    if caller.kind is CallerKind.PROGRAM:
        text = f"The token of {caller.name} speaks for its own attempt alone, not for {agent_id}."
    elif caller.kind is not CallerKind.USER:
        text = f"This token speaks for agent {caller.agent_id}, not for {agent_id}. Use that agent's own token."
    elif agent is not None and agent.runtime == EXTERNAL:
        text = (
            f"Agent {agent_id} was registered by {agent.creator.id or 'somebody else'}, not by {caller.name}."
            " Use the agent_token of its registration, or register an agent of your own."
        )
    else:
        text = (
            f"Agent {agent_id} was spawned by the server and speaks for itself alone."
            " Use its own token, or register an agent of your own."
        )
    return KapellError(ERROR_REASON_NOT_OWNER, text, metadata={"agent_id": agent_id})


def attempt_of_the_past(lease_id: LeaseId) -> KapellError:
    """The refusal of a program whose attempt is no more."""
    return KapellError(
        ERROR_REASON_TOKEN_INVALID,
        f"The token is of attempt {lease_id.attempt} of {lease_id.task_id}, which has ended. Stop the work on it:"
        " what is left to do is another attempt's.",
        metadata={"task_id": lease_id.task_id, "attempt": str(lease_id.attempt)},
    )
