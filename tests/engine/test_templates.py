"""Templates on the real engine and both databases: versions, deletion, restarts, reads and Kapell's own."""

from __future__ import annotations

from typing import Any

import pytest
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_SUCCEEDED,
    BatchCreateTasksRequest,
    CancelTaskRequest,
    CreateTaskRequest,
    ListTasksRequest,
    ListTasksResponse,
    TaskFilter,
    TaskSpec,
)
from kapell.v1.template_pb2 import (
    PARAMETER_TYPE_STRING,
    CreateTemplateRequest,
    DeleteTemplateRequest,
    ListTemplatesRequest,
    ListTemplateVersionsRequest,
    SetTemplateAliasRequest,
    TemplateFilter,
    TemplateSpec,
    TemplateStep,
    UpdateTemplateRequest,
)
from kapell_server.domain.errors import KapellError
from kapell_server.shipped_templates import install_templates, shipped

from tests.support.live_engine import LiveEngine

SHIPPED = [template_id for template_id, _ in shipped()]


def spec(prompt: str = "Greet {name}", **fields: Any) -> TemplateSpec:
    name = {"name": "name", "rules": {"type": PARAMETER_TYPE_STRING}, "required": True}
    return TemplateSpec(**{"agent_type": "shell", "prompt": prompt, "parameters": [name], **fields})


def create(template_id: str = "greet", **fields: Any) -> CreateTemplateRequest:
    return CreateTemplateRequest(template_id=template_id, spec=spec(**fields))


def task(template: str = "greet", **fields: Any) -> CreateTaskRequest:
    return CreateTaskRequest(task=TaskSpec(template=template, parameters={"name": "Ada"}, **fields))


async def prompt_of(live: LiveEngine, template: str) -> str:
    made = (await live.call(task(template))).task
    return (await live.task(made.task_id)).prompt


async def test_every_version_outlives_changes_and_restarts(live: LiveEngine) -> None:
    await live.call(create())
    await live.call(UpdateTemplateRequest(template_id="greet", spec=spec("Hail {name}")))
    await live.call(SetTemplateAliasRequest(template_id="greet", alias="old", version=1))

    await live.crash()

    assert await prompt_of(live, "greet") == "Hail Ada"
    assert await prompt_of(live, "greet@old") == "Greet Ada"
    old = await live.engine.reads.templates.get("greet", "old")
    assert (old.version, old.latest_version, old.spec.prompt) == (1, 2, "Greet {name}")
    versions = await live.engine.reads.templates.versions(ListTemplateVersionsRequest(template_id="greet"))
    assert [(version.version, version.spec.prompt) for version in versions.versions] == [(2, ""), (1, "")]


async def test_a_task_made_before_a_change_keeps_its_prompt(live: LiveEngine) -> None:
    await live.call(create())
    made = (await live.call(task())).task

    await live.call(UpdateTemplateRequest(template_id="greet", spec=spec("Hail {name}")))

    read = await live.task(made.task_id)
    assert (read.prompt, read.template_version) == ("Greet Ada", 1)


async def test_live_tasks_keep_a_template_also_after_a_restart(live: LiveEngine) -> None:
    await live.call(create())
    made = (await live.call(task())).task
    await live.crash()

    refusal = await live.refusal(DeleteTemplateRequest(template_id="greet"))
    await live.call(CancelTaskRequest(task_id=made.task_id))
    await live.call(DeleteTemplateRequest(template_id="greet"))

    assert refusal.reason_name == "TEMPLATE_IN_USE"
    with pytest.raises(KapellError, match="was not found"):
        await live.engine.reads.templates.get("greet", "latest")


def with_steps(**fields: Any) -> CreateTemplateRequest:
    steps = [
        TemplateStep(name="plan", prompt="Plan for {name}"),
        TemplateStep(name="draw", prompt="Draw for {name}", when="name is Eve"),
        TemplateStep(name="build", prompt="Build {deps.plan.result} {deps.draw.result}", depends_on=["plan", "draw"]),
    ]
    return create(prompt="{name}: {deps.build.result}", steps=steps, **fields)


async def test_a_task_with_steps_is_worked_off_over_restarts(live: LiveEngine) -> None:
    await live.call(with_steps())
    made = (await live.call(task())).task
    await live.crash()

    worker = await live.register("shell")
    prompts: list[str] = []
    for result in ("a plan", "a door", "the end"):
        offer = await live.offer(worker)
        prompts.append(offer.task.prompt)
        await live.complete(offer, result)
        await live.restart()

    assert prompts == ["Plan for Ada", "Build a plan (step draw was left out)", "Ada: a door"]
    ended = await live.task(made.task_id)
    assert (ended.state, ended.result.string_value) == (TASK_STATE_SUCCEEDED, "the end")
    request = ListTasksRequest(filter=TaskFilter(parent_task_id=made.task_id))
    steps = ListTasksResponse.FromString(await live.engine.reads.list_tasks(request))
    assert sorted(step.display_name for step in steps.tasks) == ["build: greet", "plan: greet"]


async def test_steps_are_created_all_or_none_and_once_for_a_request_id(live: LiveEngine) -> None:
    await live.call(with_steps())
    again = CreateTaskRequest(task=TaskSpec(template="greet", parameters={"name": "Ada"}), request_id="once")
    bad = BatchCreateTasksRequest(tasks=[again.task, TaskSpec(template="greet")])

    answers = await live.together(again, bad, again)

    assert [answers[0].replayed, answers[2].replayed] == [False, True]
    assert answers[0].task == answers[2].task
    assert isinstance(answers[1], KapellError)
    assert await live.event_names(tasks_only=True) == ["task.created"] * 3


