"""A version of a template made ready to be used: checked, parsed, and rendered into what a task needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kapell.rules import parameters, secrets
from kapell.rules.parameters import Problem
from kapell.v1.error_pb2 import (
    ERROR_REASON_REQUEST_INVALID,
    ERROR_REASON_TEMPLATE_NOT_FOUND,
    ERROR_REASON_TEMPLATE_PARAMETERS_INVALID,
)
from kapell.v1.lock_pb2 import LockItem
from kapell.v1.template_pb2 import PARAMETER_TYPE_SECRET, Template, TemplateSpec, TemplateVersion

from kapell_server.domain.errors import KapellError
from kapell_server.domain.tasks.prompt import Part, joined
from kapell_server.domain.templates.template_locks import CompiledLock, compile_locks, rendered_locks
from kapell_server.domain.templates.template_steps import (
    MAX_NAME,
    CompiledStep,
    Step,
    compile_step,
    done,
    rendered_keys,
    shortened,
)
from kapell_server.domain.templates.template_text import Node, Renderer, TextError, parse

LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a task is given, and its steps."""

    parts: list[Part]
    """The prompt in pieces."""
    display_name: str
    values: dict[str, Any]
    """The parameters with defaults filled in."""
    steps: list[Step]
    """The steps that are done, in the order of the template."""
    concurrency_keys: list[str]
    locks: list[LockItem]

    @property
    def prompt(self) -> str:
        """The prompt as text, with the places of results in it."""
        return joined(self.parts)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A version, its texts parsed. Not to be altered."""

    version: TemplateVersion
    prompt: list[Node]
    task_name: list[Node]
    steps: tuple[CompiledStep, ...]
    concurrency_keys: list[list[Node]]
    locks: list[CompiledLock]

    @property
    def spec(self) -> TemplateSpec:
        """What the version says."""
        return self.version.spec

    def render(self, given: Mapping[str, Any], path: str) -> Rendered:
        """The prompts and names for these parameters. Raises TEMPLATE_PARAMETERS_INVALID with all violations."""

        def work(values: dict[str, Any]) -> Rendered:
            graph = done(self.steps, values)
            renderer, rendered = self._itself(values, graph)
            for step in self.steps:
                if step.says.name in graph:
                    rendered.steps.append(step.render(renderer, graph[step.says.name], rendered.display_name))
            return rendered

        return self._checked(given, path, work)

    def render_again(self, given: Mapping[str, Any], path: str, made: Collection[str]) -> Rendered:
        """As `render`, but for a task that has its steps already: those in `made` and no others, whatever `when` says.

        The answer is without steps, since they stay as they are.
        """
        return self._checked(given, path, lambda values: self._itself(values, made)[1])

    def _checked(self, given: Mapping[str, Any], path: str, work: Callable[[dict[str, Any]], Rendered]) -> Rendered:
        values, problems = parameters.resolve(self.spec.parameters, given, path)
        if not problems:
            try:
                rendered = work({**values, **self._shown(values)})
                rendered.values.update(values)
                return rendered
            except TextError as error:
                problems = [(path, f"the template cannot be rendered with these: {error}")]
        raise parameters_invalid(self.version.template_id, problems)

    def _shown(self, values: Mapping[str, Any]) -> dict[str, str]:
        """What prompts show in the place of secrets."""
        named = {one.name for one in self.spec.parameters if one.rules.type == PARAMETER_TYPE_SECRET}
        return {name: secrets.shown(secrets.name_of(values[name])) for name in named if name in values}

    def _itself(self, values: dict[str, Any], made: Collection[str]) -> tuple[Renderer, Rendered]:
        """The task without its steps, and what renders the rest."""
        renderer = Renderer(values, {step.says.name for step in self.steps}.difference(made))
        display_name = shortened(renderer.line(self.task_name, MAX_NAME)) or self.spec.display_name
        parts = renderer.parts(self.prompt)
        keys = rendered_keys(renderer, self.concurrency_keys)
        return renderer, Rendered(parts, display_name, values, [], keys, rendered_locks(renderer, self.locks))


def compile_version(version: TemplateVersion) -> Compiled:
    """A version that was checked when it was written."""
    spec = version.spec
    steps = tuple(map(compile_step, spec.steps))
    keys = list(map(parse, spec.concurrency_keys))
    return Compiled(version, parse(spec.prompt), parse(spec.task_name), steps, keys, compile_locks(spec.locks))


def clear_prompts(spec: TemplateSpec) -> None:
    """Takes out what only GetTemplate carries."""
    spec.ClearField("prompt")
    for step in spec.steps:
        step.ClearField("prompt")


def invalid_spec(problems: list[Problem]) -> KapellError:
    """REQUEST_INVALID for what `check_spec` has found."""
    field, what = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return KapellError(
        ERROR_REASON_REQUEST_INVALID,
        f"The template cannot be used: {field}: {what}{more}. Correct it and send it again.",
        violations=tuple(problems),
    )


def parameters_invalid(template_id: str, problems: list[Problem]) -> KapellError:
    """TEMPLATE_PARAMETERS_INVALID with every violation."""
    return KapellError(
        ERROR_REASON_TEMPLATE_PARAMETERS_INVALID,
        parameters.refusal_text(template_id, problems),
        metadata={"template_id": template_id},
        violations=tuple(problems),
    )


# -- references ------------------------------------------------------------------------------------


def split_reference(reference: str) -> tuple[str, str]:
    """ "code-review@stable" as ("code-review", "stable"); without an @ the latest version is meant."""
    template_id, _, selector = reference.partition("@")
    return template_id, selector or LATEST


def version_number(template: Template, selector: str) -> int:
    """The version a number or alias names. Raises TEMPLATE_NOT_FOUND where there is none."""
    if selector == LATEST:
        return template.latest_version
    number = int(selector) if selector.isdecimal() else template.aliases.get(selector, 0)
    if not 1 <= number <= template.latest_version:
        aliases = ", ".join(sorted([LATEST, *template.aliases]))
        raise KapellError(
            ERROR_REASON_TEMPLATE_NOT_FOUND,
            f"Template {template.template_id} has no version or alias {selector!r}: "
            f"its versions are 1 to {template.latest_version}, its aliases {aliases}. Choose one of these.",
            metadata={"template_id": template.template_id, "version": selector},
        )
    return number


def template_not_found(template_id: str) -> KapellError:
    """No template has this id."""
    return KapellError(
        ERROR_REASON_TEMPLATE_NOT_FOUND,
        f"Template {template_id} was not found: it never existed or was deleted. List the templates to find its id.",
        metadata={"template_id": template_id},
    )
