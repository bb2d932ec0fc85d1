"""Templates: list and get with a thousand of them, and a task made from one against a task with its prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kapell.v1.task_pb2 import CreateTaskRequest, TaskSpec
from kapell.v1.template_pb2 import (
    PARAMETER_TYPE_STRING,
    CreateTemplateRequest,
    GetTemplateRequest,
    ListTemplatesRequest,
    TemplateSpec,
)

from tests.bench import messages
from tests.bench.load import RawClient, in_flight, same
from tests.bench.place import kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark

TEMPLATES = "/kapell.v1.TemplateService/"
COUNT = 1000
GOAL_MS = 20.0


@benchmark("templates")
async def templates(setting: Setting) -> Sequence[Row]:
    """One call in flight; the figures include the way through gRPC."""
    found: dict[str, list[float]] = {}
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            await _fill(client)
            review = TaskSpec(template="code-review")
            review.parameters.update({"files": ["src/a.py", "src/b.py"]})
            calls = {
                "list of 50": (TEMPLATES + "ListTemplates", ListTemplatesRequest(page_size=50)),
                "list of 1000": (TEMPLATES + "ListTemplates", ListTemplatesRequest(page_size=1000)),
                "get": (TEMPLATES + "GetTemplate", GetTemplateRequest(template="code-review")),
                "task": (messages.TASKS + "CreateTask", CreateTaskRequest(task=messages.spec())),
                "task of a template": (messages.TASKS + "CreateTask", CreateTaskRequest(task=review)),
            }
            for _ in range(setting.repetitions):
                for name, (method, request) in calls.items():
                    call, data = client.unary(method), same(request.SerializeToString())
                    load = await in_flight(call, data, width=1, seconds=setting.seconds / 2)
                    found.setdefault(name, []).append(load.percentile(50) * 1e3)
    lists = [
        Row(
            name=f"templates, {name}, {COUNT} of users, p50",
            unit="ms",
            figures=found[name],
            compared=found[name],
            compared_unit="ms",
            goal=GOAL_MS,
        )
        for name in ("list of 50", "list of 1000", "get")
    ]
    made = Row(
        name="create a task of a template, p50",
        unit="ms",
        figures=found["task of a template"],
        floors=found["task"],
        goal=1.5,
        note="floor: a task with its prompt",
    )
    return [*lists, made]


async def _fill(client: RawClient) -> None:
    parameter = {"name": "subject", "rules": {"type": PARAMETER_TYPE_STRING}, "required": True}
    spec = TemplateSpec(
        agent_type=messages.AGENT_TYPE,
        description=messages.PROMPT,
        prompt=messages.PROMPT + "{subject}",
        parameters=[parameter],  # type: ignore[list-item]
    )
    call = client.unary(TEMPLATES + "CreateTemplate")
    requests = [CreateTemplateRequest(template_id=f"mine-{number}", spec=spec) for number in range(COUNT)]
    for start in range(0, COUNT, 50):
        await asyncio.gather(*(call(request.SerializeToString()) for request in requests[start : start + 50]))
