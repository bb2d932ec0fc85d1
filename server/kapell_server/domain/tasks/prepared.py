"""From what a client asks for to what tasks are given: ids, templates filled in, their steps spelled out.

Nothing is created here. A prompt that a template has given stays in pieces, so that no value of a
parameter is ever read as a tag or as the place of a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kapell.rules.parameters import as_struct, plain_struct
from kapell.v1.dependency_pb2 import TaskDependency
from kapell.v1.error_pb2 import ERROR_REASON_ID_TAKEN, ERROR_REASON_REQUEST_INVALID
from kapell.v1.lock_pb2 import TaskLock
from kapell.v1.task_pb2 import TaskSpec
from kapell.v1.template_pb2 import TemplateSpec, TemplateStep
from kapell.v1.watch_pb2 import Actor

from kapell_server.domain.budgets.named import check_named
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks.declared import declared
from kapell_server.domain.queueing.queues import check_takes_in
from kapell_server.domain.secrets import use
from kapell_server.domain.state import State
from kapell_server.domain.tasks.dependency_graph import unknown_place
from kapell_server.domain.tasks.prompt import Part, Place
from kapell_server.domain.tasks.task_edit import check_size
from kapell_server.domain.templates.overlay import overlay
from kapell_server.domain.templates.template_steps import Step
from kapell_server.domain.templates.template_version import Compiled, Rendered, split_reference, version_number

MOST_TASKS = 2_500
"""Most tasks that one request may create, steps counted."""
MOST_STEP_BYTES = 64 * 1024 * 1024
"""Most bytes of prompts and parameters that all steps of one request may be given."""

_MOST_KEYS = 8


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task as it is to be created."""

    path: str
    """Where the request has its spec, for refusals: "tasks[3]"."""
    spec: TaskSpec
    """What the client says and, where that is silent, the template."""
    task_id: str
    template_version: int = 0
    parts: list[Part] | None = None
    """The pieces of the prompt where a template has given it."""
    steps: tuple[Prepared, ...] = ()
    """Tasks that are created with it, as its children."""
    schedule: tuple[str, int] | None = None
    """The schedule that makes it, and the time of the run."""
    name: str = ""
    """What a refusal calls it, where not its client_key or id."""
    policy_author: Actor | None = None
    """Who wrote the template that demands an approval of its start; None where no template does."""
    locks: tuple[TaskLock, ...] = ()
    """The locks it declares, those of the template among them."""

    @property
    def is_related(self) -> bool:
        """Whether there are other tasks to be looked at when it is created."""
        return bool(self.spec.dependencies or self.spec.parent_task_id or self.steps)


def prepare_all(state: State, specs: Sequence[TaskSpec], path: str) -> list[Prepared]:
    """All tasks of a request. Refuses a taken id, too large an input, what a template cannot take, closed queues."""
    wanted: dict[str, Prepared] = {}
    count = size = 0
    for index, spec in enumerate(specs):
        if spec.task_id in wanted:
            raise _id_taken(spec.task_id)
        prepared = _prepare(state, spec, path.format(index))
        for task in (prepared, *prepared.steps):
            check_takes_in(state, task.spec.agent_type)
        if spec.budget_id:
            check_named(state, spec.budget_id, prepared.path)
        wanted[prepared.task_id] = prepared
        count += 1 + len(prepared.steps)
        size += sum(step.spec.ByteSize() for step in prepared.steps)
        if count > MOST_TASKS or size > MOST_STEP_BYTES:
            raise _too_much(prepared.path, count, size)
    return list(wanted.values())


def _too_much(path: str, count: int, size: int) -> KapellError:
    if count > MOST_TASKS:
        what = f"brings the tasks of the request, steps counted, to {count}, at most {MOST_TASKS} are allowed"
    else:
        what = f"brings what all steps of the request are given to {size} bytes, at most {MOST_STEP_BYTES} are allowed"
    return KapellError(
        ERROR_REASON_REQUEST_INVALID,
        f"The request is invalid: {path} {what}. Send several requests.",
        violations=((path, what),),
    )


