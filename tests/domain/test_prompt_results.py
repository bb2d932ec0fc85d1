"""Results of dependencies in prompts: what is put in, when, and what is never taken for a place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Value
from kapell.v1.dependency_pb2 import (
    DEPENDENCY_CONDITION_FINISHED,
    DEPENDENCY_FAILURE_ACTION_RUN,
    DEPENDENCY_FAILURE_ACTION_SKIP,
    TaskDependency,
)
from kapell.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_PENDING, TASK_STATE_QUEUED, CreateTaskRequest, TaskSpec
from kapell.v1.template_pb2 import PARAMETER_TYPE_STRING, CreateTemplateRequest, TemplateSpec
from kapell.v1.worker_pb2 import CompleteTaskRequest
from kapell_server.domain.tasks.prompt import Place, as_messages, from_messages, joined, split

from tests.domain.world import World

RESULT = {"path": {"to": [{"value": "deep"}, 2.5]}, "text": "line\n", "whole": 3, "none": None, "ok": True, "é": "x"}


def finished(world: World, result: Any = None) -> str:
    """A task of another type that has succeeded with this result."""
    task_id = world.create("other")
    complete(world, task_id, result)
    return task_id


def complete(world: World, task_id: str, result: Any) -> None:
    assert world.lease(world.register("other")) == task_id
    value = ParseDict(result, Value()) if result is not None else None
    world.do(CompleteTaskRequest(lease_token=world.token(task_id), result=value))


def prompt_of(world: World, task_id: str) -> str:
    return world.content(task_id).prompt


@pytest.mark.parametrize(
    ("place", "written"),
    [
        ("{deps.build.result.text}", "line\n"),
        ("{deps.build.result.path.to.0.value}", "deep"),
        ("{deps.build.result.path.to.1}", "2.5"),
        ("{deps.build.result.path.to}", '[{"value":"deep"},2.5]'),
        ("{deps.build.result.whole}", "3"),
        ("{deps.build.result.none}", "null"),
        ("{deps.build.result.ok}", "true"),
        ("{deps.build.result.path.to.2}", "(the result of build has no entry path.to.2)"),
        ("{deps.build.result.path.to.99999999999999999999}", None),
        ("{deps.build.result.text.0}", "(the result of build has no entry text.0)"),
        ("{deps.build.result.nothing}", "(the result of build has no entry nothing)"),
    ],
)
def test_a_place_gets_the_entry_that_it_names(place: str, written: str | None) -> None:
    world = World()
    other = finished(world, RESULT)

    task_id = world.create(prompt=f"<{place}>", dependencies=[TaskDependency(task_id=other, name="build")])

    text = prompt_of(world, task_id)
    assert text == f"<{written}>" if written is not None else "has no entry" in text
    assert world.task(task_id).state == TASK_STATE_QUEUED
    assert not world.task(task_id).prompt_pending


def test_a_whole_result_is_compact_json() -> None:
    world = World()
    other = finished(world, RESULT)

    task_id = world.create(prompt="{deps.b.result}", dependencies=[TaskDependency(task_id=other, name="b")])

    text = prompt_of(world, task_id)
    assert json.loads(text) == RESULT
    assert "é" in text
    assert ": " not in text


@pytest.mark.parametrize(
    "text",
    [
        "{deps.build}",
        "{deps.build.results}",
        "{ deps.build.result }",
        "{deps.build.result.}",
        "{deps.build.result..x}",
        "{deps.build.result.x y}",
        "{deps.Build.result}",
        "{deps.build.result",
        "${x} {y} {{z}} } {",
        "{DEPS.build.result}",
    ],
)
def test_other_braces_stay_as_they_are(text: str) -> None:
    world = World()
    other = finished(world, "r")

    task_id = world.create(prompt=text, dependencies=[TaskDependency(task_id=other, name="build")])

    assert prompt_of(world, task_id) == text
    assert not world.content(task_id).prompt_parts


def test_a_task_without_dependencies_is_not_searched_for_places() -> None:
    world = World()

    assert prompt_of(world, world.create(prompt="{deps.build.result}")) == "{deps.build.result}"


def test_places_are_filled_when_the_task_becomes_runnable() -> None:
    world = World()
    other = world.create("other")
    task_id = world.create(
        prompt="{deps.b.result} and {deps.b.result}", dependencies=[TaskDependency(task_id=other, name="b")]
    )
    assert (prompt_of(world, task_id), world.task(task_id).prompt_pending) == (
        "{deps.b.result} and {deps.b.result}",
        True,
    )

    complete(world, other, "R")

    assert (prompt_of(world, task_id), world.task(task_id).prompt_pending) == ("R and R", False)
    assert world.task(task_id).content_bytes == len(world.rows.contents[task_id])


def test_a_name_defaults_to_the_client_key_and_then_to_the_id() -> None:
    world = World()
    other = finished(world, "R")

    task_id = world.create(prompt=f"{{deps.{other}.result}}", dependencies=[TaskDependency(task_id=other)])

    assert prompt_of(world, task_id) == "R"


def test_results_are_never_read_as_places() -> None:
    world = World()
    one, two = finished(world, "{deps.two.result}"), finished(world, "secret")

    task_id = world.create(
        prompt="{deps.one.result}",
        dependencies=[TaskDependency(task_id=one, name="one"), TaskDependency(task_id=two, name="two")],
    )
    assert prompt_of(world, task_id) == "{deps.two.result}"
    world.cancel(task_id)
    world.retry(task_id)

    assert prompt_of(world, task_id) == "{deps.two.result}"


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ("cancelled", "(no result: b is CANCELLED)"),
        ("failed", "(no result: b is FAILED)"),
        ("skipped", "(no result: b was skipped)"),
    ],
)
def test_a_task_that_runs_anyway_reads_why_there_is_no_result(end: str, text: str) -> None:
    world = World()
    root = world.create("root")
    wanted = [TaskDependency(task_id=root, on_failure=DEPENDENCY_FAILURE_ACTION_SKIP)] if end == "skipped" else []
    other = world.create("other", dependencies=wanted)
    dependency = TaskDependency(task_id=other, name="b", on_failure=DEPENDENCY_FAILURE_ACTION_RUN)
    task_id = world.create(prompt="{deps.b.result.x}", dependencies=[dependency])

    if end == "failed":
        world.lease(world.register("other"))
        world.fail(other, retryable=False)
    else:
        world.cancel(root if end == "skipped" else other)

    assert prompt_of(world, task_id) == text


def test_succeeding_without_a_result_is_null() -> None:
    world = World()
    other = finished(world)

    task_id = world.create(prompt="{deps.b.result}", dependencies=[TaskDependency(task_id=other, name="b")])

    assert prompt_of(world, task_id) == "null"


def test_a_prompt_that_gets_too_long_fails_its_task() -> None:
    world = World()
    other = finished(world, "x" * 200_000)
    task_id = world.create(
        prompt="{deps.b.result}{deps.b.result}", dependencies=[TaskDependency(task_id=other, name="b")]
    )
    follows = world.create(dependencies=[TaskDependency(task_id=task_id)])

    task = world.task(task_id)
    assert (task.state, task.failure.reason) == (TASK_STATE_FAILED, "PROMPT_TOO_LARGE")
    assert world.task(follows).failure.reason == "DEPENDENCY_FAILED"
    assert prompt_of(world, task_id) == "{deps.b.result}{deps.b.result}"


def test_a_retry_gets_the_newest_results() -> None:
    world = World()
    other = finished(world, "old")
    dependency = TaskDependency(task_id=other, name="b", condition=DEPENDENCY_CONDITION_FINISHED)
    task_id = world.create(prompt="{deps.b.result}", dependencies=[dependency])
    world.cancel(task_id)
    again = world.create("other", task_id="task_again")
    complete(world, again, "new")
    world.rows.contents[other] = world.rows.contents[again]
    world.state.drop_content(other)

    world.retry(task_id)

    assert prompt_of(world, task_id) == "new"
    assert world.task(task_id).state == TASK_STATE_QUEUED


def test_a_retry_keeps_the_prompt_where_a_dependency_was_deleted() -> None:
    world = World()
    other = finished(world, "old")
    task_id = world.create(prompt="{deps.b.result}", dependencies=[TaskDependency(task_id=other, name="b")])
    world.cancel(task_id)
    world.delete(other)

    world.retry(task_id)

    assert prompt_of(world, task_id) == "old"


def test_2000_prompts_are_filled_in_one_batch() -> None:
    world = World()
    other = world.create("other")
    ids = [
        world.create(prompt=f"{index} {{deps.b.result}}", dependencies=[TaskDependency(task_id=other, name="b")])
        for index in range(2000)
    ]

    complete(world, other, "R")

    assert [prompt_of(world, task_id) for task_id in ids] == [f"{index} R" for index in range(2000)]


# -- templates ---------------------------------------------------------------------------------------


def template(world: World, prompt: str, task_name: str = "") -> None:
    spec = TemplateSpec(agent_type="shell", prompt=prompt, task_name=task_name)
    parameter = spec.parameters.add(name="what", required=True)
    parameter.rules.type = PARAMETER_TYPE_STRING
    world.do(CreateTemplateRequest(template_id="t", spec=spec))


def from_template(what: str, *dependencies: TaskDependency) -> CreateTaskRequest:
    wanted = TaskSpec(template="t", dependencies=dependencies)
    wanted.parameters.update({"what": what})
    return CreateTaskRequest(task=wanted)


def test_a_template_may_have_places_and_its_values_none() -> None:
    world = World()
    template(world, "{what}: {if what}{deps.b.result.0}{end} {{deps.b.result}}")
    other = finished(world, ["R"])

    task = world.do(from_template("{deps.b.result}", TaskDependency(task_id=other, name="b")))

    assert prompt_of(world, task.task_id) == "{deps.b.result}: R {deps.b.result}"


def test_a_template_with_places_needs_the_dependencies() -> None:
    world = World()
    template(world, "{what} {deps.b.result}")
    other = finished(world, ["R"])

    for dependencies in ((), (TaskDependency(task_id=other, name="c"),)):
        with world.refuses("REQUEST_INVALID") as refusals:
            world.do(from_template("x", *dependencies))
        assert refusals[0].violations[0][0] == "task.prompt"
        assert "no dependency has the name 'b'" in refusals[0].message


def test_a_waiting_task_of_a_template_shows_its_places() -> None:
    world = World()
    template(world, "{what} {deps.b.result}")
    other = world.create("other")

    task = world.do(from_template("x", TaskDependency(task_id=other, name="b")))

    assert task.state == TASK_STATE_PENDING
    assert prompt_of(world, task.task_id) == "x {deps.b.result}"


@pytest.mark.parametrize(
    ("prompt", "task_name", "field", "words"),
    [
        ("{what} {if deps.b.result}x{end}", "", "spec.prompt", "as a text only"),
        ("{what} {deps.b}", "", "spec.prompt", "{deps.NAME.result}"),
        ("{what}", "{deps.b.result}", "spec.task_name", "is for prompts"),
    ],
)
def test_what_a_template_may_not_say(prompt: str, task_name: str, field: str, words: str) -> None:
    world = World()

    with world.refuses("REQUEST_INVALID") as refusals:
        template(world, prompt, task_name)

    assert refusals[0].violations[0][0] == field
    assert words in refusals[0].violations[0][1]


def test_pieces_are_kept_as_they_are() -> None:
    parts = split("a{deps.b.result.c.0}{deps.d.result}e{f}")

    assert parts == ["a", Place("b", ("c", "0")), Place("d", ()), "e{f}"]
    assert from_messages(as_messages(parts)) == parts
    assert joined(parts) == "a{deps.b.result.c.0}{deps.d.result}e{f}"
