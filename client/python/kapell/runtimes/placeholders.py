"""Placeholders in the templates of a profile: `{prompt}`, `{input.name}` and so on.

A template is text with `{name}` in it; `{{` and `}}` stand for a brace. See CommandRuntime in
agent.proto for the names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping

from kapell._worker.values import from_struct
from kapell.v1.task_pb2 import Task

NAMES = ("prompt", "task_id", "attempt", "agent_type", "artifacts_dir", "input")
WITH_SESSION = (*NAMES, "session")
"""What the command line that continues a session may name."""
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class TemplateError(ValueError):
    """A template that cannot be filled in; the text says which part and what to write instead."""


def check(template: str, names: Collection[str] = NAMES) -> None:
    """Raises TemplateError for a placeholder that is none of `names` or a single brace."""
    for part in _PART.finditer(template):
        if part.group() in ("{{", "}}"):
            continue
        name = part.group(1)
        if name is None:
            raise TemplateError(
                f"a single {part.group()} in {_shown(template)}; a brace that is meant as one is doubled"
            )
        if name not in names and not (name.startswith("input.") and len(name) > len("input.")):
            known = ", ".join(f"{{{known}}}" for known in (*names, "input.name"))
            raise TemplateError(
                f"{{{name}}} in {_shown(template)} is no placeholder; there are {known}, "
                "and a brace that is meant as one is doubled"
            )


def fill(template: str, values: Mapping[str, object]) -> str:
    """The template with `values` put in. Raises TemplateError as `check`, or for an entry the input lacks."""
    if "{" not in template and "}" not in template:
        return template
    check(template, values)
    return _PART.sub(lambda part: _replacement(part, values), template)


def values_of(task: Task, attempt: int, artifacts_dir: str = "") -> dict[str, object]:
    """What the placeholders of a task stand for."""
    return {
        "prompt": task.prompt,
        "task_id": task.task_id,
        "attempt": attempt,
        "agent_type": task.agent_type,
        "artifacts_dir": artifacts_dir,
        "input": from_struct(task.input),
    }


def bare(value: object) -> str:
    """A string as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _replacement(part: re.Match[str], values: Mapping[str, object]) -> str:
    if part.group() in ("{{", "}}"):
        return part.group()[0]
    name = part.group(1)
    entry = name.removeprefix("input.")
    if entry == name:
        return bare(values[name])
    entries = values["input"]
    assert isinstance(entries, dict)
    if entry not in entries:
        given = ", ".join(sorted(entries)) or "nothing"
        raise TemplateError(f"the task's input has no entry {entry!r}, which the profile asks for; it has: {given}")
    return bare(entries[entry])


def _shown(template: str) -> str:
    return repr(template if len(template) <= 60 else template[:57] + "...")
