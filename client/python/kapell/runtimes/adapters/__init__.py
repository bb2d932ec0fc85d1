"""Adapters: how the output of the coding agents people use is read by the command runtime.

An adapter is one file of pure parsing and one line in `_ADAPTERS`: lines of output in, effects out
(`contract`). It is made anew for each start of its program, and imported when it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from kapell.runtimes.adapters.contract import Adapter
from kapell.v1 import agent_pb2
from kapell.v1.agent_pb2 import ProgramOutput

_ADAPTERS = {
    agent_pb2.PROGRAM_OUTPUT_AIDER: "aider",
    agent_pb2.PROGRAM_OUTPUT_CLAUDE: "claude",
    agent_pb2.PROGRAM_OUTPUT_CODEX: "codex",
    agent_pb2.PROGRAM_OUTPUT_GEMINI: "gemini",
    agent_pb2.PROGRAM_OUTPUT_MINI: "mini",
    agent_pb2.PROGRAM_OUTPUT_OPENCODE: "opencode",
}


def adapter_for(output: ProgramOutput.ValueType, argv: Sequence[str]) -> Adapter | None:
    """A new adapter for a program that is started as `argv`; None where its output is read as it stands."""
    name = _ADAPTERS.get(output)
    if name is None:
        return None
    made: Adapter = import_module(f"{__name__}.{name}").build(argv)
    return made
