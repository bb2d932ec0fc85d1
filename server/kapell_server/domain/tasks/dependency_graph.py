"""From what clients say of dependencies to tasks that name each other; refuses what cannot be.

Only the tasks of one request can close a circle: whatever else a task names has been there before
it. A retry cannot, since nobody waits any more for a task that has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kapell.v1.dependency_pb2 import (
    DEPENDENCY_CONDITION_SUCCEEDED,
    DEPENDENCY_FAILURE_ACTION_FAIL,
    TaskDependency,
)
from kapell.v1.error_pb2 import (
    ERROR_REASON_DEPENDENCY_CYCLE,
    ERROR_REASON_REQUEST_INVALID,
    ERROR_REASON_TASK_NOT_FOUND,
)
from kapell.v1.task_pb2 import Task, TaskSpec

from kapell_server.domain.cycles import find_cycle
from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.tasks import prompt
from kapell_server.domain.tasks.prompt import Part, Place

MOST_IN_A_REQUEST = 20_000
_MOST_NAMED = 12


@dataclass(slots=True)
class Draft:
    """A task that is about to be created. `parts` are the pieces of its prompt where a template has given it."""

    path: str
    """Where the request has its spec, for refusals: "tasks[3]"."""
    spec: TaskSpec
    task: Task
    content: bytes
    parts: list[Part] | None = None
    name: str = ""
    """What a refusal calls it, where not its client_key or id."""

    @property
    def label(self) -> str:
        """What a refusal calls it."""
        return self.name or self.spec.client_key or self.task.task_id


def link(state: State, drafts: Sequence[Draft]) -> None:
    """Writes into the drafts' tasks what they depend on, and cuts their prompts into text and places."""
    by_key = _by_client_key(drafts)
    by_id = {draft.task.task_id: draft for draft in drafts}
    count = sum(len(draft.spec.dependencies) for draft in drafts)
    if count > MOST_IN_A_REQUEST:
        raise _invalid("tasks", f"have {count} dependencies in all, at most {MOST_IN_A_REQUEST} are allowed")
    wanted = {entry.task_id for draft in drafts for entry in draft.spec.dependencies if entry.task_id}
    state.prefetch_tasks(wanted.difference(by_id))
    for draft in drafts:
        if draft.spec.dependencies:
            draft.task.dependencies.extend(_resolved(state, draft, by_key, by_id))
            _cut(draft)
    _refuse_cycle(drafts, by_id)


def _by_client_key(drafts: Sequence[Draft]) -> dict[str, Draft]:
    found: dict[str, Draft] = {}
    for draft in drafts:
        key = draft.spec.client_key
        if key and found.setdefault(key, draft) is not draft:
            raise _invalid(f"{draft.path}.client_key", f"is {key!r}, as that of {found[key].path}")
    return found


def _resolved(
    state: State, draft: Draft, by_key: Mapping[str, Draft], by_id: Mapping[str, Draft]
) -> list[TaskDependency]:
    """The dependencies with ids, names and defaults; each target and each name once."""
    resolved: list[TaskDependency] = []
    targets: set[str] = set()
    names: set[str] = set()
    for index, said in enumerate(draft.spec.dependencies):
        path = f"{draft.path}.dependencies[{index}]"
        task_id = _target(state, said, path, by_key, by_id)
        name = said.name or said.client_key or task_id
        if task_id in targets:
            raise _invalid(path, "names a task that another dependency names already")
        if name in names:
            raise _invalid(f"{path}.name", f"is {name!r}, as that of another dependency")
        targets.add(task_id)
        names.add(name)
        resolved.append(
            TaskDependency(
                task_id=task_id,
                name=name,
                condition=said.condition or DEPENDENCY_CONDITION_SUCCEEDED,
                on_failure=said.on_failure or DEPENDENCY_FAILURE_ACTION_FAIL,
            )
        )
    return resolved


def _target(
    state: State, said: TaskDependency, path: str, by_key: Mapping[str, Draft], by_id: Mapping[str, Draft]
) -> str:
    if said.client_key:
        draft = by_key.get(said.client_key)
        if draft is None:
            raise _invalid(f"{path}.client_key", f"is {said.client_key!r}, and no task of the request has it")
        return draft.task.task_id
    if said.task_id not in by_id and state.find_task(said.task_id) is None:
        raise KapellError(
            ERROR_REASON_TASK_NOT_FOUND,
            f"Task {said.task_id} was not found: {path} names it. Create it first, or in the same request.",
            metadata={"task_id": said.task_id},
            violations=((f"{path}.task_id", "no task has this id"),),
        )
    return said.task_id


def _cut(draft: Draft) -> None:
    """Keeps a prompt with places of results in pieces; a place must be of a dependency."""
    parts = prompt.split(draft.spec.prompt) if draft.parts is None else draft.parts
    content = Task.FromString(draft.content)
    keep_places(draft.task, content, parts, f"{draft.path}.prompt")
    if draft.task.prompt_pending:
        draft.content = content.SerializeToString()
        draft.task.content_bytes = len(draft.content)


def keep_places(task: Task, content: Task, parts: Sequence[Part], path: str) -> None:
    """Writes a prompt with places of results into the content in pieces; without places there are none.

    Alters both messages. Each place must be of a dependency of the task.
    """
    places = [part for part in parts if isinstance(part, Place)]
    names = {entry.name for entry in task.dependencies}
    for place in places:
        if place.dependency not in names:
            raise unknown_place(path, place, names)
    content.ClearField("prompt_parts")
    if places:
        content.prompt_parts.extend(prompt.as_messages(parts))
    task.prompt_pending = bool(places)


def unknown_place(path: str, place: Place, names: Iterable[str]) -> KapellError:
    """A prompt wants the result of what is no dependency."""
    known = ", ".join(sorted(names)[:_MOST_NAMED]) or "none"
    return _invalid(path, f"wants {place}, and no dependency has the name {place.dependency!r} (there are: {known})")


# -- cycles ----------------------------------------------------------------------------------------


def _refuse_cycle(drafts: Sequence[Draft], by_id: Mapping[str, Draft]) -> None:
    graph = {
        draft.task.task_id: [entry.task_id for entry in draft.task.dependencies if entry.task_id in by_id]
        for draft in drafts
    }
    cycle = find_cycle(graph)
    if cycle:
        raise _cycle([by_id[task_id].label for task_id in cycle], f"{by_id[cycle[0]].path}.dependencies")


def _cycle(labels: list[str], path: str) -> KapellError:
    shown = labels if len(labels) <= _MOST_NAMED else [*labels[: _MOST_NAMED - 1], "…"]
    circle = " → ".join([*shown, labels[0]])
    return KapellError(
        ERROR_REASON_DEPENDENCY_CYCLE,
        f"These tasks would wait for each other for ever: {circle}. Remove one of the dependencies.",
        metadata={"cycle": circle},
        violations=((path, f"closes a cycle: {circle}"),),
    )


def _invalid(path: str, what: str) -> KapellError:
    return KapellError(
        ERROR_REASON_REQUEST_INVALID,
        f"The request is invalid: {path} {what}. Correct it and send it again.",
        violations=((path, what),),
    )
