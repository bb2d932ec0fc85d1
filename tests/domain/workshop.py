"""A world with one template that has steps, and verbs for what is made of it."""

from __future__ import annotations

from typing import Any

from kapell.v1.task_pb2 import CreateTaskRequest, Task, TaskSpec
from kapell.v1.template_pb2 import (
    PARAMETER_TYPE_BOOL,
    PARAMETER_TYPE_STRING,
    CreateTemplateRequest,
    Template,
    TemplateSpec,
    TemplateStep,
)

from tests.domain.world import World


def step(name: str, *depends_on: str, prompt: str = "", **fields: Any) -> TemplateStep:
    return TemplateStep(name=name, depends_on=depends_on, prompt=prompt or f"Do {name}", **fields)


def spec(*steps: TemplateStep, prompt: str = "Sum up {what}", **fields: Any) -> TemplateSpec:
    said: dict[str, Any] = {
        "agent_type": "code",
        "parameters": [
            {"name": "what", "rules": {"type": PARAMETER_TYPE_STRING}, "default_value": {"string_value": "it"}},
            {"name": "deep", "rules": {"type": PARAMETER_TYPE_BOOL}, "default_value": {"bool_value": False}},
            {"name": "focus", "rules": {"type": PARAMETER_TYPE_STRING}},
        ],
    }
    return TemplateSpec(prompt=prompt, steps=steps, **{**said, **fields})


class Workshop(World):
    """A world with the template "t", and verbs for what is made of it."""

    def add(self, *steps: TemplateStep, **fields: Any) -> Template:
        template: Template = self.do(CreateTemplateRequest(template_id="t", spec=spec(*steps, **fields)))
        return template

    def make(self, parameters: dict[str, Any] | None = None, **fields: Any) -> Task:
        task: Task = self.do(CreateTaskRequest(task=TaskSpec(template="t", parameters=parameters, **fields)))
        return task

    def steps(self, task: Task) -> dict[str, Task]:
        """The steps of a task by name, as committed."""
        named = {entry.task_id: entry.name for entry in self.task(task.task_id).dependencies}
        children = [found for found in self.rows.tasks.values() if found.parent_task_id == task.task_id]
        return {named[found.task_id]: found for found in children}

    def graph(self, task: Task) -> dict[str, list[str]]:
        """What each step depends on."""
        return {name: [entry.name for entry in found.dependencies] for name, found in self.steps(task).items()}

    def prompt(self, task: Task) -> str:
        return self.content(task.task_id).prompt

    def finish(self, task: Task, result: str) -> None:
        agent_id = self.register(task.agent_type)
        assert self.lease(agent_id) == task.task_id
        self.complete(task.task_id, result)
