"""The risk of a start: where an agent runs the prompt in a shell, the prompt is read as the command that it is.

What runs a task is known of agents that Kapell starts: their program and its words. Of others, and of types that nobody
serves yet, it is not; then only what would be grave is told, as what it is.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import re2
from google.protobuf.json_format import MessageToDict
from kapell.v1.agent_pb2 import CommandRuntime
from kapell.v1.approval_pb2 import ApprovalContent, Risk
from kapell.v1.task_pb2 import Task

from kapell_server.domain.approvals.risk import Script, assess
from kapell_server.domain.approvals.shell import SHELLS, take_apart
from kapell_server.domain.transitions import AGENT_FINAL

if TYPE_CHECKING:
    from kapell_server.domain.state import State

_SHELL_TYPES = SHELLS | {"shell"}
"""Types whose name says what their agents run; `shell` is a profile that is built in."""
_PLACE = re2.compile(r"\{\{|\}\}|\{(prompt|task_id|attempt|agent_type|input|input\.[^{}]+)\}")
_MARK = "kapell-what-is-given"
_MOST_AGENTS = 50
_MOST_SCRIPTS = 5


def scripts_of(state: State, task: Task, shown: ApprovalContent) -> list[Script]:
    """What the agents that serve the type of a task would run, as far as that is known; none where nobody serves it."""
    return list(dict.fromkeys(_scripts(state, task, shown)))[:_MOST_SCRIPTS]


def assess_start(shown: ApprovalContent, scripts: list[Script]) -> Risk:
    """The risk of what a task would do, by what is known of the agents that serve its type."""
    return assess("", shown, scripts, is_known=bool(scripts))


def _scripts(state: State, task: Task, shown: ApprovalContent) -> Iterator[Script]:
    if task.agent_type in _SHELL_TYPES:
        yield Script(shown.prompt, "", is_certain=True)
    serving = [
        agent
        for agent in state.agents.values()
        if task.agent_type in agent.agent_types and agent.state not in AGENT_FINAL
    ]
    for agent in serving[:_MOST_AGENTS]:
        runtime = agent.spec.command if agent.spec.HasField("command") else None
        command = "" if runtime is None else _command(runtime, shown)
        yield Script(command or shown.prompt, "" if runtime is None else runtime.working_directory, bool(command))


def _command(runtime: CommandRuntime, shown: ApprovalContent) -> str:
    """The command line that an agent would run, where what it is given is run by a shell; empty elsewhere."""
    marked = _values(shown, mark=True)
    argv = [_filled(word, marked) for word in runtime.argv]
    parts = take_apart(shlex.join(argv)).parts
    if any(_MARK in word for part in parts if part.depth for word in part.words):
        values = _values(shown, mark=False)
        return shlex.join(_filled(word, values) for word in runtime.argv)
    last = parts[-1] if parts else None
    reads = last is not None and last.program in SHELLS and all(word.startswith("-") for word in last.words[1:])
    return _filled(runtime.stdin, _values(shown, mark=False)) if reads and "{" in runtime.stdin else ""


def _values(shown: ApprovalContent, *, mark: bool) -> Mapping[str, str]:
    """What the placeholders of a runtime stand for; with `mark` a word that stands for nothing else."""
    given = MessageToDict(shown.input) if shown.HasField("input") else {}
    values = {"prompt": shown.prompt, "input": json.dumps(given, ensure_ascii=False)}
    for name, value in given.items():
        values[f"input.{name}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return dict.fromkeys(values, _MARK) if mark else values


def _filled(template: str, values: Mapping[str, str]) -> str:
    def one(match: Any) -> str:
        return match.group(0)[0] if match.group(1) is None else values.get(match.group(1), "")

    return str(_PLACE.sub(one, template))
