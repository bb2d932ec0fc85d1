"""`client.templates` and tasks made from templates, on the real server; and template files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kapell import Client, SyncClient, errors
from kapell._worker.values import from_value
from kapell.discovery import Endpoint
from kapell.task_specs import task_spec
from kapell.template_files import read_template, write_template
from kapell.v1.dependency_pb2 import DEPENDENCY_FAILURE_ACTION_RUN
from kapell.v1.task_pb2 import Task
from kapell.v1.template_pb2 import Template
from kapell.worker import TaskContext, TaskFailed, Worker
from kapell_server.testing import TestServer, serve

from tests.clients.working import working

GREET = """
template_id: greet
agent_type: nobody
tags: [hello]
timeouts: {run_timeout: 90s}
parameters:
  name: {type: string, minimum: 1, required: true}
  times: {type: int, minimum: 1, maximum: 3, default: 1}
  moods: {type: array, items: {type: enum, options: [calm, loud]}}
prompt: |
  Greet {name} {times} times.
  {if moods}
  Be {moods}.
  {end}
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    async with serve(tmp_path) as server:
        yield server


@pytest.fixture
async def client(server: TestServer) -> AsyncIterator[Client]:
    async with Client(server.address, token=server.admin_token) as client:
        yield client


async def test_a_template_lives_from_apply_to_delete(client: Client) -> None:
    template_id, spec = read_template(GREET)

    first = await client.templates.apply(template_id, spec)
    same = await client.templates.apply(template_id, spec)
    spec.prompt = "Hail {name}!"
    second = await client.templates.apply(template_id, spec)
    aliased = await client.templates.set_alias("greet", "first", 1)
    versions = await client.templates.versions("greet")
    unaliased = await client.templates.delete_alias("greet", "first")
    await client.templates.delete("greet")

    assert (first.latest_version, same.revision, second.latest_version) == (1, first.revision, 2)
    assert dict(aliased.aliases) == {"first": 1}
    assert not unaliased.aliases
    assert [version.version for version in versions.versions] == [2, 1]
    with pytest.raises(errors.NotFound) as caught:
        await client.templates.get("greet")
    assert caught.value.reason == "TEMPLATE_NOT_FOUND"


async def test_a_task_is_made_from_a_template(client: Client) -> None:
    await client.templates.apply(*read_template(GREET))

    task = await client.tasks.create(
        template="greet@1", parameters={"name": "Ada", "moods": ["calm", "loud"]}, priority=9
    )
    batch = await client.tasks.create_batch(
        [task_spec(template="greet", parameters={"name": name}) for name in ("Alan", "Grace")]
    )
    listed = await client.tasks.list(template_ids=["greet"])

    read = await client.tasks.get(task.task_id)
    assert read.prompt == "Greet Ada 1 times.\nBe calm, loud.\n"
    assert (read.template_id, read.template_version, read.priority) == ("greet", 1, 9)
    assert (read.input["name"], read.input["times"], read.agent_type) == ("Ada", 1, "nobody")
    assert {made.task_id for made in listed.tasks} == {task.task_id, *(made.task_id for made in batch.tasks)}


async def test_all_wrong_parameters_come_as_violations(client: Client) -> None:
    await client.templates.apply(*read_template(GREET))

    with pytest.raises(errors.InvalidRequest) as caught:
        await client.tasks.create(template="greet", parameters={"times": 4, "moods": ["calm", "sad"]})

    assert caught.value.reason == "TEMPLATE_PARAMETERS_INVALID"
    assert {violation.field for violation in caught.value.violations} == {
        "task.parameters.name",
        "task.parameters.times",
        "task.parameters.moods[1]",
    }


async def test_dry_runs_validation_and_clones(client: Client) -> None:
    template_id, spec = read_template(GREET)
    await client.templates.apply(template_id, spec)

    rendered = await client.templates.render("greet", {"name": "Ada"}, agent_type="other")
    validated = await client.templates.validate(spec, {"name": ""})
    clone = await client.templates.clone("greet", "greet-ada", defaults={"name": "Ada"}, display_name="Greet Ada")
    from_clone = await client.templates.render("greet-ada")

    assert (rendered.prompt, rendered.agent_type) == ("Greet Ada 1 times.\n", "other")
    assert [problem.field for problem in validated.problems] == ["parameters.name"]
    assert (clone.cloned_from, clone.spec.display_name) == ("greet@1", "Greet Ada")
    assert from_clone.prompt == rendered.prompt


async def test_lists_are_filtered_and_walked_page_by_page(client: Client) -> None:
    await client.templates.apply(*read_template(GREET))

    mine = await client.templates.list(built_in=False)
    all_of_them = [template.template_id async for template in client.templates.iterate(page_size=4)]

    assert [template.template_id for template in mine.templates] == ["greet"]
    assert len(all_of_them) == 16
    assert all_of_them[0] == "greet"
    assert all_of_them[1:] == sorted(all_of_them[1:])


async def test_template_events_are_watched_by_name(client: Client) -> None:
    async with client.watch(kinds=["template.created"], template_ids=["greet"]) as events:
        await client.templates.apply(*read_template(GREET))
        event = await anext(aiter(events))

    assert event.template.template_id == "greet"