def _prepare(state: State, spec: TaskSpec, path: str) -> Prepared:
    if spec.task_id:
        if state.find_task(spec.task_id) is not None:
            raise _id_taken(spec.task_id)
        task_id = spec.task_id
    else:
        task_id = state.new_id("task")
    if spec.template:
        return _from_template(state, spec, task_id, path)
    if not spec.agent_type or spec.HasField("parameters"):
        raise _without_template(spec, path)
    check_size(state, spec.input, f"{path}.input")
    if spec.secrets:
        use.check(state, spec.secrets, f"{path}.secrets")
    locks = declared(spec.locks, f"{path}.locks") if spec.locks else ()
    return Prepared(path, spec, task_id, locks=tuple(locks))


def _from_template(state: State, spec: TaskSpec, task_id: str, path: str) -> Prepared:
    """The task with all that the template says of it, and its steps."""
    wrong = [(f"{path}.{name}", "must be empty with a template") for name in ("prompt", "input") if _has(spec, name)]
    if wrong:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"The request is invalid: {wrong[0][0]} {wrong[0][1]}. Pass what the template asks for as parameters.",
            violations=tuple(wrong),
        )
    check_size(state, spec.parameters, f"{path}.parameters")
    template_id, selector = split_reference(spec.template)
    number = version_number(state.templates.get(template_id), selector)
    compiled = state.templates.version(template_id, number)
    rendered = compiled.render(plain_struct(spec.parameters), f"{path}.parameters")
    says = compiled.spec
    filled = TaskSpec(agent_type=says.agent_type, display_name=rendered.display_name, labels=says.labels)
    if says.HasField("priority"):
        filled.priority = says.priority
    filled.MergeFrom(spec)
    filled.concurrency_keys[:] = _keys(rendered.concurrency_keys, spec, path)
    _fill_policies(filled, says, spec)
    author = _take_policy(filled, compiled, path)
    filled.secrets.update(use.named_in(says.parameters, rendered.values))
    if filled.secrets:
        use.check(state, filled.secrets, f"{path}.secrets")
    filled.prompt = rendered.prompt
    filled.input.CopyFrom(as_struct(rendered.values))
    check_size(state, filled.input, f"{path}.input")
    _refuse_names_of_steps(spec, {step.name for step in says.steps}, path)
    steps = _steps(state, filled, rendered, path, author)
    if not filled.dependencies:
        for part in rendered.parts:
            if isinstance(part, Place):
                raise unknown_place(f"{path}.prompt", part, ())
    locks = tuple(declared(spec.locks, f"{path}.locks", rendered.locks))
    return Prepared(path, filled, task_id, number, rendered.parts, steps, policy_author=author, locks=locks)


def _take_policy(filled: TaskSpec, compiled: Compiled, path: str) -> Actor | None:
    """Fills in whether the template demands an approval; who wrote it then. A task cannot overrule that."""
    if not compiled.spec.HasField("approval"):
        return None
    if filled.HasField("approval"):
        here, what = f"{path}.approval", "must be empty: its template says who approves it"
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"The request is invalid: {here} {what}. Leave it out.",
            violations=((here, what),),
        )
    filled.approval.CopyFrom(compiled.spec.approval)
    return compiled.version.creator


def _keys(of_template: list[str], spec: TaskSpec, path: str) -> list[str]:
    """The concurrency keys of template and task, each once."""
    keys = list(dict.fromkeys([*of_template, *spec.concurrency_keys]))
    if len(keys) > _MOST_KEYS:
        here = f"{path}.concurrency_keys"
        what = f"are {len(keys)} with the {len(of_template)} of the template, at most {_MOST_KEYS} are allowed"
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"The request is invalid: {here} {what}. Leave some out.",
            violations=((here, what),),
        )
    return keys


