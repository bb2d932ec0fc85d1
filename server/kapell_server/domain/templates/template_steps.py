"""The steps of a template made ready: which are done for given values, what each waits for, what it is given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kapell.v1.lock_pb2 import LockItem
from kapell.v1.template_pb2 import TemplateStep

from kapell_server.domain.tasks.prompt import Part, joined
from kapell_server.domain.templates.template_locks import CompiledLock, compile_locks, rendered_locks
from kapell_server.domain.templates.template_text import If, Node, Renderer, TextError, condition, holds, parse

MAX_NAME = 10_000
"""Most characters that a name may have before it is shortened."""
_NAME_LENGTH = 200
_KEY = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._:/-]{0,62}")


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is done, rendered."""

    says: TemplateStep
    parts: list[Part]
    """The prompt in pieces."""
    display_name: str
    depends_on: tuple[str, ...]
    """Names of steps that are done, in the order of the step's own list."""
    concurrency_keys: list[str]
    locks: list[LockItem]

    @property
    def prompt(self) -> str:
        """The prompt as text, with the places of results in it."""
        return joined(self.parts)


@dataclass(frozen=True, slots=True)
class CompiledStep:
    """A step, its texts parsed. Not to be altered."""

    says: TemplateStep
    prompt: list[Node]
    task_name: list[Node]
    when: If | None
    concurrency_keys: list[list[Node]]
    locks: list[CompiledLock]

    def render(self, renderer: Renderer, depends_on: tuple[str, ...], of: str) -> Step:
        """The step for the renderer's values; `of` is the name of the task itself. Raises TextError."""
        try:
            name = renderer.line(self.task_name, MAX_NAME) or f"{self.says.name}: {of}"
            keys = rendered_keys(renderer, self.concurrency_keys)
            locks = rendered_locks(renderer, self.locks)
            return Step(self.says, renderer.parts(self.prompt), shortened(name), depends_on, keys, locks)
        except TextError as error:
            raise TextError(f"step {self.says.name}: {error}") from error


def compile_step(step: TemplateStep) -> CompiledStep:
    """A step that was checked when it was written."""
    when = condition(step.when) if step.when else None
    keys = list(map(parse, step.concurrency_keys))
    return CompiledStep(step, parse(step.prompt), parse(step.task_name), when, keys, compile_locks(step.locks))


def done(steps: Sequence[CompiledStep], values: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """What each step that is done depends on; one that is left out hands on what it depended on itself."""
    kept = {step.says.name for step in steps if step.when is None or holds(step.when, values)}
    wanted = {step.says.name: step.says.depends_on for step in steps}
    standing_for: dict[str, tuple[str, ...]] = {}

    def resolved(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(found for name in names for found in instead_of(name)))

    def instead_of(name: str) -> tuple[str, ...]:
        if name not in standing_for:
            standing_for[name] = (name,) if name in kept else resolved(wanted[name])
        return standing_for[name]

    return {step.says.name: resolved(step.says.depends_on) for step in steps if step.says.name in kept}


def rendered_keys(renderer: Renderer, keys: Sequence[list[Node]]) -> list[str]:
    """Concurrency keys for the renderer's values, each once; an empty one is none. Raises TextError."""
    found = dict.fromkeys(filter(None, (renderer.line(nodes, MAX_NAME) for nodes in keys)))
    for key in found:
        if wrong := wrong_key(key):
            raise TextError(wrong)
    return list(found)


def wrong_key(key: str) -> str:
    """What is wrong with a rendered concurrency key; empty where nothing is."""
    if _KEY.fullmatch(key):
        return ""
    return f"{shortened(key)!r} is no concurrency key; it must be 1 to 63 of a-z, A-Z, 0-9 and ._:/-"


def shortened(name: str) -> str:
    """A name that is not too long to be one."""
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
