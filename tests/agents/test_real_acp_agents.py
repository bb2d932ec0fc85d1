"""Real ACP agents in worktrees of a repository: they ask, people answer from elsewhere, and their work is merged.

`make agents` installs them; what is not there is skipped.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from kapell import Client
from kapell._worker.values import from_value
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE
from kapell.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_SUCCEEDED

from tests.agents.acp_agents import AGENTS, TASK_ID, Town, said, town
from tests.cli.conftest import shell_environment
from tests.host.test_host import is_running
from tests.host.test_host_real_server import client as client  # a fixture
from tests.support.model_endpoint import Reply, model_endpoint
from tests.support.server_process import ServerProcess
from tests.workspace.repositories import show

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170), pytest.mark.parametrize("name", AGENTS)]

# Qwen Code asks more often than its task needs.
DONE = [said("All done")] * 5


@pytest.fixture
def place(client: Client, server_process: ServerProcess, tmp_path: Path) -> Town:
    (tmp_path / "shell").mkdir()
    environment = shell_environment(tmp_path / "shell", KAPELL_DATA_DIR=str(server_process.data_dir))
    return town(client, server_process, tmp_path, environment)


async def test_a_file_is_written_with_leave_from_another_terminal_and_merged(place: Town, name: str) -> None:
    writes = AGENTS[name].writes(place.worktree / "made.txt", "made\n")
    async with model_endpoint(writes, *DONE, tools_only=True) as model:
        await place.spawn(name, model.url)
        idle = await place.listed()
        await place.task()
        asked = await place.asked()
        busy = await place.listed()
        card = await place.kapell("approval", "show", asked.approval_id)
        assert not (place.worktree / "made.txt").exists()
        await place.kapell("approval", "approve", asked.approval_id, "--yes")
        ended = await place.client.tasks.wait(TASK_ID)
        free = await place.listed()

    lines = await place.log()
    assert ended.state == TASK_STATE_SUCCEEDED, (ended.failure, lines)
    assert from_value(ended.result) == "All done"
    assert "+made" in card
    assert list(asked.content.paths) == [f"{place.worktree}/made.txt"]
    assert "I will make it" in lines
    for listed, activity in ((idle, "idle"), (busy, "needs approval"), (free, "idle")):
        assert activity in listed
    assert (place.worktree / "made.txt").read_text() == "made\n"
    kept = {artifact.name async for artifact in place.client.artifacts.iterate(TASK_ID)}
    assert kept == {"diff.patch", "commits.txt"}
    assert place.processes() == []

    await place.kapell("task", "merge", TASK_ID)
    assert show(place.shop, "main:made.txt") == "made"
    assert (place.shop / "made.txt").read_text() == "made\n"


async def test_what_was_used_is_in_the_ledger(place: Town, name: str) -> None:
    writes = AGENTS[name].writes(place.worktree / "made.txt", "made\n")
    async with model_endpoint(writes, *DONE, tools_only=True) as model:
        await place.spawn(name, model.url)
        await place.task()
        await place.client.approvals.decide(await place.asked(), "approve")
        await place.client.tasks.wait(TASK_ID)

    records = (await place.client.usage.list(task_ids=[TASK_ID])).records
    tokens = [(record.tokens.uncached_input_tokens, record.tokens.output_tokens) for record in records]
    if name == "opencode":
        # It tells the cost, 3 and 15 dollars a million, also of the title that it has a model think of.
        assert sum(record.cost.nanos for record in records) >= 300 * 3_000 + 43 * 15_000
        assert set(tokens) == {(0, 0)}
    else:
        assert (sum(given for given, _ in tokens), sum(made for _, made in tokens)) == (300, 43)
        assert {record.model for record in records} == {{"gemini": "gemini-2.5-pro", "qwen": "small"}[name]}


async def test_a_command_that_is_refused_does_not_run_and_its_reason_reaches_the_model(place: Town, name: str) -> None:
    mark = place.home / "mark"
    async with model_endpoint(AGENTS[name].runs(f"touch {mark}"), *DONE, tools_only=True) as model:
        await place.spawn(name, model.url)
        await place.task()
        asked = await place.asked()
        await place.kapell("approval", "deny", asked.approval_id, "-m", "marks are bad luck")
        ended = await place.client.tasks.wait(TASK_ID)

    assert asked.content.command == f"touch {mark}"
    assert ended.state == TASK_STATE_SUCCEEDED, ended.failure
    assert from_value(ended.result) == "All done"
    assert "marks are bad luck" in str(model.asked[-1].body)
    assert not mark.exists()


async def test_a_task_that_is_cancelled_while_the_model_thinks_leaves_no_process(place: Town, name: str) -> None:
    async with model_endpoint(Reply(text="I am thinking about it", hangs=True), tools_only=True) as model:
        agent = await place.spawn(name, model.url)
        await place.task()
        await asyncio.wait_for(model.hangs.wait(), 90)
        working = place.processes()
        await place.kapell("task", "cancel", TASK_ID)
        ended = await place.client.tasks.wait(TASK_ID)
        after = await place.client.agents.get(agent.agent_id)

    assert ended.state == TASK_STATE_CANCELLED
    assert working
    assert place.processes() == []
    assert (after.state, after.pid) == (AGENT_STATE_ACTIVE, agent.pid)


async def test_an_open_question_outlives_the_death_of_the_server(place: Town, name: str) -> None:
    writes = AGENTS[name].writes(place.worktree / "made.txt", "made\n")
    async with model_endpoint(writes, *DONE, tools_only=True) as model:
        await place.spawn(name, model.url)
        await place.task()
        asked = await place.asked()
        program = place.processes()[0]
        await asyncio.to_thread(place.server.restart)
        assert is_running(program)
        await place.kapell("approval", "approve", asked.approval_id, "--yes")
        ended = await place.client.tasks.wait(TASK_ID)

    assert (ended.state, ended.attempt) == (TASK_STATE_SUCCEEDED, 1), ended.failure
    assert (place.worktree / "made.txt").read_text() == "made\n"
    assert place.processes() == []
