"""Templates with steps: which tasks are made of them, with what, and what becomes of them."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.dependency_pb2 import (
    DEPENDENCY_FAILURE_ACTION_FAIL,
    DEPENDENCY_FAILURE_ACTION_RUN,
    DEPENDENCY_FAILURE_ACTION_SKIP,
    TaskDependency,
)
from kapell.v1.schedule_pb2 import OVERLAP_POLICY_CANCEL, CreateScheduleRequest, ScheduleSpec
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    BatchCreateTasksRequest,
    CreateTaskRequest,
    RetryPolicy,
    RetryTaskRequest,
    TaskSpec,
    TaskTimeouts,
)
from kapell.v1.template_pb2 import (
    CloneTemplateRequest,
    UpdateTemplateRequest,
)
from kapell.v1.worker_pb2 import CreateChildTasksRequest

from tests.domain.workshop import Workshop, spec, step
from tests.domain.world import START_NS


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


# -- what is created -----------------------------------------------------------------------------------


def test_a_task_and_its_steps_are_created_at_once(workshop: Workshop) -> None:
    workshop.add(
        step("plan", prompt="Plan {what}"),
        step("build", "plan", prompt="Build {what} by {deps.plan.result}", agent_type="builder"),
        step("review", "build", prompt="Review {deps.build.result.diff}", on_failure=DEPENDENCY_FAILURE_ACTION_RUN),
        prompt="Sum up {deps.plan.result} and {deps.review.result}",
        task_name="Change {what}",
    )
    before = list(workshop.events)

    task = workshop.make({"what": "the door"})

    steps = workshop.steps(task)
    assert workshop.events[len(before) :] == ["task.created"] * 4
    assert (task.state, task.template_id, task.display_name) == (TASK_STATE_PENDING, "t", "Change the door")
    assert [(entry.name, entry.on_failure) for entry in task.dependencies] == [
        ("plan", DEPENDENCY_FAILURE_ACTION_FAIL),
        ("build", DEPENDENCY_FAILURE_ACTION_FAIL),
        ("review", DEPENDENCY_FAILURE_ACTION_RUN),
    ]
    assert {
        name: (found.state, found.agent_type, found.display_name, found.depth) for name, found in steps.items()
    } == {
        "plan": (TASK_STATE_QUEUED, "code", "plan: Change the door", 1),
        "build": (TASK_STATE_PENDING, "builder", "build: Change the door", 1),
        "review": (TASK_STATE_PENDING, "code", "review: Change the door", 1),
    }
    assert workshop.graph(task) == {"plan": [], "build": ["plan"], "review": ["build"]}
    assert [found.template_id for found in steps.values()] == ["", "", ""]
    assert dict(workshop.content(steps["plan"].task_id).input) == {"what": "the door", "deep": False}


def test_results_go_from_step_to_step_and_to_the_task(workshop: Workshop) -> None:
    workshop.add(
        step("plan", prompt="Plan", agent_type="planner"),
        step("build", "plan", prompt="Build {deps.plan.result}", agent_type="builder"),
        prompt="{deps.plan.result}, {deps.build.result}",
    )
    task = workshop.make()
    steps = workshop.steps(task)

    workshop.finish(steps["plan"], "the plan")
    assert workshop.prompt(steps["build"]) == "Build the plan"
    workshop.finish(steps["build"], "a door")

    assert workshop.task(task.task_id).state == TASK_STATE_QUEUED
    assert workshop.prompt(task) == "the plan, a door"


def test_a_step_left_out_hands_on_what_it_depended_on(workshop: Workshop) -> None:
    workshop.add(
        step("a"),
        step("b"),
        step("c", "a", "b", when="deep", prompt="{deps.a.result}"),
        step("d", "c", when="deep"),
        step("e", "d", "b", prompt="{deps.d.result} {deps.b.result}"),
        step("f", when="not deep"),
        prompt="{deps.c.result.x} {deps.e.result}",
    )

    shallow, deep = workshop.make(), workshop.make({"deep": True})

    assert workshop.graph(shallow) == {"a": [], "b": [], "e": ["a", "b"], "f": []}
    assert workshop.graph(deep) == {"a": [], "b": [], "c": ["a", "b"], "d": ["c"], "e": ["d", "b"]}
    assert workshop.prompt(workshop.steps(shallow)["e"]) == "(step d was left out) {deps.b.result}"
    assert workshop.prompt(shallow) == "(step c was left out) {deps.e.result}"


def test_a_task_whose_steps_are_all_left_out_runs_at_once(workshop: Workshop) -> None:
    workshop.add(step("a", when="deep"), prompt="{deps.a.result}")

    task = workshop.make()

    assert (task.state, list(task.dependencies), task.prompt_pending) == (TASK_STATE_QUEUED, [], False)
    assert workshop.prompt(task) == "(step a was left out)"


@pytest.mark.parametrize(
    ("when", "parameters", "is_done"),
    [
        ("deep", {}, False),
        ("not deep", {}, True),
        ("what is it", {}, True),
        ("what is that", {}, False),
        ("what is not it", {"what": "that"}, True),
        ("deep is true", {"deep": True}, True),
        ("focus", {"focus": ""}, False),
        (" focus ", {"focus": "x"}, True),
    ],
)
def test_when_is_what_could_stand_in_an_if(
    workshop: Workshop, when: str, parameters: dict[str, Any], is_done: bool
) -> None:
    workshop.add(step("a", when=when))

    assert bool(workshop.steps(workshop.make(parameters))) is is_done


def test_steps_inherit_from_the_task_unless_they_say_otherwise(workshop: Workshop) -> None:
    workshop.add(
        step("plain"),
        step(
            "own",
            priority=7,
            agent_type="mine",
            labels={"kind": "own"},
            retry_policy=RetryPolicy(max_attempts=9),
            timeouts=TaskTimeouts(run_timeout=Duration(nanos=500_000_000)),
        ),
        labels={"kind": "t", "team": "a"},
        retry_policy=RetryPolicy(max_attempts=2, backoff_multiplier=3),
        timeouts=TaskTimeouts(run_timeout=Duration(seconds=60), total_timeout=Duration(seconds=600)),
    )

    task = workshop.make(priority=900, labels={"team": "b"}, agent_type="other")

    plain, own = workshop.steps(task)["plain"], workshop.steps(task)["own"]
    assert (plain.priority, plain.agent_type, dict(plain.labels)) == (900, "other", {"kind": "t", "team": "b"})
    assert (own.priority, own.agent_type, dict(own.labels)) == (7, "mine", {"kind": "own", "team": "b"})
    assert (plain.retry_policy, plain.timeouts) == (task.retry_policy, task.timeouts)
    assert (own.retry_policy.max_attempts, own.retry_policy.backoff_multiplier) == (9, 3)
    assert own.timeouts == TaskTimeouts(run_timeout=Duration(nanos=500_000_000), total_timeout=Duration(seconds=600))


def test_times_of_a_task_replace_those_of_its_template_whole(workshop: Workshop) -> None:
    workshop.add(timeouts=TaskTimeouts(run_timeout=Duration(seconds=60), queue_timeout=Duration(seconds=9)))

    half = TaskTimeouts(run_timeout=Duration(nanos=500_000_000), queue_timeout=Duration())

    assert workshop.make(timeouts=half).timeouts == half


def test_steps_of_a_child_have_the_priority_of_its_parent(workshop: Workshop) -> None:
    workshop.add(step("a"))
    parent = workshop.create(priority=321)

    task = workshop.make(parent_task_id=parent)

    assert (task.priority, workshop.steps(task)["a"].priority) == (321, 321)


def test_what_the_task_waits_for_holds_back_the_first_steps(workshop: Workshop) -> None:
    workshop.add(step("a"), step("b", "a"))
    other = workshop.create("other")
    later = Timestamp(seconds=START_NS // 10**9 + 60)

    task = workshop.make(dependencies=[TaskDependency(task_id=other, name="go")], not_before_time=later)

    assert workshop.graph(task) == {"a": ["go"], "b": ["a"]}
    assert [entry.name for entry in task.dependencies] == ["go", "a", "b"]
    workshop.finish(workshop.task(other), "")
    first = workshop.steps(task)["a"]
    assert (first.state, len(first.waiting_on)) == (TASK_STATE_PENDING, 1)
    workshop.advance(61)
    assert workshop.steps(task)["a"].state == TASK_STATE_QUEUED


def test_a_dependency_must_not_be_called_as_a_step_is(workshop: Workshop) -> None:
    workshop.add(step("a", when="deep"))
    other = workshop.create("other")

    with workshop.refuses("REQUEST_INVALID") as refusals:
        workshop.make(dependencies=[TaskDependency(task_id=other, name="b"), TaskDependency(task_id=other, name="a")])

    assert refusals[0].violations == (("task.dependencies[1].name", "is 'a', as that of a step of the template"),)


def test_validate_only_shows_the_task_and_leaves_no_trace(workshop: Workshop) -> None:
    workshop.add(step("a", prompt="{what}"), prompt="{what}: {deps.a.result}")
    before = workshop.picture()

    task = workshop.do(CreateTaskRequest(task=TaskSpec(template="t"), validate_only=True))

    assert (task.prompt, [entry.name for entry in task.dependencies]) == ("it: {deps.a.result}", ["a"])
    assert workshop.picture() == before


def test_tasks_of_a_batch_have_steps_and_depend_on_each_other(workshop: Workshop) -> None:
    workshop.add(step("a"))
    request = BatchCreateTasksRequest(
        tasks=[
            TaskSpec(template="t", client_key="first"),
            TaskSpec(template="t", dependencies=[TaskDependency(client_key="first")]),
        ]
    )

    first, second = workshop.do(request)

    assert workshop.graph(first) == {"a": []}
    assert workshop.graph(second) == {"a": ["first"]}
    assert len(workshop.rows.tasks) == 4


def test_a_cycle_through_steps_is_named(workshop: Workshop) -> None:
    workshop.add(step("a"))
    request = BatchCreateTasksRequest(
        tasks=[
            TaskSpec(template="t", client_key="one", dependencies=[TaskDependency(client_key="two")]),
            TaskSpec(template="t", client_key="two", dependencies=[TaskDependency(client_key="one")]),
        ]
    )

    with workshop.refuses("DEPENDENCY_CYCLE") as refusals:
        workshop.do(request)

    assert "one → two → one" in refusals[0].message


def test_an_agent_creates_children_that_have_steps(workshop: Workshop) -> None:
    workshop.add(step("a"))
    root = workshop.running()

    [child] = workshop.do(CreateChildTasksRequest(lease_token=workshop.token(root), tasks=[TaskSpec(template="t")]))

    found = workshop.steps(child)["a"]
    assert (child.parent_task_id, found.parent_task_id, found.root_task_id, found.depth) == (
        root,
        child.task_id,
        root,
        2,
    )


# -- concurrency keys ----------------------------------------------------------------------------------


def test_concurrency_keys_have_tags_and_steps_have_their_own(workshop: Workshop) -> None:
    workshop.add(
        step("a"),
        step("b", concurrency_keys=["repo:{what}"]),
        concurrency_keys=["repo:{what}", "deploy", "{if deep}deep{end}", "{what}"],
    )

    task = workshop.make({"what": "deploy"}, concurrency_keys=["mine", "deploy"])

    assert task.concurrency_keys == ["repo:deploy", "deploy", "mine"]
    assert {name: list(found.concurrency_keys) for name, found in workshop.steps(task).items()} == {
        "a": [],
        "b": ["repo:deploy"],
    }


@pytest.mark.parametrize("value", ["a b", "ü", "x" * 64, "-", "{deps.a.result}", "a\x00b"])
def test_a_rendered_key_must_be_a_key(workshop: Workshop, value: str) -> None:
    workshop.add(concurrency_keys=["{what}"])

    with workshop.refuses("TEMPLATE_PARAMETERS_INVALID") as refusals:
        workshop.make({"what": value})

    assert "is no concurrency key" in refusals[0].message or "control characters" in refusals[0].message


def test_a_task_has_no_more_than_eight_keys(workshop: Workshop) -> None:
    workshop.add(concurrency_keys=[f"k{number}" for number in range(8)])

    assert len(workshop.make(concurrency_keys=["k0"]).concurrency_keys) == 8
    with workshop.refuses("REQUEST_INVALID") as refusals:
        workshop.make(concurrency_keys=["more"])

    assert refusals[0].violations[0][0] == "task.concurrency_keys"


def test_steps_share_the_fairness_key_of_the_task(workshop: Workshop) -> None:
    workshop.add(step("a"))

    task = workshop.make(fairness_key="team-a")

    assert workshop.steps(task)["a"].fairness_key == "team-a"


# -- what becomes of them ------------------------------------------------------------------------------


def test_cancelling_the_task_cancels_its_steps(workshop: Workshop) -> None:
    workshop.add(step("a"), step("b", "a"))
    task = workshop.make()

    workshop.cancel(task.task_id)

    assert {found.state for found in workshop.steps(task).values()} == {TASK_STATE_CANCELLED}


@pytest.mark.parametrize(
    ("action", "of_b", "of_task"),
    [
        (DEPENDENCY_FAILURE_ACTION_FAIL, TASK_STATE_FAILED, TASK_STATE_FAILED),
        (DEPENDENCY_FAILURE_ACTION_SKIP, TASK_STATE_CANCELLED, TASK_STATE_CANCELLED),
        (DEPENDENCY_FAILURE_ACTION_RUN, TASK_STATE_QUEUED, TASK_STATE_PENDING),
    ],
)
def test_on_failure_says_what_becomes_of_those_that_depend_on_a_step(
    workshop: Workshop, action: Any, of_b: int, of_task: int
) -> None:
    workshop.add(step("a", agent_type="a", on_failure=action), step("b", "a", prompt="{deps.a.result}"))
    task = workshop.make()
    first = workshop.steps(task)["a"]
    workshop.lease(workshop.register("a"))

    workshop.fail(first.task_id, retryable=False)

    assert workshop.steps(task)["b"].state == of_b
    assert workshop.task(task.task_id).state == of_task


def test_what_has_failed_is_retried_in_its_order(workshop: Workshop) -> None:
    workshop.add(step("a", agent_type="a"), step("b", "a", prompt="{deps.a.result}", agent_type="b"))
    task = workshop.make()
    steps = workshop.steps(task)
    workshop.lease(workshop.register("a"))
    workshop.fail(steps["a"].task_id, retryable=False)
    assert workshop.task(task.task_id).state == TASK_STATE_FAILED

    for task_id in (steps["a"].task_id, steps["b"].task_id, task.task_id):
        workshop.retry(task_id)
    workshop.finish(steps["a"], "at last")
    workshop.finish(steps["b"], "too")

    assert workshop.prompt(steps["b"]) == "at last"
    assert workshop.task(task.task_id).state == TASK_STATE_QUEUED


@pytest.mark.parametrize("deep", [False, True])
def test_a_retry_with_other_parameters_keeps_the_steps_that_there_are(workshop: Workshop, deep: bool) -> None:
    workshop.add(step("a"), step("b", when="deep"), prompt="{what}: {deps.a.result}, {deps.b.result}")
    task = workshop.make({"deep": deep})
    workshop.cancel(task.task_id)
    for found in workshop.steps(task).values():
        workshop.retry(found.task_id)

    other = {"deep": not deep, "what": "{deps.b.result}"}
    workshop.do(RetryTaskRequest(task_id=task.task_id, parameters=other))

    assert len(workshop.steps(task)) == (2 if deep else 1)
    last = "{deps.b.result}" if deep else "(step b was left out)"
    assert workshop.prompt(task) == f"{{deps.b.result}}: {{deps.a.result}}, {last}"
    assert workshop.task(task.task_id).state == TASK_STATE_PENDING


def test_a_schedule_makes_the_steps_and_takes_them_along_when_its_next_run_cancels_them(workshop: Workshop) -> None:
    workshop.add(step("a"))
    wanted = ScheduleSpec(
        interval=Duration(seconds=60), overlap_policy=OVERLAP_POLICY_CANCEL, task=TaskSpec(template="t")
    )
    workshop.do(CreateScheduleRequest(schedule_id="schedule_a", spec=wanted))
    assert not workshop.rows.tasks, "trying the task has left a trace"

    workshop.advance(61)
    [first] = [task for task in workshop.rows.tasks.values() if task.template_id]
    workshop.advance(60)

    assert first.schedule_id == "schedule_a"
    assert workshop.task(first.task_id).state == TASK_STATE_CANCELLED
    assert [(step.state, step.schedule_id) for step in workshop.steps(first).values()] == [(TASK_STATE_CANCELLED, "")]
    assert sum(bool(task.template_id) for task in workshop.rows.tasks.values()) == 2
    assert len(workshop.rows.tasks) == 4


def test_a_clone_and_a_new_version_have_their_steps(workshop: Workshop) -> None:
    workshop.add(step("a", prompt="Do {what}"))
    workshop.do(CloneTemplateRequest(template="t", template_id="mine", defaults={"what": "that"}))
    workshop.do(UpdateTemplateRequest(template_id="t", spec=spec(step("b", prompt="Do {what}"))))

    cloned = workshop.do(CreateTaskRequest(task=TaskSpec(template="mine")))
    old = workshop.do(CreateTaskRequest(task=TaskSpec(template="t@1")))

    assert workshop.prompt(workshop.steps(cloned)["a"]) == "Do that"
    assert list(workshop.steps(old)) == ["a"]
    assert list(workshop.steps(workshop.make())) == ["b"]
