"""Whether a task is among those that a TaskFilter wants: the rule that lists, watches and bulk changes share.

The store says the same in SQL, as far as SQL can; what matches here must match there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kapell.v1.task_pb2 import Task, TaskFilter

from kapell_server.domain.times import timestamp_ns

TaskTest = Callable[[Task], bool]


def task_test(wanted: TaskFilter) -> TaskTest:
    """The filter made ready to be asked often. All that it sets must hold."""
    tests: list[TaskTest] = []
    if wanted.states:
        states = frozenset(wanted.states)
        tests.append(lambda task: task.state in states)
    if wanted.task_ids:
        ids = frozenset(wanted.task_ids)
        tests.append(lambda task: task.task_id in ids)
    if wanted.agent_types:
        types = frozenset(wanted.agent_types)
        tests.append(lambda task: task.agent_type in types)
    if wanted.template_ids:
        templates = frozenset(wanted.template_ids)
        tests.append(lambda task: task.template_id in templates)
    if wanted.parent_task_id:
        parent_id = wanted.parent_task_id
        tests.append(lambda task: task.parent_task_id == parent_id)
    if wanted.root_task_id:
        root_id = wanted.root_task_id
        tests.append(lambda task: task.root_task_id == root_id)
    if wanted.failure_reasons:
        reasons = frozenset(wanted.failure_reasons)
        tests.append(lambda task: task.HasField("failure") and task.failure.reason in reasons)
    if wanted.labels:
        labels = dict(wanted.labels)
        tests.append(lambda task: has_labels(task.labels, labels))
    if wanted.HasField("created_after_time"):
        after = timestamp_ns(wanted.created_after_time)
        tests.append(lambda task: timestamp_ns(task.create_time) >= after)
    if wanted.HasField("created_before_time"):
        before = timestamp_ns(wanted.created_before_time)
        tests.append(lambda task: timestamp_ns(task.create_time) < before)
    return lambda task: all(test(task) for test in tests)


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether all wanted labels are there with their values."""
    return all(key in labels and labels[key] == value for key, value in wanted.items())
