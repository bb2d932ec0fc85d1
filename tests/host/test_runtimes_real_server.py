"""Agents of every runtime on a real server: what reaches the task, the ledger and the log."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from kapell import Client
from kapell._worker.values import from_value
from kapell.errors import KapellError
from kapell.v1 import agent_pb2
from kapell.v1.agent_pb2 import AgentSpec, CommandRuntime, LlmRuntime, PythonRuntime
from kapell.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from kapell.v1.usage_pb2 import UsageRecord

from tests.host.test_adapters import TRANSCRIPTS
from tests.host.test_host_real_server import client as client  # a fixture
from tests.support.model_endpoint import Refusal, Reply, model_endpoint

HERE = str(Path(__file__).parent)
KEY = "sk-very-secret-0123456789"


async def spawn(client: Client, spec: AgentSpec) -> agent_pb2.Agent:
    agent = await client.agents.spawn(spec=spec, wait=20)
    assert agent.state == agent_pb2.AGENT_STATE_ACTIVE, agent.state_reason
    return agent


async def lines_of(client: Client, task_id: str) -> list[str]:
    async with client.tasks.logs(task_id) as log:
        return [entry.text async for entry in log]


async def test_a_model_answers_with_its_key_after_a_limit_that_costs_no_attempt(client: Client) -> None:
    await client.secrets.set("model-key", KEY)
    refused = Refusal(status=429, headers={"Retry-After": "0.1"}, message=f"slow down, {KEY}")

    async with model_endpoint(refused, Reply(text="forty-two", input_tokens=30, output_tokens=4)) as model:
        llm = LlmRuntime(base_url=f"{model.url}/v1", model="small", api_key_secret="model-key")
        agent = await spawn(client, AgentSpec(agent_types=["answer"], llm=llm))
        task = await client.tasks.run("answer", "How many?", max_attempts=1)

    assert (task.state, from_value(task.result), task.attempts_used) == (TASK_STATE_SUCCEEDED, "forty-two", 1)
    assert [asked.headers["authorization"] for asked in model.asked] == [f"Bearer {KEY}"] * 2
    assert (agent.runtime, agent.display_name) == ("llm", "small")
    [record] = (await client.usage.list(task_ids=[task.task_id])).records
    assert (record.model, record.tokens.uncached_input_tokens, record.tokens.output_tokens) == ("small", 30, 4)
    assert KEY not in "\n".join(await lines_of(client, task.task_id))
    assert KEY not in str(await client.tasks.attempts(task.task_id))


async def test_a_key_that_is_not_there_is_told_before_anything_is_asked(client: Client) -> None:
    async with model_endpoint() as model:
        llm = LlmRuntime(base_url=f"{model.url}/v1", model="small", api_key_secret="nowhere")
        await spawn(client, AgentSpec(agent_types=["answer"], llm=llm))
        task = await client.tasks.run("answer", "How many?")

    assert (task.state, task.failure.reason) == (TASK_STATE_FAILED, "SECRET_MISSING")
    assert model.asked == []


async def test_a_model_over_plain_http_elsewhere_is_refused(client: Client) -> None:
    llm = LlmRuntime(base_url="http://example.com/v1", model="small")

    with pytest.raises(KapellError, match="base_url must be https"):
        await client.agents.spawn(spec=AgentSpec(agent_types=["answer"], llm=llm))


async def test_handlers_in_python_get_the_tasks_input_as_arguments(client: Client) -> None:
    python = PythonRuntime(app="python_app:forecasts", path=HERE)
    agent = await spawn(client, AgentSpec(agent_types=["forecast"], python=python))

    good = await client.tasks.run("forecast", "x", input={"city": "Oslo"})
    bad = await client.tasks.run("forecast", "x", input={"city": "Oslo", "days": "two"})

    assert (good.state, from_value(good.result)) == (TASK_STATE_SUCCEEDED, "Oslo 3")
    assert (bad.state, bad.failure.reason, bad.attempts_used) == (TASK_STATE_FAILED, "INPUT_INVALID", 1)
    assert "days must be a whole number, not 'two'" in bad.failure.message
    assert agent.runtime == "python"


async def test_an_app_that_cannot_be_loaded_says_why_in_the_agents_log(client: Client) -> None:
    python = PythonRuntime(app="python_app:forecasts", path=HERE)

    agent = await client.agents.spawn(spec=AgentSpec(agent_types=["news"], python=python), wait=20)
    async with client.agents.logs(agent.agent_id) as log:
        said = "\n".join([entry.text async for entry in log])

    assert agent.state == agent_pb2.AGENT_STATE_FAILED
    assert "has no handler for news" in said


async def test_what_a_coding_agent_uses_is_in_the_ledger_once(client: Client, tmp_path: Path) -> None:
    def printing(name: str) -> CommandRuntime:
        code = f"print(open({str(TRANSCRIPTS / name)!r}).read(), end='')"
        output = agent_pb2.ProgramOutput.Value(f"PROGRAM_OUTPUT_{name.split('.')[0].upper()}")
        return CommandRuntime(argv=[sys.executable, "-c", code, "-m", "p/some-model"], output=output)

    expected = {
        "claude": {("claude-opus-4-8[1m]", 300, 43), ("claude-haiku-4-5", 50, 7)},
        "codex": {("p/some-model", 160, 20)},
        "gemini": {("gemini-2.5-pro", 280, 50)},
        "opencode": {("some-model", 200, 33), ("some-model", 100, 10)},
    }
    found = {}
    for name in expected:
        await spawn(client, AgentSpec(agent_types=[name], command=printing(f"{name}.jsonl")))
        task = await client.tasks.run(name, "print")
        again = await client.tasks.run(name, "again")
        assert (task.state, again.state) == (TASK_STATE_SUCCEEDED, TASK_STATE_SUCCEEDED)
        records: list[UsageRecord] = []
        for one in (task, again):
            records += (await client.usage.list(task_ids=[one.task_id])).records
        found[name] = {
            (record.model, record.tokens.uncached_input_tokens, record.tokens.output_tokens) for record in records
        }
        assert len(records) == len(expected[name])

    assert found == expected
