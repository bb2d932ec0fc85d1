"""TemplateService on a real server: dry runs that tell the truth, events in the watch, and a thousand templates."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from kapell.v1 import event_pb2, queue_pb2, queue_pb2_grpc, task_pb2, template_pb2, template_pb2_grpc
from kapell.v1.dependency_pb2 import DEPENDENCY_FAILURE_ACTION_RUN
from kapell.v1.template_pb2 import (
    START_BLOCKER_KIND_AGENTS_BUSY,
    START_BLOCKER_KIND_LIMIT,
    START_BLOCKER_KIND_NO_AGENT,
    START_BLOCKER_KIND_QUEUE,
    START_BLOCKER_KIND_QUEUE_DRAINING,
    START_BLOCKER_KIND_QUEUE_PAUSED,
)
from kapell.v1.watch_pb2 import EVENT_KIND_TEMPLATE_CREATED, WatchOptions

from tests.rpc.conftest import failure
from tests.rpc.rpc_templates import spec
from tests.rpc.services import Services, register

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def templates(channel: grpc.aio.Channel) -> Any:
    return template_pb2_grpc.TemplateServiceStub(channel)


async def render(owner: Services, templates: Any, template: str = "greet") -> template_pb2.RenderTemplateResponse:
    request = template_pb2.RenderTemplateRequest(template=template, parameters={"name": "Ada"})
    rendered: template_pb2.RenderTemplateResponse = await owner(templates.RenderTemplate, request)
    return rendered


async def greet(owner: Services, templates: Any, **fields: Any) -> None:
    request = template_pb2.CreateTemplateRequest(template_id="greet", spec=spec(**{"agent_type": "test", **fields}))
    await owner(templates.CreateTemplate, request)


async def make(owner: Services) -> task_pb2.Task:
    wanted = task_pb2.TaskSpec(template="greet", parameters={"name": "Ada"})
    return (await owner(owner.tasks.CreateTask, task_pb2.CreateTaskRequest(task=wanted))).task


async def test_a_dry_run_tells_what_would_block_the_task_at_each_moment(
    owner: Services, templates: Any, channel: grpc.aio.Channel
) -> None:
    await greet(owner, templates)

    alone = await render(owner, templates)
    worker = await register(owner, channel, slots=1)
    free = await render(owner, templates)
    await make(owner)
    offer = await worker.lease()
    busy = await render(owner, templates)
    await make(owner)
    queued = await render(owner, templates)
    await worker.complete(offer)
    after = await render(owner, templates)

    assert [b.kind for b in alone.blockers] == [START_BLOCKER_KIND_NO_AGENT]
    assert list(free.blockers) == []
    assert [(b.kind, b.count) for b in busy.blockers] == [(START_BLOCKER_KIND_AGENTS_BUSY, 1)]
    assert [b.kind for b in queued.blockers] == [START_BLOCKER_KIND_AGENTS_BUSY, START_BLOCKER_KIND_QUEUE]
    assert (alone.history.tasks, after.history.tasks, after.history.succeeded) == (0, 1, 1)
    assert after.history.p50_duration == after.history.p95_duration


async def test_a_dry_run_is_what_the_task_becomes(owner: Services, templates: Any) -> None:
    await greet(owner, templates, priority=7, timeouts={"run_timeout": {"seconds": 60}})

    rendered = await render(owner, templates)
    made = await make(owner)

    read = (await owner(owner.tasks.GetTask, task_pb2.GetTaskRequest(task_id=made.task_id))).task
    assert (read.prompt, read.display_name, read.agent_type) == (
        rendered.prompt,
        rendered.display_name,
        rendered.agent_type,
    )
    assert (read.priority, read.retry_policy, read.timeouts, read.input) == (
        rendered.priority,
        rendered.retry_policy,
        rendered.timeouts,
        rendered.parameters,
    )


STEPS = [
    {"name": "plan", "prompt": "Plan for {name}", "agent_type": "planner"},
    {"name": "check", "prompt": "Check", "when": "name is Eve", "depends_on": ["plan"]},
    {
        "name": "build",
        "prompt": "Build {deps.plan.result} {deps.check.result}",
        "depends_on": ["check", "plan"],
        "on_failure": DEPENDENCY_FAILURE_ACTION_RUN,
        "priority": 9,
        "timeouts": {"run_timeout": {"seconds": 5}},
    },
]


async def test_a_dry_run_shows_the_steps_as_the_tasks_become(
    owner: Services, templates: Any, channel: grpc.aio.Channel
) -> None:
    await greet(owner, templates, prompt="{name}: {deps.build.result}", steps=STEPS, priority=7)

    rendered = await render(owner, templates)
    made = await make(owner)

    plan, check, build = rendered.steps
    assert (check.name, check.left_out, check.prompt) == ("check", True, "")
    assert (plan.prompt, plan.agent_type, plan.priority, list(plan.depends_on)) == ("Plan for Ada", "planner", 7, [])
    assert build.prompt == "Build {deps.plan.result} (step check was left out)"
    assert (build.on_failure, list(build.depends_on)) == (DEPENDENCY_FAILURE_ACTION_RUN, ["plan"])
    wanted = task_pb2.ListTasksRequest(filter=task_pb2.TaskFilter(parent_task_id=made.task_id))
    names = {entry.task_id: entry.name for entry in made.dependencies}
    tasks = {names[task.task_id]: task for task in (await owner(owner.tasks.ListTasks, wanted)).tasks}
    for step in (plan, build):
        task = tasks[step.name]
        read = (await owner(owner.tasks.GetTask, task_pb2.GetTaskRequest(task_id=task.task_id))).task
        assert (read.prompt, read.display_name, read.agent_type, read.priority, read.retry_policy, read.timeouts) == (
            step.prompt,
            step.display_name,
            step.agent_type,
            step.priority,
            step.retry_policy,
            step.timeouts,
        )
        assert [entry.name for entry in read.dependencies] == list(step.depends_on)


async def test_a_dry_run_tells_what_would_block_the_first_steps(
    owner: Services, templates: Any, channel: grpc.aio.Channel
) -> None:
    await greet(owner, templates, prompt="{name}", steps=STEPS, agent_type="test")

    alone = await render(owner, templates)
    await register(owner, channel, slots=1)
    half = await render(owner, templates)

    assert [blocker.message.split(".")[0] for blocker in alone.blockers] == [
        "No agent serves 'planner'",
        "No agent serves 'test'",
    ]
    assert [blocker.message.split(".")[0] for blocker in half.blockers] == ["No agent serves 'planner'"]


@pytest.fixture
def queues(channel: grpc.aio.Channel) -> Any:
    return queue_pb2_grpc.QueueServiceStub(channel)


def told(rendered: template_pb2.RenderTemplateResponse) -> list[tuple[int, str]]:
    return [(blocker.kind, blocker.message) for blocker in rendered.blockers]


async def limit_queue(owner: Services, queues: Any, agent_type: str = "test", **limits: Any) -> None:
    queue = queue_pb2.Queue(agent_type=agent_type, **limits)
    request = queue_pb2.UpdateQueueRequest(queue=queue, update_mask={"paths": ["max_running", "start_rate"]})
    await owner(queues.UpdateQueue, request)


async def test_a_dry_run_tells_of_queues_that_are_paused_or_draining(
    owner: Services, templates: Any, queues: Any, channel: grpc.aio.Channel
) -> None:
    await greet(owner, templates)
    await register(owner, channel)

    await owner(queues.PauseQueue, queue_pb2.PauseQueueRequest(agent_type="test", reason="a flood"))
    paused = await render(owner, templates)
    await owner(queues.DrainQueue, queue_pb2.DrainQueueRequest(reason="the move"))
    both = await render(owner, templates)
    await owner(queues.ResumeQueue, queue_pb2.ResumeQueueRequest())
    await owner(queues.ResumeQueue, queue_pb2.ResumeQueueRequest(agent_type="test"))
    free = await render(owner, templates)

    pause = (
        START_BLOCKER_KIND_QUEUE_PAUSED,
        "The queue test is paused: a flood. Nothing starts until it is resumed.",
    )
    drain = (
        START_BLOCKER_KIND_QUEUE_DRAINING,
        "All queues are draining: the move. New tasks are refused until it is resumed.",
    )
    assert told(paused) == [pause]
    assert told(both) == [drain, pause]
    assert told(free) == []


async def test_a_dry_run_tells_of_limits_that_are_reached(
    owner: Services, templates: Any, queues: Any, channel: grpc.aio.Channel
) -> None:
    await greet(owner, templates, concurrency_keys=["for:{name}"])
    worker = await register(owner, channel, slots=5)
    await make(owner)
    offer = await worker.lease()

    of_key = await render(owner, templates)
    await worker.complete(offer)
    free = await render(owner, templates)
    await limit_queue(owner, queues, max_running=0)
    full = await render(owner, templates)
    await limit_queue(owner, queues, start_rate={"count": 1, "period": {"seconds": 3600}})
    await make(owner)
    await worker.complete(await worker.lease())
    used_up = await render(owner, templates)

    [(kind, message)] = told(of_key)
    assert kind == START_BLOCKER_KIND_LIMIT
    assert message.startswith("Concurrency key for:Ada lets 1 task at a time run; task_")
    assert told(free) == []
    at_a_time = "The queue test is limited to 0 tasks at a time. Wait, or raise the limit of the queue."
    assert told(full) == [(START_BLOCKER_KIND_LIMIT, at_a_time)]
    [blocker] = used_up.blockers
    assert (blocker.kind, "at its limit of starts" in blocker.message) == (START_BLOCKER_KIND_LIMIT, True)
    assert blocker.until_time.ToNanoseconds() > offer.task.create_time.ToNanoseconds()


async def test_a_dry_run_tells_what_becomes_of_a_task_whose_key_is_taken(
    owner: Services, templates: Any, queues: Any, channel: grpc.aio.Channel
) -> None:
    limit = queue_pb2.ConcurrencyLimit(key="one", strategy=queue_pb2.CONCURRENCY_STRATEGY_SKIP)
    await owner(queues.SetConcurrencyLimit, queue_pb2.SetConcurrencyLimitRequest(limit=limit))
    steps = [{"name": "a", "prompt": "a", "concurrency_keys": ["one"]}]
    await greet(owner, templates, prompt="{name}", steps=steps, concurrency_keys=["two"])
    worker = await register(owner, channel, slots=5)
    for key in ("one", "two"):
        spec_of = task_pb2.TaskSpec(agent_type="test", prompt="x", concurrency_keys=[key])
        await owner(owner.tasks.CreateTask, task_pb2.CreateTaskRequest(task=spec_of))
        await worker.lease()

    [(kind, message)] = told(await render(owner, templates))

    assert (kind, message.rpartition(". ")[2]) == (START_BLOCKER_KIND_LIMIT, "A new task is skipped.")


async def test_validating_is_for_those_who_may_write(
    owner: Services, templates: Any, channel: grpc.aio.Channel
) -> None:
    worker = await register(owner, channel)
    request = template_pb2.ValidateTemplateRequest(spec=spec())

    found = await failure(worker.call(templates.ValidateTemplate, request))

    assert (found.code, found.info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")


async def test_validating_refuses_too_many_tags_as_an_answer(owner: Services, templates: Any) -> None:
    request = template_pb2.ValidateTemplateRequest(spec=spec(prompt="{name}" * 5_001), parameters={"name": "Ada"})

    answer = await owner(templates.ValidateTemplate, request)

    assert [problem.field for problem in answer.problems] == ["spec.prompt"]
    assert "more than 5,000 tags" in answer.problems[0].description


async def test_validating_renders_the_steps_or_names_what_is_wrong_with_them(owner: Services, templates: Any) -> None:
    right = template_pb2.ValidateTemplateRequest(spec=spec(steps=STEPS), parameters={"name": "Ada"})
    answer = await owner(templates.ValidateTemplate, right)
    right.spec.steps[1].depends_on[:] = ["build", "plann"]
    wrong = await owner(templates.ValidateTemplate, right)

    assert [(step.name, step.left_out) for step in answer.steps] == [("plan", False), ("check", True), ("build", False)]
    assert [problem.field for problem in wrong.problems] == [
        "spec.steps[1].depends_on[1]",
        "spec.steps[1].depends_on",
    ]
    assert not wrong.steps


@pytest.mark.parametrize(
    ("steps", "field"),
    [
        ([{"name": "Plan", "prompt": "x"}], "spec.steps[0].name"),
        ([{"name": f"s{n}", "prompt": "x"} for n in range(33)], "spec.steps"),
        (
            [{"name": "a", "prompt": "x"}, {"name": "b", "prompt": "x", "depends_on": ["a", "a"]}],
            "spec.steps[1].depends_on",
        ),
        ([{"name": "a", "prompt": "x", "priority": 1001}], "spec.steps[0].priority"),
        ([{"name": "a", "prompt": "x" * 65_537}], "spec.steps[0].prompt"),
        ([{"name": "a", "prompt": "x", "on_failure": 9}], "spec.steps[0].on_failure"),
    ],
)
async def test_steps_have_bounds(owner: Services, templates: Any, steps: list[dict[str, Any]], field: str) -> None:
    request = template_pb2.CreateTemplateRequest(template_id="bounded", spec=spec(steps=steps))

    found = await failure(owner(templates.CreateTemplate, request))

    assert list(found.violations) == [field]


async def test_every_wrong_parameter_comes_back_with_its_path(owner: Services, templates: Any) -> None:
    request = template_pb2.RenderTemplateRequest(
        template="code-review", parameters={"files": ["a", "../b"], "branch": 1, "check_secrity": True}
    )

    found = await failure(owner(templates.RenderTemplate, request))

    assert (found.code, found.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TEMPLATE_PARAMETERS_INVALID")
    assert found.violations == {
        "parameters.files[1]": "must not contain '..'",
        "parameters.branch": "must be text, not the number 1",
        "parameters.check_secrity": "is no parameter of the template; did you mean 'check_security'?",
    }


async def test_validating_lists_all_that_is_wrong_as_an_answer(owner: Services, templates: Any) -> None:
    wrong = spec(prompt="{nam} {if name}", task_name="{x")
    answer = await owner(templates.ValidateTemplate, template_pb2.ValidateTemplateRequest(spec=wrong))

    assert [problem.field for problem in answer.problems] == ["spec.prompt", "spec.task_name"]


async def test_a_watch_has_templates_in_its_snapshot_and_then_their_changes(owner: Services, templates: Any) -> None:
    options = WatchOptions(send_initial_state=True)
    stream = owner(owner.events.Watch, event_pb2.WatchRequest(options=options))
    snapshot: set[str] = set()
    async for message in stream:
        snapshot |= {event.template.template_id for event in message.events}
        if message.bookmark.snapshot_complete:
            break

    await greet(owner, templates)

    async for message in stream:
        if message.events:
            break
    stream.cancel()
    [event] = message.events
    assert "code-review" in snapshot
    assert (event.kind, event.template.template_id) == (EVENT_KIND_TEMPLATE_CREATED, "greet")
    assert event.template.spec.prompt == ""


async def test_a_thousand_templates_come_in_pages_without_gap_or_repeat(owner: Services, templates: Any) -> None:
    requests = [template_pb2.CreateTemplateRequest(template_id=f"mine-{number}", spec=spec()) for number in range(1000)]
    await asyncio.gather(*(owner(templates.CreateTemplate, request) for request in requests))

    found = [template.template_id async for template in _all(owner, templates)]

    assert len(found) == len(set(found)) == 1015


async def _all(owner: Services, templates: Any) -> Any:
    token = ""
    while True:
        page = await owner(templates.ListTemplates, template_pb2.ListTemplatesRequest(page_size=300, page_token=token))
        assert len(page.templates) <= 300
        for template in page.templates:
            yield template
        token = page.next_page_token
        if not token:
            return