# -- steps -----------------------------------------------------------------------------------------


def _steps(state: State, task: TaskSpec, rendered: Rendered, path: str, author: Actor | None) -> tuple[Prepared, ...]:
    """The steps as tasks; the task itself is made to depend on all of them."""
    ids = {step.says.name: state.new_id("task") for step in rendered.steps}
    says = {step.says.name: step.says for step in rendered.steps}

    def on(name: str) -> TaskDependency:
        return TaskDependency(task_id=ids[name], name=name, on_failure=says[name].on_failure)

    steps: list[Prepared] = []
    called = task.client_key or path
    for step in rendered.steps:
        spec = _step_spec(task, step)
        if step.depends_on:
            spec.dependencies.extend(map(on, step.depends_on))
        else:
            spec.dependencies.extend(task.dependencies)
            if task.HasField("not_before_time"):
                spec.not_before_time.CopyFrom(task.not_before_time)
        name = step.says.name
        locks = tuple(declared((), path, step.locks))
        step_name = f"{called}/{name}"
        steps.append(
            Prepared(path, spec, ids[name], parts=step.parts, name=step_name, policy_author=author, locks=locks)
        )
    task.dependencies.extend(map(on, ids))
    return tuple(steps)


def _step_spec(task: TaskSpec, step: Step) -> TaskSpec:
    """What a step is given: what the task is, unless the step says otherwise."""
    says = step.says
    spec = TaskSpec(agent_type=says.agent_type or task.agent_type, display_name=step.display_name, labels=task.labels)
    spec.concurrency_keys.extend(step.concurrency_keys)
    spec.secrets.update(task.secrets)
    spec.prompt = step.prompt
    spec.input.CopyFrom(task.input)
    spec.labels.MergeFrom(says.labels)
    if says.HasField("priority") or task.HasField("priority"):
        spec.priority = says.priority if says.HasField("priority") else task.priority
    if task.HasField("approval"):
        spec.approval.CopyFrom(task.approval)
    _fill_policies(spec, task, says)
    return spec


def _fill_policies(target: TaskSpec, *sources: TaskSpec | TemplateSpec | TemplateStep) -> None:
    """Retries and times of the last source that says anything of them."""
    target.ClearField("retry_policy")
    target.ClearField("timeouts")
    for source in sources:
        if source.HasField("retry_policy"):
            overlay(target.retry_policy, source.retry_policy)
        if source.HasField("timeouts"):
            overlay(target.timeouts, source.timeouts)


def _refuse_names_of_steps(spec: TaskSpec, names: set[str], path: str) -> None:
    for index, said in enumerate(spec.dependencies):
        name = said.name or said.client_key or said.task_id
        if name in names:
            here, what = f"{path}.dependencies[{index}].name", f"is {name!r}, as that of a step of the template"
            raise KapellError(
                ERROR_REASON_REQUEST_INVALID,
                f"The request is invalid: {here} {what}. Call the dependency something else.",
                violations=((here, what),),
            )


# -- refusals --------------------------------------------------------------------------------------


def _has(spec: TaskSpec, name: str) -> bool:
    return spec.HasField("input") if name == "input" else bool(spec.prompt)


def _without_template(spec: TaskSpec, path: str) -> KapellError:
    """What only a template may leave out, or have."""
    field, what = ("parameters", "is for templates; without one use input")
    if not spec.agent_type:
        field, what = "agent_type", "is required where no template says it"
    return KapellError(
        ERROR_REASON_REQUEST_INVALID,
        f"The request is invalid: {path}.{field} {what}. Correct it and send it again.",
        violations=((f"{path}.{field}", what),),
    )


def _id_taken(task_id: str) -> KapellError:
    return KapellError(
        ERROR_REASON_ID_TAKEN,
        f"Task {task_id} exists already. Choose another task_id, or leave it empty to get one.",
        metadata={"task_id": task_id},
    )
