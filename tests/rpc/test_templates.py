"""TemplateService on a real server: dry runs that tell the truth, events in the watch, and a thousand templates."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from kapell.v1 import event_pb2, task_pb2, template_pb2, template_pb2_grpc
from kapell.v1.template_pb2 import (
    START_BLOCKER_KIND_AGENTS_BUSY,
    START_BLOCKER_KIND_NO_AGENT,
    START_BLOCKER_KIND_QUEUE,
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

    assert len(found) == len(set(found)) == 1014


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
