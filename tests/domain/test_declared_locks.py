"""The locks that tasks declare: how they are written down, where they come from, when they may be changed."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from kapell.v1.lock_pb2 import LOCK_MODE_EXCLUSIVE, LOCK_MODE_SHARED, LockItem, TaskLock
from kapell.v1.task_pb2 import BatchCreateTasksRequest, CreateTaskRequest, Task, TaskSpec, UpdateTaskRequest
from kapell.v1.template_pb2 import (
    PARAMETER_TYPE_ARRAY,
    PARAMETER_TYPE_PATH,
    PARAMETER_TYPE_STRING,
    TemplateLock,
    TemplateParameter,
    ValueRules,
)
from kapell.v1.worker_pb2 import CreateChildTasksRequest
from kapell_server.domain.locks.declared import tidied

from tests.domain.workshop import Workshop, step
from tests.domain.world import World

FILES = TemplateParameter(
    name="files",
    rules=ValueRules(type=PARAMETER_TYPE_ARRAY),
    items=ValueRules(type=PARAMETER_TYPE_PATH),
)
REPO = TemplateParameter(name="repo", rules=ValueRules(type=PARAMETER_TYPE_STRING))
REQUIRED = [
    TemplateParameter(name=one.name, rules=one.rules, items=one.items if one is FILES else None, required=True)
    for one in (REPO, FILES)
]


def lock(path: str) -> LockItem:
    return LockItem(path=path)


def shared(path: str) -> LockItem:
    return LockItem(path=path, mode=LOCK_MODE_SHARED)


def said(task: Task) -> list[str]:
    """Its locks as words: "repo", "docs shared"."""
    return [f"{one.path}{' shared' if one.mode == LOCK_MODE_SHARED else ''}" for one in task.locks]


def create(world: World, *locks: LockItem, **fields: Any) -> Task:
    return world.task(world.create(locks=locks, **fields))


def of_template(*lines: TemplateLock, required: bool = True) -> Workshop:
    workshop = Workshop()
    workshop.add(locks=lines, parameters=REQUIRED if required else [REPO, FILES], prompt="Go")
    return workshop


# -- how they are written --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "kept"),
    [
        ([lock("repo/src/")], ["repo/src"]),
        ([lock("b"), lock("a")], ["a", "b"]),
        ([shared("a"), lock("a"), shared("a")], ["a"]),
        ([lock("a"), lock("a/b"), shared("a/c/d")], ["a"]),
        ([shared("a"), lock("a/b"), shared("a/c")], ["a shared", "a/b"]),
        ([lock("a"), lock("ab")], ["a", "ab"]),
        ([lock("cafe\u0301"), shared("café")], ["café"]),
    ],
)
def test_each_path_is_there_once_and_none_that_another_one_covers(items: list[LockItem], kept: list[str]) -> None:
    task = create(World(), *items)

    assert said(task) == kept
    assert all(one.mode in (LOCK_MODE_EXCLUSIVE, LOCK_MODE_SHARED) for one in task.locks)
    assert not any(one.lock_id or one.fencing_token for one in task.locks)


@pytest.mark.parametrize("path", ["/etc", "a//b", "a/../b", "./a", "src/*.ts", "a\\b", " a", "a\u200bb"])
def test_what_is_no_path_is_refused_by_its_name(path: str) -> None:
    world = World()

    with world.refuses("REQUEST_INVALID") as refusals:
        world.create(locks=[lock("fine"), lock(path)])

    assert refusals[0].violations[0][0] == "task.locks[1].path"


def test_a_batch_names_the_task_and_leaves_no_trace() -> None:
    world = World()
    good, bad = (TaskSpec(agent_type="shell", locks=[lock(path)]) for path in ("a", "/a"))

    with world.refuses("REQUEST_INVALID") as refusals:
        world.do(BatchCreateTasksRequest(tasks=[good, bad]))

    assert refusals[0].violations[0][0] == "tasks[1].locks[0].path"


def test_a_try_shows_them_as_they_would_be() -> None:
    spec = TaskSpec(agent_type="shell", locks=[lock("b/"), shared("b/c")])

    assert said(World().do(CreateTaskRequest(task=spec, validate_only=True))) == ["b"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("./src//a.py", "src/a.py"),
        ("/abs/path/", "abs/path"),
        ("shop/web/*.ts", "shop/web"),
        ("shop/a?/b", "shop"),
        ("*", ""),
        (" . ", ""),
        ("app/[id].tsx", "app/[id].tsx"),
    ],
)
def test_what_people_write_comes_nearer_to_a_path(written: str, meant: str) -> None:
    assert tidied(written) == meant


# -- children --------------------------------------------------------------------------------------


def test_children_have_locks_of_their_own() -> None:
    world = World()
    parent = world.running(locks=[lock("repo")])
    request = CreateChildTasksRequest(
        lease_token=world.token(parent), tasks=[TaskSpec(agent_type="x", locks=[lock("db")]), TaskSpec(agent_type="x")]
    )

    with_lock, without = world.do(request)

    assert (said(with_lock), said(without)) == (["db"], [])


# -- templates -------------------------------------------------------------------------------------


def test_a_list_stands_for_one_lock_each_and_an_empty_one_for_none() -> None:
    workshop = of_template(TemplateLock(path="{repo}/{files}"), TemplateLock(path="docs", mode=LOCK_MODE_SHARED))

    task = workshop.make({"repo": "shop", "files": ["src/a.py", "./src/b.py", "src/b.py/c"]})
    none = workshop.make({"repo": "shop", "files": []})

    assert said(task) == ["docs shared", "shop/src/a.py", "shop/src/b.py"]
    assert said(none) == ["docs shared"]


def test_what_the_template_says_comes_on_top_of_what_the_task_says() -> None:
    workshop = of_template(TemplateLock(path="{repo}", mode=LOCK_MODE_SHARED))

    task = workshop.make({"repo": "shop", "files": []}, locks=[lock("shop/src"), shared("shop/docs"), lock("port/80")])

    assert said(task) == ["port/80", "shop shared", "shop/src"]


def test_a_line_whose_tags_have_nothing_to_say_is_no_lock() -> None:
    workshop = of_template(TemplateLock(path="{if repo}{repo}{if files}/{files}{end}{end}"), required=False)

    assert said(workshop.make()) == []
    assert said(workshop.make({"repo": "shop"})) == ["shop"]
    assert said(workshop.make({"repo": "shop", "files": ["a", "b"]})) == ["shop/a", "shop/b"]


def test_more_than_a_task_may_have_are_drawn_together() -> None:
    workshop = of_template(TemplateLock(path="{repo}/{files}"))
    files = [f"src/part{number % 3}/f{number}.py" for number in range(100)]

    assert said(workshop.make({"repo": "shop", "files": files})) == [f"shop/src/part{number}" for number in range(3)]


def test_what_has_nothing_in_common_cannot_be_drawn_together() -> None:
    workshop = of_template(TemplateLock(path="{files}"))
    trees = [f"tree{number}" for number in range(65)]

    with workshop.refuses("TEMPLATE_PARAMETERS_INVALID") as refusals:
        workshop.make({"repo": "shop", "files": trees})

    assert "65 trees" in refusals[0].message


@pytest.mark.parametrize("repo", ["a/../b", "a\\b", "x" * 2000, "shop/ /b"])
def test_a_value_that_makes_no_path_is_refused(repo: str) -> None:
    workshop = of_template(TemplateLock(path="{if repo}{repo}{end}"), required=False)

    with workshop.refuses("TEMPLATE_PARAMETERS_INVALID"):
        workshop.make({"repo": repo})


def test_steps_have_their_own_and_not_those_of_the_task() -> None:
    workshop = Workshop()
    workshop.add(
        step("a", locks=[TemplateLock(path="{what}", mode=LOCK_MODE_SHARED)]),
        step("b", "a"),
        locks=[TemplateLock(path="{what}")],
    )

    task = workshop.make({"what": "repo"}, locks=[lock("mine")])

    assert said(task) == ["mine", "repo"]
    assert {name: said(found) for name, found in workshop.steps(task).items()} == {"a": ["repo shared"], "b": []}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("{nobody}/a", "there is no parameter"),
        ("{files", "a single {"),
        ("{deps.x.result}", "is for prompts"),
        ("a/../b", 'the segment ".."'),
        ("{repo}", "may have no value"),
    ],
)
def test_a_template_with_a_lock_that_cannot_be_is_refused(path: str, why: str) -> None:
    workshop = Workshop()

    with workshop.refuses("REQUEST_INVALID") as refusals:
        workshop.add(locks=[TemplateLock(path="fine"), TemplateLock(path=path)], parameters=[REPO, FILES], prompt="Go")

    assert refusals[0].violations[0][0] == "spec.locks[1].path"
    assert why in refusals[0].violations[0][1]


def test_a_retry_with_other_parameters_has_their_locks_and_its_own() -> None:
    workshop = of_template(TemplateLock(path="{repo}/{files}"))
    task = workshop.make({"repo": "shop", "files": ["a"]}, locks=[shared("port/80")])
    workshop.cancel(task.task_id)

    task = workshop.retry(task.task_id, parameters={"repo": "shop", "files": ["b"]})

    assert said(task) == ["port/80 shared", "shop/b"]


# -- changes ---------------------------------------------------------------------------------------


def update(world: World, task_id: str, *locks: LockItem) -> Task:
    task = Task(task_id=task_id, locks=[TaskLock(path=one.path, mode=one.mode) for one in locks])
    changed: Task = world.do(UpdateTaskRequest(task=task, update_mask=FieldMask(paths=["locks"])))
    return changed


def test_they_may_be_changed_while_no_agent_has_the_task() -> None:
    world = World()
    task = create(world, lock("a"))

    assert said(update(world, task.task_id, shared("b/"), lock("c"))) == ["b shared", "c"]
    assert said(update(world, task.task_id)) == []


def test_they_may_not_be_changed_while_an_agent_has_it() -> None:
    world = World()
    running = world.running(locks=[lock("a")])

    with world.refuses("TASK_STATE_CONFLICT"):
        update(world, running, lock("b"))


def test_a_change_to_what_is_no_path_is_refused() -> None:
    world = World()
    task_id = world.create()

    with world.refuses("REQUEST_INVALID") as refusals:
        update(world, task_id, lock("/b"))

    assert refusals[0].violations[0][0] == "task.locks[0].path"
