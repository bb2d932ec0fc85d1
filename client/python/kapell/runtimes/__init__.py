"""Runtimes: the ways an agent does its work.

A runtime is one file here and one line in `_RUNTIMES`, named after the field of `AgentSpec.runtime`
that describes it. It is imported when an agent needs it, never before.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from kapell.runtimes.contract import Attempt, Runtime
from kapell.v1.agent_pb2 import AgentSpec

__all__ = ["Attempt", "Runtime", "build"]

_RUNTIMES = {
    "acp": "kapell.runtimes.acp.runtime",
    "command": "kapell.runtimes.command",
    "llm": "kapell.runtimes.llm",
    "python": "kapell.runtimes.python",
}


def build(spec: AgentSpec, *, agent_id: str, directory: Path) -> Runtime:
    """Makes the runtime that `spec` describes. It may keep files below `directory`, which is its own.

    Raises ValueError for a runtime that this version does not have.
    """
    name = spec.WhichOneof("runtime")
    if name is None or name not in _RUNTIMES:
        known = ", ".join(sorted(_RUNTIMES))
        raise ValueError(f"the agent's spec names the runtime {name!r}, which this version lacks; it has: {known}")
    made: Runtime = import_module(_RUNTIMES[name]).build(spec, agent_id=agent_id, directory=directory)
    return made
