"""What clients may do to a template: create, update, alias, clone, delete; and how Kapell's own arrive."""

from __future__ import annotations

from collections.abc import Sequence

from kapell.rules import parameters
from kapell.rules.parameters import Problem
from kapell.v1.error_pb2 import (
    ERROR_REASON_ID_TAKEN,
    ERROR_REASON_REQUEST_INVALID,
    ERROR_REASON_TEMPLATE_BUILT_IN,
    ERROR_REASON_TEMPLATE_IN_USE,
)
from kapell.v1.task_pb2 import Task
from kapell.v1.template_pb2 import (
    CloneTemplateRequest,
    CreateTemplateRequest,
    DeleteTemplateAliasRequest,
    DeleteTemplateRequest,
    DeleteTemplateResponse,
    SetTemplateAliasRequest,
    Template,
    TemplateSpec,
    TemplateVersion,
    UpdateTemplateRequest,
)
from kapell.v1.watch_pb2 import (
    EVENT_KIND_TEMPLATE_ALIASED,
    EVENT_KIND_TEMPLATE_CREATED,
    EVENT_KIND_TEMPLATE_DELETED,
    EVENT_KIND_TEMPLATE_UPDATED,
)

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.tasks.task import check_etag
from kapell_server.domain.templates.template_check import check_spec
from kapell_server.domain.templates.template_version import (
    clear_prompts,
    compile_version,
    invalid_spec,
    parameters_invalid,
    split_reference,
    version_number,
)
from kapell_server.domain.times import stamp
from kapell_server.domain.transitions import TASK_FINAL

_MAX_ALIASES = 32


def create_template(state: State, request: CreateTemplateRequest) -> Template:
    """Creates a template with its version 1."""
    return _create(state, request.template_id, request.spec)


def update_template(state: State, request: UpdateTemplateRequest) -> Template:
    """Adds a version; a spec equal to the latest changes nothing."""
    current = state.templates.get(request.template_id)
    check_etag(request.etag, current.etag)
    _refuse_built_in(current, "changed")
    return _add_version(state, current, request.spec)


def install_templates(state: State, specs: Sequence[tuple[str, TemplateSpec]], digest: str) -> None:
    """Brings the templates that come with Kapell up to date. One of a user with the same id stays as it is."""
    for template_id, spec in specs:
        current = state.templates.find(template_id)
        if current is None:
            _create(state, template_id, spec, built_in=True)
        elif current.built_in:
            _add_version(state, current, spec)
    state.pending.shipped_digest = digest


def clone_template(state: State, request: CloneTemplateRequest) -> Template:
    """Creates a template from a version of another one, with other defaults."""
    template_id, selector = split_reference(request.template)
    source = state.templates.get(template_id)
    number = version_number(source, selector)
    spec = TemplateSpec()
    spec.CopyFrom(state.templates.version(template_id, number).spec)
    problems = _override_defaults(spec, request)
    if problems:
        raise parameters_invalid(template_id, problems)
    if request.display_name:
        spec.display_name = request.display_name
    if request.description:
        spec.description = request.description
    if request.agent_type:
        spec.agent_type = request.agent_type
    return _create(state, request.template_id, spec, cloned_from=f"{template_id}@{number}")


def _override_defaults(spec: TemplateSpec, request: CloneTemplateRequest) -> list[Problem]:
    """Writes the new defaults into the spec; what is wrong with them."""
    problems: list[Problem] = []
    declared = {parameter.name: parameter for parameter in spec.parameters}
    for name, value in sorted(parameters.plain_struct(request.defaults).items()):
        path = f"defaults.{name}"
        parameter = declared.get(name)
        if parameter is None:
            problems.append((path, f"is no parameter of the template; there are: {', '.join(declared) or 'none'}"))
        elif value is None:
            parameter.ClearField("default_value")
        else:
            problems += parameters.check(parameter, value, path)
            parameter.required = False
            parameter.default_value.CopyFrom(request.defaults.fields[name])
    return problems


def set_alias(state: State, request: SetTemplateAliasRequest) -> Template:
    """Lets an alias name a version."""
    current = state.templates.get(request.template_id)
    version = version_number(current, str(request.version))
    if current.aliases.get(request.alias) == version:
        return current
    if request.alias not in current.aliases and len(current.aliases) >= _MAX_ALIASES:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"Template {current.template_id} has {_MAX_ALIASES} aliases, its limit. Delete one that is not used.",
            violations=(("alias", f"there are {_MAX_ALIASES} already"),),
        )
    template = copied(current)
    template.aliases[request.alias] = version
    return state.templates.put(template, EVENT_KIND_TEMPLATE_ALIASED, ("aliases",))