def test_the_blocking_client_has_the_same_verbs(tmp_path: Path, server_process: object) -> None:
    server = server_process
    with SyncClient(server.address, token=server.admin_token) as client:  # type: ignore[attr-defined]
        client.templates.apply(*read_template(GREET))
        task = client.tasks.create(template="greet", parameters={"name": "Ada"})

        assert client.tasks.get(task.task_id).prompt == client.templates.render("greet", {"name": "Ada"}).prompt


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("- a", "must be a mapping with a template_id"),
        ("template_id: a\nprompt: [", "is not YAML"),
        ("template_id: a\nparameters: [x]", "parameters must be a mapping"),
        ("template_id: a\npromt: x", "line 2: there is no field 'promt'; did you mean 'prompt'?"),
        ("template_id: a\nparameters: {x: {type: strin}}", "'strin' is no type; there are string, text, int"),
        ("template_id: a\nparameters: {x: {tpye: string}}", "line 2: there is no field 'tpye'; did you mean 'type'?"),
        ("template_id: a\ntimeouts: {run_timeout: 5m}", "is no template"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(text: str, why: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"a\.yaml cannot be read") as caught:
        read_template(text, "a.yaml")

    assert why in str(caught.value)


async def test_what_is_exported_is_what_was_applied(client: Client) -> None:
    template_id, spec = read_template(GREET)
    await client.templates.apply(template_id, spec)

    exported = write_template(await client.templates.get("greet"))

    spec.display_name = "greet"
    assert read_template(exported) == (template_id, spec)


# -- steps -------------------------------------------------------------------------------------------

CHANGE = """
template_id: change
agent_type: worker
parameters:
  what: {type: text, required: true}
  careful: {type: bool, default: false}
steps:
  plan:
    prompt: |
      Plan {what}
  build: {depends_on: [plan], prompt: "Build {deps.plan.result.0}", agent_type: builder, priority: 0}
  review:
    description: Fresh eyes.
    depends_on: [build]
    when: careful
    on_failure: run
    retry_policy: {max_attempts: 1}
    timeouts: {run_timeout: 60s}
    labels: {kind: review}
    task_name: "Review {what}"
    prompt: "Review {deps.build.result}"
prompt: |
  {what}: {deps.build.result} {deps.review.result}
"""


def test_a_file_with_steps_is_written_and_read_as_it_was() -> None:
    template_id, spec = read_template(CHANGE)

    written = write_template(Template(template_id=template_id, spec=spec))

    assert read_template(written) == (template_id, spec)
    assert [step.name for step in spec.steps] == ["plan", "build", "review"]
    assert spec.steps[2].on_failure == DEPENDENCY_FAILURE_ACTION_RUN
    assert "    on_failure: run\n" in written
    assert "  plan:\n    prompt: |\n      Plan {what}\n" in written


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("[plan]", "steps must be a mapping of names to mappings"),
        ("{plan: x}", "steps must be a mapping of names to mappings"),
        ("{plan: {prompt: x, on_failure: explode}}", "on_failure is 'explode'; there are fail, skip, run"),
        ("{plan: {prmpt: x}}", "prmpt"),
    ],
)
def test_steps_that_cannot_be_read_are_told(steps: str, words: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=words):
        read_template(f"template_id: x\nagent_type: y\nprompt: z\nsteps: {steps}\n")


async def test_steps_are_worked_off_by_workers_and_give_each_other_their_results(
    server: TestServer, client: Client
) -> None:
    await client.templates.apply(*read_template(CHANGE))
    worker = Worker(Endpoint(address=server.address, token=server.admin_token), slots=4)
    told: list[tuple[str, str]] = []

    @worker.task("worker")
    @worker.task("builder")
    async def work(ctx: TaskContext, task: Task) -> object:
        told.append((task.agent_type, task.prompt))
        if task.display_name.startswith("Review"):
            raise TaskFailed("nothing to see", reason="BLIND")
        return [f"<{task.prompt.strip()}>"]

    async with working(worker):
        plain = await client.tasks.create(template="change", parameters={"what": "a door"})
        short = await client.tasks.wait(plain.task_id, timeout=30)
        careful = await client.tasks.create(template="change", parameters={"what": "a gate", "careful": True})
        long = await client.tasks.wait(careful.task_id, timeout=30)

    assert from_value(short.result) == ['<a door: ["<Build <Plan a door>>"] (step review was left out)>']
    assert from_value(long.result) == ['<a gate: ["<Build <Plan a gate>>"] (no result: review is FAILED)>']
    assert told[:3] == [
        ("worker", "Plan a door\n"),
        ("builder", "Build <Plan a door>"),
        ("worker", 'a door: ["<Build <Plan a door>>"] (step review was left out)\n'),
    ]
    tree = await client.tasks.tree(careful.task_id)
    assert sorted((node.depth, node.task.display_name) for node in tree.nodes) == [
        (0, "change"),
        (1, "Review a gate"),
        (1, "build: change"),
        (1, "plan: change"),
    ]
