"""Templates with steps: how much one request may make of them, and that no value is ever read as a tag."""

from __future__ import annotations

import pytest
from kapell.v1.dependency_pb2 import TaskDependency
from kapell.v1.queue_pb2 import DrainQueueRequest
from kapell.v1.task_pb2 import BatchCreateTasksRequest, TaskSpec

from tests.domain.workshop import Workshop, step


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


# -- caps ----------------------------------------------------------------------------------------------


def test_steps_are_not_refused_for_their_depth(workshop: Workshop) -> None:
    workshop.state.settings = workshop.state.settings.__class__(max_task_depth=1)
    workshop.add(step("a"))

    task = workshop.make(parent_task_id=workshop.create())

    assert workshop.steps(task)["a"].depth == 2


def test_steps_count_towards_the_tasks_below_a_root() -> None:
    workshop = Workshop(max_tasks_per_root=2)
    workshop.add(step("a"), step("b"), step("c", when="deep"))

    workshop.make()
    with workshop.refuses("CHILD_LIMIT"):
        workshop.make({"deep": True})


def test_a_request_creates_no_more_tasks_than_it_may(workshop: Workshop) -> None:
    workshop.add(*[step(f"s{number}") for number in range(24)])

    with workshop.refuses("REQUEST_INVALID") as refusals:
        workshop.do(BatchCreateTasksRequest(tasks=[TaskSpec(template="t")] * 101))

    assert "tasks[100] brings the tasks of the request, steps counted, to 2525" in refusals[0].message
    plain = [TaskSpec(agent_type="code")] * 2499
    with workshop.refuses("REQUEST_INVALID"):
        workshop.do(BatchCreateTasksRequest(tasks=[TaskSpec(template="t"), *plain]))


def test_the_parameters_of_all_steps_are_capped_together(workshop: Workshop) -> None:
    workshop.add(*[step(f"s{number}") for number in range(31)])
    request = BatchCreateTasksRequest(tasks=[TaskSpec(template="t", parameters={"what": "x" * 60_000})] * 40)

    with workshop.refuses("REQUEST_INVALID") as refusals:
        workshop.do(request)

    assert "at most 67108864 are allowed" in refusals[0].message


def test_rendering_is_capped_for_all_prompts_together(workshop: Workshop) -> None:
    workshop.add(*[step(name, prompt="{what}") for name in "abcd"], prompt="{what}")

    workshop.make({"what": "x" * 52_000})
    with workshop.refuses("TEMPLATE_PARAMETERS_INVALID") as refusals:
        workshop.make({"what": "x" * 53_000})

    assert "step d: it gets longer than 262,144 bytes" in refusals[0].message


def test_a_queue_that_takes_nothing_in_refuses_a_task_with_such_a_step(workshop: Workshop) -> None:
    workshop.add(step("a", agent_type="closed"), step("b", agent_type="closed", when="deep"))
    workshop.do(DrainQueueRequest(agent_type="closed"))

    with workshop.refuses("QUEUE_DRAINING"):
        workshop.make()


# -- values are never tags -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "{deps.a.result}",
        "{deps.b.result}",
        "{{deps.a.result}}",
        "{what}",
        "{if deep}x{end}",
        "{end}",
        "(step a was left out)",
        "deps.a.result}",
    ],
)
def test_a_value_is_never_read_as_a_tag(workshop: Workshop, value: str) -> None:
    workshop.add(
        step("a", prompt="<{what}>", agent_type="first"),
        step("b", "a", prompt="<{what}>", agent_type="second"),
        step("c", "a", prompt="<{what}> {deps.a.result}", agent_type="third"),
        prompt="<{what}> {deps.a.result}",
    )
    task = workshop.make({"what": value})
    steps = workshop.steps(task)

    workshop.finish(steps["a"], "{deps.b.result} {what}")
    workshop.finish(steps["b"], "secret")
    workshop.finish(steps["c"], "")

    assert workshop.prompt(steps["a"]) == workshop.prompt(steps["b"]) == f"<{value}>"
    assert workshop.prompt(steps["c"]) == f"<{value}> {{deps.b.result}} {{what}}"
    assert workshop.prompt(task) == f"<{value}> {{deps.b.result}} {{what}}"


def test_a_value_is_no_place_where_only_the_client_gives_dependencies(workshop: Workshop) -> None:
    workshop.add(prompt="<{what}>")
    other = workshop.create("other")

    task = workshop.make({"what": "{deps.b.result}"}, dependencies=[TaskDependency(task_id=other, name="b")])
    workshop.finish(workshop.task(other), "secret")

    assert workshop.prompt(task) == "<{deps.b.result}>"