async def test_a_cancelled_task_takes_its_steps_along_also_after_a_crash(live: LiveEngine) -> None:
    await live.call(with_steps())
    made = (await live.call(task())).task
    await live.crash()

    await live.call(CancelTaskRequest(task_id=made.task_id))

    request = ListTasksRequest(filter=TaskFilter(root_task_id=made.task_id))
    steps = ListTasksResponse.FromString(await live.engine.reads.list_tasks(request))
    assert [step.state for step in steps.tasks] == [TASK_STATE_CANCELLED] * 2


async def test_only_reading_one_template_shows_the_prompts_of_its_steps(live: LiveEngine) -> None:
    await live.call(with_steps())

    versions = await live.engine.reads.templates.versions(ListTemplateVersionsRequest(template_id="greet"))
    page = await live.engine.reads.templates.list(ListTemplatesRequest())
    read = await live.engine.reads.templates.get("greet", "latest")

    for shown in (versions.versions[0], page.templates[0]):
        assert [(step.name, step.prompt) for step in shown.spec.steps] == [("plan", ""), ("draw", ""), ("build", "")]
    assert read.spec.steps[0].prompt == "Plan for {name}"


async def test_one_batch_may_create_use_change_and_delete(live: LiveEngine) -> None:
    answers = await live.together(
        create(),
        task(),
        UpdateTemplateRequest(template_id="greet", spec=spec("Hail {name}")),
        task(),
        DeleteTemplateRequest(template_id="greet"),
        DeleteTemplateRequest(template_id="greet", force=True),
        create(prompt="Anew {name}"),
        task(),
    )

    in_use = answers[4]
    assert isinstance(in_use, KapellError)
    assert in_use.metadata["tasks"] == "2"
    await live.crash()
    prompts = [(await live.task(answers[at].task.task_id)).prompt for at in (1, 3, 7)]
    assert prompts == ["Greet Ada", "Hail Ada", "Anew Ada"]
    assert await prompt_of(live, "greet") == "Anew Ada"
    versions = await live.engine.reads.templates.versions(ListTemplateVersionsRequest(template_id="greet"))
    assert len(versions.versions) == 1


async def test_every_change_is_an_event_with_the_template_but_not_its_prompt(live: LiveEngine) -> None:
    await live.call(create())
    await live.call(SetTemplateAliasRequest(template_id="greet", alias="stable", version=1))
    await live.call(DeleteTemplateRequest(template_id="greet"))

    records = await live.log()

    assert await live.event_names() == ["template.created", "template.aliased", "template.deleted"]
    assert [record.resource_id for record in records] == ["greet"] * 3
    assert all(record.resource.spec.prompt == "" for record in records)  # type: ignore[union-attr]
    snapshot, _ = await live.engine.reads.snapshot("template", 0, 1_000_000, 100)
    assert snapshot == []


async def test_kapells_own_are_installed_once_and_listed_by_name(live: LiveEngine) -> None:
    await install_templates(live.engine)
    head = live.engine.revision
    await live.restart()
    await install_templates(live.engine)

    page = await live.engine.reads.templates.list(ListTemplatesRequest())

    assert live.engine.revision == head
    assert [template.template_id for template in page.templates] == SHIPPED
    assert all(template.built_in and template.latest_version == 1 for template in page.templates)


async def test_lists_are_filtered_and_paged(live: LiveEngine) -> None:
    await install_templates(live.engine)
    for number in range(5):
        tags = ["even"] if number % 2 == 0 else []
        await live.call(create(f"mine-{number}", tags=tags, description=f"The number {number}."))
    reads = live.engine.reads.templates

    async def ids(**wanted: Any) -> list[str]:
        page = await reads.list(ListTemplatesRequest(filter=TemplateFilter(**wanted)))
        return [template.template_id for template in page.templates]

    assert await ids(built_in=False) == [f"mine-{number}" for number in (4, 3, 2, 1, 0)]
    assert await ids(tags=["even"]) == ["mine-4", "mine-2", "mine-0"]
    assert await ids(text="NUMBER mine-3") == ["mine-3"]
    assert await ids(agent_types=["shell"], template_ids=["mine-1", "code-review"]) == ["mine-1"]
    first = await reads.list(ListTemplatesRequest(page_size=3))
    second = await reads.list(ListTemplatesRequest(page_size=3, page_token=first.next_page_token))
    assert [t.template_id for t in [*first.templates, *second.templates]][:6] == [
        *(f"mine-{number}" for number in (4, 3, 2, 1, 0)),
        SHIPPED[0],
    ]


async def test_tasks_are_found_by_their_template_and_its_history_is_theirs(live: LiveEngine) -> None:
    await live.call(create())
    worker = await live.register("shell", slots=4)
    for seconds in (2.0, 4.0):
        made = (await live.call(task())).task
        offer = await live.offer(worker)
        assert offer.task.task_id == made.task_id
        await live.beat(worker, offer)
        await live.advance(seconds)
        await live.complete(offer)
    cancelled = (await live.call(task())).task
    await live.call(CancelTaskRequest(task_id=cancelled.task_id))
    await live.create("shell")

    request = ListTasksRequest(filter=TaskFilter(template_ids=["greet"]))
    found = ListTasksResponse.FromString(await live.engine.reads.list_tasks(request))
    history = await live.engine.reads.templates.history("greet")

    assert [found.template_id for found in found.tasks] == ["greet"] * 3
    assert (history.tasks, len(history.seconds)) == (3, 2)
    assert [round(second) for second in history.seconds] == [2, 4]
    assert round(history.percentile(95)) == 4
