"""Tasks that are changed after their creation: content, times and policies; what they were stays readable."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.dependency_pb2 import TaskDependency
from kapell.v1.task_pb2 import (
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    WAIT_KIND_NOT_BEFORE,
    WAIT_KIND_RETRY_BACKOFF,
    RetryPolicy,
    RetryTaskRequest,
    Task,
    TaskTimeouts,
    UpdateTaskRequest,
)
from kapell.v1.template_pb2 import (
    PARAMETER_TYPE_STRING,
    CreateTemplateRequest,
    DeleteTemplateRequest,
    TemplateSpec,
    UpdateTemplateRequest,
)
from kapell_server.domain.times import SECOND, stamp

from tests.domain.test_rollback import fail_commit
from tests.domain.world import World


def struct(**values: Any) -> Struct:
    made = Struct()
    made.update(values)
    return made


def update(world: World, task_id: str, *paths: str, **values: Any) -> Any:
    request = UpdateTaskRequest(task=Task(task_id=task_id, **values), update_mask=FieldMask(paths=paths))
    return world.do(request)


def in_seconds(world: World, seconds: int) -> Timestamp:
    return Timestamp(seconds=world.now_ns // SECOND + seconds)


def greeting(world: World, **fields: Any) -> str:
    """A template and a task of it that has failed."""
    parameter = {"name": "name", "rules": {"type": PARAMETER_TYPE_STRING}, "required": True}
    spec = TemplateSpec(agent_type="shell", prompt="Greet {name}", parameters=[parameter], **fields)
    world.do(CreateTemplateRequest(template_id="greet", spec=spec))
    task_id = world.create("", template="greet", parameters=struct(name="Ada"))
    world.cancel(task_id)
    return task_id


# -- retried with other content --------------------------------------------------------------------


def test_a_retry_with_another_prompt_keeps_the_first_one() -> None:
    world = World()
    task_id = world.running(prompt="first", input=struct(a=1))
    world.fail(task_id, retryable=False)

    world.retry(task_id, prompt="second", priority=7)

    task, [edit] = world.task(task_id), world.edits(task_id)
    assert (task.state, task.retries, task.edited, task.priority) == (TASK_STATE_QUEUED, 1, True, 7)
    assert (world.content(task_id).prompt, dict(world.content(task_id).input)) == ("second", {"a": 1.0})
    assert task.content_bytes == len(world.rows.contents[task_id])
    assert (edit.prompt, edit.retry, edit.editor.id, list(edit.changed_fields)) == ("first", 1, "admin", ["prompt"])
    assert (edit.revision, edit.HasField("input")) == (task.revision, False)


def test_each_round_keeps_what_it_replaced() -> None:
    world = World()
    task_id = world.create(prompt="first", input=struct(a=1))
    for prompt, value in (("second", 2), ("third", 3)):
        world.cancel(task_id)
        world.retry(task_id, prompt=prompt, input=struct(a=value))

    edits = world.edits(task_id)
    assert [(edit.retry, edit.prompt, edit.input["a"]) for edit in edits] == [(1, "first", 1), (2, "second", 2)]


def test_a_retry_with_the_same_content_is_no_edit() -> None:
    world = World()
    task_id = world.create(prompt="same")
    world.cancel(task_id)

    world.retry(task_id, prompt="same")

    assert (world.task(task_id).edited, world.task(task_id).retries, world.edits(task_id)) == (False, 1, [])


def test_attempts_tell_their_round() -> None:
    world = World()
    task_id = world.running()
    world.fail(task_id, retryable=False)
    world.retry(task_id)
    world.lease(next(iter(world.rows.agents)))

    assert [world.attempt(task_id, number).retry for number in (1, 2)] == [0, 1]


def test_a_retry_may_set_policy_and_timeouts() -> None:
    world = World()
    task_id = world.create(timeouts=TaskTimeouts(queue_timeout=Duration(seconds=5)))
    world.advance(5.5)
    assert world.task(task_id).failure.reason == "QUEUE_TIMEOUT"

    world.retry(task_id, retry_policy=RetryPolicy(max_attempts=9), timeouts=TaskTimeouts())
    world.advance(3600)

    task = world.task(task_id)
    assert (task.state, task.retry_policy.max_attempts, task.edited) == (TASK_STATE_QUEUED, 9, False)
    assert task.retry_policy.initial_backoff.seconds == 1


def test_a_template_is_rendered_anew_by_the_version_the_task_was_made_from() -> None:
    world = World()
    task_id = greeting(world)
    newer = TemplateSpec(agent_type="shell", prompt="Say goodbye")
    world.do(UpdateTemplateRequest(template_id="greet", spec=newer))

    world.retry(task_id, parameters=struct(name="Grace"))

    assert world.content(task_id).prompt == "Greet Grace"
    assert [(edit.prompt, edit.input["name"]) for edit in world.edits(task_id)] == [("Greet Ada", "Ada")]


def test_wrong_parameters_leave_the_task_as_it_was() -> None:
    world = World()
    task_id = greeting(world)

    with world.refuses("TEMPLATE_PARAMETERS_INVALID") as refusals:
        world.retry(task_id, parameters=struct(nme="Grace"))

    assert {path for path, _ in refusals[0].violations} == {"parameters.name", "parameters.nme"}


def test_content_of_a_template_is_changed_by_parameters_alone() -> None:
    world = World()
    of_template, plain = greeting(world), world.create()
    world.cancel(plain)

    with world.refuses("REQUEST_INVALID"):
        world.retry(of_template, prompt="other")
    with world.refuses("REQUEST_INVALID"):
        world.retry(plain, parameters=struct(name="Grace"))


def test_a_template_that_is_gone_cannot_be_rendered_anew() -> None:
    world = World()
    task_id = greeting(world)
    world.do(DeleteTemplateRequest(template_id="greet"))

    with world.refuses("TEMPLATE_NOT_FOUND"):
        world.retry(task_id, parameters=struct(name="Grace"))


def test_too_large_an_input_is_refused() -> None:
    world = World()
    task_id = world.create()
    world.cancel(task_id)

    with world.refuses("REQUEST_INVALID"):
        world.retry(task_id, input=struct(text="x" * 300_000))


def test_an_edit_that_was_not_committed_leaves_no_trace() -> None:
    world = World()
    task_id = world.create(prompt="first")
    world.cancel(task_id)
    before = world.picture()

    fail_commit(world, RetryTaskRequest(task_id=task_id, prompt="second"))

    assert world.picture() == before
    world.retry(task_id, prompt="third")
    assert [edit.prompt for edit in world.edits(task_id)] == ["first"]


# -- updated ---------------------------------------------------------------------------------------


def test_content_may_be_changed_before_the_first_start_only() -> None:
    world = World()
    waiting, running = world.create(prompt="first"), world.running()

    update(world, waiting, "prompt", "input", prompt="second", input=struct(a=1))

    assert world.content(waiting).prompt == "second"
    assert [(edit.prompt, edit.retry) for edit in world.edits(waiting)] == [("first", 0)]
    with world.refuses("TASK_STATE_CONFLICT"):
        update(world, running, "prompt", prompt="second")
    world.release(running)
    with world.refuses("TASK_STATE_CONFLICT"):
        update(world, running, "prompt", prompt="second")


def test_content_of_a_template_is_not_updated() -> None:
    world = World()
    task_id = greeting(world)
    world.retry(task_id)

    with world.refuses("REQUEST_INVALID"):
        update(world, task_id, "input", input=struct(name="Grace"))


def test_a_queued_task_may_be_put_off() -> None:
    world = World()
    task_id = world.create()

    update(world, task_id, "not_before_time", not_before_time=in_seconds(world, 60))

    task = world.task(task_id)
    assert (task.state, [wait.kind for wait in task.waiting_on]) == (TASK_STATE_PENDING, [WAIT_KIND_NOT_BEFORE])
    assert world.state.queues.ready.depths() == {}
    assert world.poll(world.register()).taken == []
    world.advance(59)
    assert world.task(task_id).state == TASK_STATE_PENDING
    world.advance(1)
    assert world.lease(world.register()) == task_id


@pytest.mark.parametrize("later", [30, 3600])
def test_a_task_that_waits_may_be_moved(later: int) -> None:
    world = World()
    task_id = world.create(not_before_time=in_seconds(world, 600))

    update(world, task_id, "not_before_time", not_before_time=in_seconds(world, later))
    world.advance(later - 1)
    assert world.task(task_id).state == TASK_STATE_PENDING
    world.advance(1)

    assert world.task(task_id).state == TASK_STATE_QUEUED


def test_a_task_that_waits_may_be_taken_at_once() -> None:
    world = World()
    task_id = world.create(not_before_time=in_seconds(world, 600))

    update(world, task_id, "not_before_time")

    task = world.task(task_id)
    assert (task.state, list(task.waiting_on), task.HasField("not_before_time")) == (TASK_STATE_QUEUED, [], False)
    assert world.events[-1] == "task.queued"
    assert world.lease(world.register()) == task_id


def test_a_back_off_is_kept_when_the_start_is_moved() -> None:
    world = World()
    policy = RetryPolicy(initial_backoff=Duration(seconds=100), jitter=0)
    task_id = world.running(retry_policy=policy)
    world.fail(task_id)

    update(world, task_id, "not_before_time", not_before_time=in_seconds(world, 10))

    kinds = [wait.kind for wait in world.task(task_id).waiting_on]
    assert kinds == [WAIT_KIND_RETRY_BACKOFF, WAIT_KIND_NOT_BEFORE]
    world.advance(99)
    assert world.task(task_id).state == TASK_STATE_PENDING


def test_a_running_task_is_not_put_off() -> None:
    world = World()
    task_id = world.running()

    with world.refuses("TASK_STATE_CONFLICT"):
        update(world, task_id, "not_before_time", not_before_time=in_seconds(world, 60))


@pytest.mark.parametrize(("before", "after"), [(10, 100), (100, 10), (0, 10)])
def test_another_timeout_of_a_queued_task_counts_from_its_queueing(before: int, after: int) -> None:
    world = World()
    limits = {"timeouts": TaskTimeouts(queue_timeout=Duration(seconds=before))} if before else {}
    task_id = world.create(**limits)
    world.advance(5)

    update(world, task_id, "timeouts", timeouts=TaskTimeouts(queue_timeout=Duration(seconds=after)))
    world.advance(after - 5.5)
    assert world.task(task_id).state == TASK_STATE_QUEUED
    world.advance(1)

    assert (world.task(task_id).state, world.task(task_id).failure.reason) == (TASK_STATE_FAILED, "QUEUE_TIMEOUT")


def test_a_timeout_may_be_taken_away() -> None:
    world = World()
    task_id = world.create(timeouts=TaskTimeouts(total_timeout=Duration(seconds=10)))

    update(world, task_id, "timeouts")
    world.advance(86_400)

    assert world.task(task_id).state == TASK_STATE_QUEUED


def test_another_policy_holds_for_the_next_failure() -> None:
    world = World()
    task_id = world.running()

    update(world, task_id, "retry_policy", retry_policy=RetryPolicy(max_attempts=1))
    world.fail(task_id)

    assert world.task(task_id).state == TASK_STATE_FAILED


def test_a_reason_that_is_not_worth_another_attempt_is_final() -> None:
    world = World()
    policy = RetryPolicy(non_retryable_reasons=["OUT_OF_PAPER"])
    broken, dead = world.running(retry_policy=policy), world.running(retry_policy=policy)

    world.fail(broken, reason="EXIT_CODE")
    world.fail(dead, reason="OUT_OF_PAPER")

    assert [world.task(task_id).state for task_id in (broken, dead)] == [TASK_STATE_PENDING, TASK_STATE_FAILED]


# -- results of dependencies -----------------------------------------------------------------------


def with_result(world: World, **spec: Any) -> tuple[str, str]:
    """A task that has answered "done", and one that depends on it."""
    first = world.running()
    world.complete(first, "done")
    dependency = TaskDependency(task_id=first, name="build")
    return first, world.create(dependencies=[dependency], **spec)


def test_places_of_an_edited_prompt_are_filled() -> None:
    world = World()
    _, task_id = with_result(world, prompt="It said {deps.build.result}")
    world.cancel(task_id)

    world.retry(task_id, prompt="Better: {deps.build.result}")

    task = world.task(task_id)
    assert (task.state, task.prompt_pending, task.retries) == (TASK_STATE_QUEUED, False, 1)
    assert world.content(task_id).prompt == "Better: done"
    assert [edit.prompt for edit in world.edits(task_id)] == ["It said done"]


def test_a_prompt_without_places_stays_as_it_is() -> None:
    world = World()
    _, task_id = with_result(world, prompt="It said {deps.build.result}")
    for prompt in ("plain", "plainer"):
        world.cancel(task_id)
        world.retry(task_id, prompt=prompt)

    assert world.content(task_id).prompt == "plainer"
    assert not world.content(task_id).prompt_parts


def test_the_same_places_again_are_no_edit() -> None:
    world = World()
    _, task_id = with_result(world, prompt="It said {deps.build.result}")
    world.cancel(task_id)

    world.retry(task_id, prompt="It said {deps.build.result}")

    assert (world.task(task_id).edited, world.content(task_id).prompt) == (False, "It said done")


def test_a_place_must_be_of_a_dependency() -> None:
    world = World()
    _, task_id = with_result(world)
    world.cancel(task_id)

    with world.refuses("REQUEST_INVALID"):
        world.retry(task_id, prompt="{deps.other.result}")


def test_an_updated_prompt_is_filled_at_once_or_when_its_dependencies_have_come() -> None:
    world = World()
    _, met = with_result(world, prompt="p")
    first = world.running()
    waiting = world.create(dependencies=[TaskDependency(task_id=first, name="build")], prompt="p")

    for task_id in (met, waiting):
        update(world, task_id, "prompt", prompt="Now {deps.build.result}")
    assert world.content(met).prompt == "Now done"
    assert world.task(waiting).prompt_pending
    world.complete(first, "late")

    assert world.content(waiting).prompt == "Now late"


def test_a_task_that_waits_for_others_is_not_woken_by_another_start() -> None:
    world = World()
    first = world.running()
    waiting = world.create(dependencies=[TaskDependency(task_id=first, name="build")])

    update(world, waiting, "not_before_time")
    assert world.task(waiting).state == TASK_STATE_PENDING
    update(world, waiting, "not_before_time", not_before_time=in_seconds(world, 5))
    world.complete(first)
    assert [wait.kind for wait in world.task(waiting).waiting_on] == [WAIT_KIND_NOT_BEFORE]
    world.advance(5)

    assert world.task(waiting).state == TASK_STATE_QUEUED


def test_other_parameters_bring_their_keys_and_their_name() -> None:
    world = World()
    task_id = greeting(world, concurrency_keys=["repo/{name}"], task_name="Greet {name}")
    assert list(world.task(task_id).concurrency_keys) == ["repo/Ada"]

    world.retry(task_id, parameters=struct(name="Grace"))

    task = world.task(task_id)
    assert (list(task.concurrency_keys), task.display_name) == (["repo/Grace"], "Greet Grace")


def test_a_retry_before_its_time_waits_for_it() -> None:
    world = World()
    later = Timestamp()
    stamp(later, world.now_ns + 60 * SECOND)
    task_id = world.create(not_before_time=later)
    world.cancel(task_id)

    world.retry(task_id)
    waiting = world.task(task_id)
    world.advance(61)

    assert waiting.state == TASK_STATE_PENDING
    assert [wait.until_time for wait in waiting.waiting_on] == [later]
    assert world.task(task_id).state == TASK_STATE_QUEUED


@pytest.mark.parametrize(("name", "after"), [("", "new"), ("mine", "mine")])
def test_a_name_taken_from_the_prompt_goes_with_it(name: str, after: str) -> None:
    world = World()
    task_id = world.create(prompt="old\nmore", display_name=name)
    world.cancel(task_id)

    put = world.retry(task_id, prompt="new\nmore")

    assert put.display_name == after
