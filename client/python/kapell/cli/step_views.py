"""How the steps of templates are shown: those of a template, and those of a dry run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kapell.cli.table import Line
from kapell.cli.views import lock_text

if TYPE_CHECKING:
    from kapell.v1.dependency_pb2 import DependencyFailureAction
    from kapell.v1.template_pb2 import RenderedStep, TemplateStep


def step_lines(steps: Sequence[TemplateStep]) -> list[Line]:
    """What a card says of the steps of a template; nothing where it has none."""
    return [
        Line("Steps", "\n".join(map(_line, steps))),
        Line("Step prompts", prompts_text((step.name, step.prompt) for step in steps)),
    ]


def rendered_step_lines(steps: Sequence[RenderedStep]) -> list[Line]:
    """What a card says of the steps of a dry run."""
    return [
        Line("Steps", "\n".join(map(_rendered_line, steps))),
        Line("Step prompts", prompts_text((step.name, step.prompt) for step in steps if not step.left_out)),
    ]


def prompts_text(prompts: Iterable[tuple[str, str]]) -> str:
    """Prompts below each other, each under its name."""
    return "\n\n".join(f"[{name}]\n{prompt.strip()}" for name, prompt in prompts if prompt)


def _line(step: TemplateStep) -> str:
    details = [
        step.agent_type and f"type {step.agent_type}",
        step.depends_on and f"after {', '.join(step.depends_on)}",
        step.when and f"when {step.when}",
        step.concurrency_keys and f"keys {', '.join(step.concurrency_keys)}",
        step.locks and f"locks {', '.join(map(lock_text, step.locks))}",
        _on_failure(step.on_failure),
    ]
    said = ", ".join(detail for detail in details if detail)
    return f"{step.name}{said and f'  ({said})'}  {step.description}".rstrip()


def _rendered_line(step: RenderedStep) -> str:
    if step.left_out:
        return f"{step.name}  (left out)"
    details = [
        f"type {step.agent_type}",
        step.depends_on and f"after {', '.join(step.depends_on)}",
        step.concurrency_keys and f"keys {', '.join(step.concurrency_keys)}",
        step.locks and f"locks {', '.join(map(lock_text, step.locks))}",
        _on_failure(step.on_failure),
    ]
    return f"{step.name}  ({', '.join(detail for detail in details if detail)})  {step.display_name}"


def _on_failure(action: DependencyFailureAction.ValueType) -> str:
    """Empty for the default."""
    from kapell.v1.dependency_pb2 import DependencyFailureAction

    word = DependencyFailureAction.Name(action).removeprefix("DEPENDENCY_FAILURE_ACTION_").lower()
    return {"skip": "if it fails the rest is skipped", "run": "if it fails the rest runs"}.get(word, "")
