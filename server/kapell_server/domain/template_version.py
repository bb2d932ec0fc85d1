"""A version of a template made ready to be used: checked, parsed, and rendered into what a task needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kapell.v1.error_pb2 import (
    ERROR_REASON_REQUEST_INVALID,
    ERROR_REASON_TEMPLATE_NOT_FOUND,
    ERROR_REASON_TEMPLATE_PARAMETERS_INVALID,
)
from kapell.v1.template_pb2 import (
    PARAMETER_TYPE_ARRAY,
    PARAMETER_TYPE_OBJECT,
    Template,
    TemplateParameter,
    TemplateSpec,
    TemplateVersion,
)

from kapell_server.domain import parameters
from kapell_server.domain.errors import KapellError
from kapell_server.domain.parameters import Problem
from kapell_server.domain.prompt import Part, Place, joined
from kapell_server.domain.template_text import Node, TextError, Use, parse, places, render, render_parts, uses

_NAME_LENGTH = 200
LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a task is given."""

    prompt: str
    display_name: str
    values: dict[str, Any]
    """The parameters with defaults filled in."""
    parts: list[Part]
    """The prompt in pieces, where it has places of results; else nothing."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A version, its texts parsed. Not to be altered."""

    version: TemplateVersion
    prompt: list[Node]
    task_name: list[Node]

    @property
    def spec(self) -> TemplateSpec:
        """What the version says."""
        return self.version.spec

    def render(self, given: Mapping[str, Any], path: str) -> Rendered:
        """The prompt and name for these parameters. Raises TEMPLATE_PARAMETERS_INVALID with all violations."""
        values, problems = parameters.resolve(self.spec.parameters, given, path)
        if not problems:
            try:
                name = " ".join(render(self.task_name, values, limit=10_000).split()) if self.task_name else ""
                parts = render_parts(self.prompt, values)
                has_places = any(isinstance(part, Place) for part in parts)
                display_name = _shortened(name) or self.spec.display_name
                return Rendered(joined(parts), display_name, values, parts if has_places else [])
            except TextError as error:
                problems = [(path, f"the template cannot be rendered with these: {error}")]
        raise parameters_invalid(self.version.template_id, problems)


def compile_version(version: TemplateVersion) -> Compiled:
    """A version that was checked when it was written."""
    return Compiled(version, parse(version.spec.prompt), parse(version.spec.task_name))


def check_spec(spec: TemplateSpec, path: str = "spec") -> list[Problem]:
    """All that is wrong with a template, beyond the shape of its message."""
    problems = parameters.check_declarations(spec.parameters, f"{path}.parameters")
    if not spec.prompt.strip():
        problems.append((f"{path}.prompt", "is required"))
    for field, text in (("prompt", spec.prompt), ("task_name", spec.task_name)):
        try:
            nodes = parse(text)
        except TextError as error:
            problems.append((f"{path}.{field}", str(error)))
            continue
        wrong = _wrong_uses(nodes, {parameter.name: parameter for parameter in spec.parameters})
        problems += [(f"{path}.{field}", what) for what in dict.fromkeys(wrong)]
        if field == "task_name" and (place := next(places(nodes), None)) is not None:
            problems.append((f"{path}.{field}", f"{place} is for prompts; a name is given before there is a result"))
    return problems


def _wrong_uses(nodes: list[Node], declared: Mapping[str, TemplateParameter]) -> list[str]:
    return [what for use in uses(nodes) if (what := _wrong_use(use, declared))]


def _wrong_use(use: Use, declared: Mapping[str, TemplateParameter]) -> str:
    """What is wrong with one tag; empty where it is right."""
    name = use.name.root
    parameter = declared.get(name)
    where = f"line {use.line}: "
    if parameter is None and name == "deps":
        return f"{where}{{{use.name}}} is no tag; the result of a dependency is {{deps.NAME.result}}, as a text only"
    if parameter is None:
        known = ", ".join(declared) or "none"
        return f"{where}there is no parameter {name!r} (there are: {known}); a brace that is meant as one is doubled"
    if use.name.fields and parameter.rules.type != PARAMETER_TYPE_OBJECT:
        return f"{where}{{{use.name}}} asks for an entry, and {name!r} is no object"
    if use.kind == "each" and not use.name.fields and parameter.rules.type != PARAMETER_TYPE_ARRAY:
        return f"{where}{{each {name}}} needs an array, and {name!r} is none"
    may_be_absent = not parameter.required and not parameter.HasField("default_value")
    if use.kind == "put" and may_be_absent and not use.guarded:
        return f"{where}{name!r} may have no value here: make it required, give it a default, or ask with {{if {name}}}"
    return ""


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
    field, what = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return KapellError(
        ERROR_REASON_TEMPLATE_PARAMETERS_INVALID,
        f"Template {template_id} does not take these parameters: {field}: {what}{more}. Correct them and try again.",
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


def _shortened(text: str) -> str:
    return text if len(text) <= _NAME_LENGTH else text[: _NAME_LENGTH - 1] + "…"