def delete_alias(state: State, request: DeleteTemplateAliasRequest) -> Template:
    """Removes an alias; one that is not there is left alone."""
    current = state.templates.get(request.template_id)
    if request.alias not in current.aliases:
        return current
    template = copied(current)
    del template.aliases[request.alias]
    return state.templates.put(template, EVENT_KIND_TEMPLATE_ALIASED, ("aliases",))


def delete_template(state: State, request: DeleteTemplateRequest) -> DeleteTemplateResponse:
    """Deletes a template with all versions; while its tasks live only if forced."""
    current = state.templates.get(request.template_id)
    _refuse_built_in(current, "deleted")
    live = 0 if request.force else _live_tasks(state, current.template_id)
    if live:
        raise KapellError(
            ERROR_REASON_TEMPLATE_IN_USE,
            f"Template {current.template_id} cannot be deleted: {live} of its tasks "
            f"{'has' if live == 1 else 'have'} not ended. Wait for them, or delete it with force; they go on then.",
            metadata={"template_id": current.template_id, "tasks": str(live)},
        )
    template = state.templates.put(copied(current), EVENT_KIND_TEMPLATE_DELETED, (), deleted=True)
    return DeleteTemplateResponse(revision=template.revision)


def _live_tasks(state: State, template_id: str) -> int:
    """Tasks of the template that have not ended; one that was created in this batch counts."""
    fresh = {
        change.resource.task_id
        for change in state.pending.changes
        if isinstance(change.resource, Task) and change.created and change.resource.template_id == template_id
    }
    alive = [task_id for task_id in fresh if (task := state.find_task(task_id)) and task.state not in TASK_FINAL]
    return state.loader.count_live_tasks_of(template_id) + len(alive)


def _create(
    state: State, template_id: str, spec: TemplateSpec, *, built_in: bool = False, cloned_from: str = ""
) -> Template:
    if state.templates.find(template_id) is not None:
        raise KapellError(
            ERROR_REASON_ID_TAKEN,
            f"Template {template_id} exists already. Choose another template_id, or update this one.",
            metadata={"template_id": template_id},
        )
    template = Template(
        template_id=template_id, creator=state.caller.actor(), built_in=built_in, cloned_from=cloned_from
    )
    stamp(template.create_time, state.tick_ns())
    return _put_version(state, template, spec, created=True)


def _add_version(state: State, current: Template, spec: TemplateSpec) -> Template:
    filled = _with_name(spec, current.template_id)
    if state.templates.version(current.template_id, current.latest_version).spec == filled:
        return current
    return _put_version(state, copied(current), filled)


def _put_version(state: State, template: Template, spec: TemplateSpec, *, created: bool = False) -> Template:
    """Writes the template with one version more. Takes ownership of `template`."""
    problems = check_spec(spec)
    if problems:
        raise invalid_spec(problems)
    filled = _with_name(spec, template.template_id)
    template.latest_version += 1
    template.version = template.latest_version
    template.spec.CopyFrom(filled)
    clear_prompts(template.spec)
    stamp(template.update_time, state.tick_ns())
    kind = EVENT_KIND_TEMPLATE_CREATED if created else EVENT_KIND_TEMPLATE_UPDATED
    changed = () if created else ("version", "spec", "latest_version")
    put = state.templates.put(template, kind, changed, created=created)
    version = TemplateVersion(
        template_id=put.template_id,
        version=put.version,
        spec=filled,
        creator=state.caller.actor(),
        create_time=put.update_time,
        revision=put.revision,
    )
    state.templates.put_version(compile_version(version))
    return put


def _with_name(spec: TemplateSpec, template_id: str) -> TemplateSpec:
    """The spec with its display_name filled in."""
    filled = TemplateSpec()
    filled.CopyFrom(spec)
    filled.display_name = spec.display_name or template_id
    return filled


def _refuse_built_in(template: Template, action: str) -> None:
    if template.built_in:
        raise KapellError(
            ERROR_REASON_TEMPLATE_BUILT_IN,
            f"Template {template.template_id} cannot be {action}: it came with Kapell. Clone it and change the clone.",
            metadata={"template_id": template.template_id},
        )
