"""Puts the results of dependencies into prompts, and takes them out again for a retry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kapell.rules.parameters import plain
from kapell.v1.error_pb2 import ERROR_REASON_REQUEST_INVALID
from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED, Task, TaskFailure

from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.tasks import prompt
from kapell_server.domain.tasks.prompt import Place
from kapell_server.domain.transitions import task_state_name


@dataclass(frozen=True, slots=True)
class _Result:
    """What a dependency has answered; `missing` says why there is nothing."""

    value: Any
    missing: str


class Results:
    """The results that a number of tasks need for their prompts; contents are loaded in one query each."""

    def __init__(self, state: State, tasks: Iterable[Task]) -> None:
        self._state = state
        self._known: dict[str, _Result] = {}
        self._contents: dict[str, Task] = {}
        tasks = list(tasks)
        if not tasks:
            return
        state.prefetch_contents([task.task_id for task in tasks])
        wanted: dict[str, None] = {}
        for task in tasks:
            content = Task.FromString(state.content(task.task_id))
            self._contents[task.task_id] = content
            names = {part.dependency for part in content.prompt_parts}
            wanted.update({entry.task_id: None for entry in task.dependencies if entry.name in names})
        state.prefetch_tasks(wanted)
        state.prefetch_contents(wanted)

    def put_into(self, task: Task) -> TaskFailure | None:
        """Fills the prompt of `task`, a copy that is ours; the failure where it gets too long."""
        content = self._contents[task.task_id]
        ids = {entry.name: entry.task_id for entry in task.dependencies}
        text = prompt.filled(
            prompt.from_messages(content.prompt_parts),
            lambda place: self._written(place, ids[place.dependency]),
        )
        if text is None:
            return TaskFailure(
                reason="PROMPT_TOO_LARGE",
                message=f"with the results of its dependencies the prompt is longer than {prompt.MAX_PROMPT_BYTES} "
                "bytes; let them answer with paths or summaries, or use entries of their results",
                retryable=False,
            )
        content.prompt = text
        encoded = content.SerializeToString()
        self._state.put_content(task.task_id, encoded)
        task.content_bytes = len(encoded)
        task.prompt_pending = False
        return None

    def _written(self, place: Place, task_id: str) -> str:
        result = self._known.get(task_id)
        if result is None:
            result = self._known[task_id] = self._read(task_id)
        if result.missing:
            return f"(no result: {place.dependency} {result.missing})"
        found, value = prompt.entry_of(result.value, place.path)
        if not found:
            return f"(the result of {place.dependency} has no entry {'.'.join(place.path)})"
        return prompt.written(value)

    def _read(self, task_id: str) -> _Result:
        task = self._state.find_task(task_id)
        if task is None:
            return _Result(None, "was deleted")
        if task.state != TASK_STATE_SUCCEEDED:
            return _Result(None, "was skipped" if task.skipped else f"is {task_state_name(task.state)}")
        return _Result(plain(Task.FromString(self._state.content(task_id)).result), "")


def renew_prompt(state: State, task: Task) -> None:
    """Makes the prompt of a task that is retried as it was before results were put into it.

    It stays as it is where a dependency that it names was deleted: its result is nowhere else.
    """
    content = Task.FromString(state.content(task.task_id))
    names = {part.dependency for part in content.prompt_parts if part.dependency}
    if not names or task.prompt_pending:
        return
    ids = [entry.task_id for entry in task.dependencies if entry.name in names]
    state.prefetch_tasks(ids)
    if any(state.find_task(task_id) is None for task_id in ids):
        return
    content.prompt = prompt.joined(prompt.from_messages(content.prompt_parts))
    encoded = content.SerializeToString()
    state.put_content(task.task_id, encoded)
    task.content_bytes = len(encoded)
    task.prompt_pending = True


def fill_at_once(state: State, task: Task) -> None:
    """Puts results into a prompt that was edited when nothing was waited for any more. Raises REQUEST_INVALID."""
    failure = Results(state, [task]).put_into(task)
    if failure is not None:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"The request is invalid: prompt: {failure.message}. Correct it and send it again.",
            violations=(("prompt", failure.message),),
        )
