"""How each runtime is made to play a script. A new runtime adds one function and its line in CASTS.

PROGRAMS are those that run one: what they leave behind, print, and are given is tried with them alone. A model has
nothing to play but what it says; WORKERS are those that can do more.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kapell.v1.agent_pb2 import AcpRuntime, AgentSpec, CommandRuntime, LlmRuntime, PythonRuntime

from tests.support.model_endpoint import ModelEndpoint, Refusal, Reply

ROOT = str(Path(__file__).parents[2])
"""Where a host finds the tests."""
SCRIPTED = str(Path(__file__).with_name("scripted.py"))


@dataclass(frozen=True)
class Stage:
    """What a cast plays on: a directory for its files, and a model."""

    directory: Path
    model: ModelEndpoint


Cast = Callable[[Stage, dict[str, Any]], AgentSpec]


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


def llm(stage: Stage, script: dict[str, Any]) -> AgentSpec:
    """All that is said is one answer."""
    steps = script["steps"]
    said = "\n".join(step[1] for step in steps if step[0] == "say")
    if ["fail"] in steps:
        stage.model.script.append(Refusal(status=500, message="it went wrong"))
    elif ["hang"] in steps:
        stage.model.script.extend([Reply(text="up\nup\n", hangs=True)] * 2)
    else:
        stage.model.script.append(Reply(text=said))
    return AgentSpec(agent_types=["played"], slots=2, llm=LlmRuntime(base_url=f"{stage.model.url}/v1", model="small"))


def python(stage: Stage, script: dict[str, Any]) -> AgentSpec:
    module = f"played_{uuid.uuid4().hex}"  # A process imports a module once.
    code = f"import sys\n\nsys.path.append({ROOT!r})\nfrom tests.runtimes.played import worker_of\n\n"
    (stage.directory / f"{module}.py").write_text(f"{code}worker = worker_of({script['steps']!r})\n")
    runtime = PythonRuntime(app=f"{module}:worker", path=str(stage.directory))
    return AgentSpec(agent_types=["played"], slots=2, python=runtime)


CASTS: dict[str, Cast] = {
    "command": lambda stage, script: command(stage.directory, script),
    "acp": lambda stage, script: acp(stage.directory, script),
    "llm": llm,
    "python": python,
}
PROGRAMS = ("command", "acp")
WORKERS = (*PROGRAMS, "python")
