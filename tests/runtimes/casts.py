"""How each runtime is made to play a script. A new runtime adds one function and its line in CASTS."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kapell.v1.agent_pb2 import AcpRuntime, AgentSpec, CommandRuntime

SCRIPTED = str(Path(__file__).with_name("scripted.py"))

Cast = Callable[[Path, dict[str, Any]], AgentSpec]


def written(directory: Path, script: dict[str, Any]) -> str:
    """The script as a file."""
    file = directory / f"script-{len(list(directory.glob('script-*')))}.json"
    file.write_text(json.dumps(script))
    return str(file)


def command(directory: Path, script: dict[str, Any]) -> AgentSpec:
    runtime = CommandRuntime(argv=[sys.executable, SCRIPTED, "plain", written(directory, script)])
    runtime.kill_grace.FromMilliseconds(100)
    return AgentSpec(agent_types=["played"], slots=2, command=runtime)


def acp(directory: Path, script: dict[str, Any], **fields: Any) -> AgentSpec:
    runtime = AcpRuntime(argv=[sys.executable, SCRIPTED, "acp", written(directory, script)], **fields)
    if not runtime.HasField("kill_grace"):
        runtime.kill_grace.FromMilliseconds(100)
    return AgentSpec(agent_types=["played"], slots=2, acp=runtime)


CASTS: dict[str, Cast] = {"command": command, "acp": acp}
