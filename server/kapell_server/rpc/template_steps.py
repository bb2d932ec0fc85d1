"""The rendered steps of a template as dry runs show them."""

from __future__ import annotations

from kapell.v1.dependency_pb2 import DEPENDENCY_FAILURE_ACTION_FAIL
from kapell.v1.task_pb2 import RetryPolicy, TaskTimeouts
from kapell.v1.template_pb2 import RenderedStep, TemplateSpec

from kapell_server.domain.tasks.retry import with_defaults
from kapell_server.domain.tasks.task import DEFAULT_PRIORITY
from kapell_server.domain.templates.overlay import overlay
from kapell_server.domain.templates.template_steps import Step
from kapell_server.domain.templates.template_version import Rendered


def rendered_steps(spec: TemplateSpec, rendered: Rendered, agent_type: str) -> list[RenderedStep]:
    """Every step in the order of the template; of those left out only the names. `agent_type` is the task's."""
    done = {step.says.name: step for step in rendered.steps}
    return [
        _shown(spec, done[says.name], agent_type) if says.name in done else RenderedStep(name=says.name, left_out=True)
        for says in spec.steps
    ]


def _shown(spec: TemplateSpec, step: Step, agent_type: str) -> RenderedStep:
    says = step.says
    shown = RenderedStep(
        name=says.name,
        prompt=step.prompt,
        display_name=step.display_name,
        agent_type=says.agent_type or agent_type,
        depends_on=step.depends_on,
        concurrency_keys=step.concurrency_keys,
        locks=step.locks,
        on_failure=says.on_failure or DEPENDENCY_FAILURE_ACTION_FAIL,
        priority=spec.priority if spec.HasField("priority") else DEFAULT_PRIORITY,
    )
    if says.HasField("priority"):
        shown.priority = says.priority
    retry_policy, timeouts = RetryPolicy(), TaskTimeouts()
    for source in (spec, says):
        overlay(retry_policy, source.retry_policy)
        overlay(timeouts, source.timeouts)
    shown.retry_policy.CopyFrom(with_defaults(retry_policy))
    if timeouts.ByteSize():
        shown.timeouts.CopyFrom(timeouts)
    return shown
