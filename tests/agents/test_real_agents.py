"""The coding agents that people use, driven by their own profiles against a scripted model: no account, an empty home.

`make agents` installs them; what is not there is skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kapell import Client
from kapell._worker.values import from_value
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE, AgentSpec
from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED
from kapell_server.profiles.built_in import built_in

from tests.host.test_host_real_server import client as client  # a fixture
from tests.host.test_runtimes_real_server import lines_of
from tests.support.model_endpoint import Call, ModelEndpoint, Refusal, Reply, model_endpoint

INSTALLED = Path(__file__).parents[2] / ".venv/agents"
NODE_PROGRAMS = INSTALLED / "node_modules/.bin"
PROGRAMS = [NODE_PROGRAMS, INSTALLED / "aider/bin", INSTALLED / "mini/bin"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]


def literal(text: str) -> str:
    """Text that a profile takes as it is."""
    return text.replace("{", "{{").replace("}", "}}")


def claude(spec: AgentSpec, url: str, home: Path) -> None:
    spec.command.env.update(
        {"ANTHROPIC_BASE_URL": url, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "CLAUDE_CODE_MAX_RETRIES": "0"}
    )
    spec.command.env_from_secret["ANTHROPIC_API_KEY"] = "model-key"


def codex(spec: AgentSpec, url: str, home: Path) -> None:
    provider = (
        f'{{name="scripted",base_url="{url}/v1",wire_api="responses",env_key="SCRIPTED_KEY",stream_max_retries=0}}'
    )
    # Its own sandbox needs rights that test machines do not give.
    options = ["-c", 'model_provider="scripted"', "-c", literal(f"model_providers.scripted={provider}"), "-m", "small"]
    for argv in (spec.command.argv, spec.command.resume_argv):
        told = [argument.replace("workspace-write", "danger-full-access") for argument in argv]
        at = told.index("--json")
        argv[:] = [*told[:at], *options, *told[at:]]
    spec.command.env_from_secret["SCRIPTED_KEY"] = "model-key"


def gemini(spec: AgentSpec, url: str, home: Path) -> None:
    settings = home / ".gemini/settings.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"security": {"auth": {"selectedType": "gemini-api-key"}}}))
    spec.command.argv.extend(["-m", "gemini-2.5-pro"])
    spec.command.env["GOOGLE_GEMINI_BASE_URL"] = url
    spec.command.env_from_secret["GEMINI_API_KEY"] = "model-key"


def opencode(spec: AgentSpec, url: str, home: Path) -> None:
    options = {"baseURL": f"{url}/v1", "apiKey": "any"}
    provider = {"npm": "@ai-sdk/openai-compatible", "options": options, "models": {"small": {"name": "small"}}}
    config = {"provider": {"scripted": provider}, "small_model": "scripted/small", "autoupdate": False}
    for argv in (spec.command.argv, spec.command.resume_argv):
        argv.extend(["--model", "scripted/small"])
    spec.command.env.update(
        {"OPENCODE_CONFIG_CONTENT": literal(json.dumps(config)), "OPENCODE_DISABLE_MODELS_FETCH": "1"}
    )


def aider(spec: AgentSpec, url: str, home: Path) -> None:
    spec.command.argv.extend(["--model", "openai/small", "--edit-format", "whole"])
    spec.command.env.update({"OPENAI_API_BASE": f"{url}/v1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"})
    spec.command.env_from_secret["OPENAI_API_KEY"] = "model-key"


def mini(spec: AgentSpec, url: str, home: Path) -> None:
    spec.command.argv.extend(["--model", "openai/small"])
    spec.command.env.update({"OPENAI_API_BASE": f"{url}/v1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"})
    spec.command.env_from_secret["OPENAI_API_KEY"] = "model-key"


@dataclass(frozen=True)
class Driven:
    """How a program is pointed at the scripted model, and what the model says to have a file written."""

    point: Callable[[AgentSpec, str, Path], None]
    write: Call | str
    """A tool that it calls, or what the model says to the same end."""
    before: tuple[Reply, ...] = field(default=())
    """What it asks first, whatever the task is."""
    last: Call | None = None
    """A tool by which the model ends its work with "All done"; None where it only says so."""
    answers: int = 2
    """How often the model is asked until the work is done."""


SUBMIT = Call("bash", {"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && echo All done"})
AGENTS = {
    "aider": Driven(aider, "made.txt\n```\nmade\n```\n\nAll done", answers=1),
    "claude": Driven(claude, Call("Write", {"file_path": "made.txt", "content": "made\n"})),
    "codex": Driven(codex, Call("exec_command", {"cmd": "echo made > made.txt"})),
    "gemini": Driven(gemini, Call("write_file", {"file_path": "made.txt", "content": "made\n"})),
    "mini": Driven(mini, Call("bash", {"command": "echo made > made.txt"}), last=SUBMIT),
    "opencode": Driven(
        opencode, Call("write", {"filePath": "made.txt", "content": "made\n"}), (Reply(text="A title"),)
    ),
}


def script(name: str, *rest: Reply | Refusal) -> tuple[Reply | Refusal, ...]:
    """The file is written first."""
    write = AGENTS[name].write
    said = "I will make it" if isinstance(write, Call) else f"I will make it\n\n{write}"
    calls = (write,) if isinstance(write, Call) else ()
    return (*AGENTS[name].before, Reply(text=said, calls=calls, input_tokens=200, output_tokens=33), *rest)


async def spawned(client: Client, name: str, model: ModelEndpoint, place: Path) -> Path:
    """Spawns an agent of the built-in profile; gives the directory it works in."""
    if not any((place / name).exists() for place in PROGRAMS):
        pytest.skip(f"{name} is not in {INSTALLED}: make agents")
    home, work = place / "home", place / "work"
    home.mkdir()
    work.mkdir()
    await client.secrets.set("model-key", "sk-no-key-at-all")
    spec = built_in()[name].spec
    spec.command.working_directory = str(work)
    spec.command.env.update(
        {"HOME": str(home), "PATH": ":".join([*map(str, PROGRAMS), "/usr/local/bin:/usr/bin:/bin"])}
    )
    AGENTS[name].point(spec, model.url, home)
    agent = await client.agents.spawn(spec=spec, wait=20)
    assert agent.state == AGENT_STATE_ACTIVE, agent.state_reason
    return work


@pytest.mark.parametrize("name", AGENTS)
async def test_a_task_becomes_a_file_a_result_and_usage(client: Client, tmp_path: Path, name: str) -> None:
    last = AGENTS[name].last
    ending = Reply(text="All done", calls=(last,) if last else (), input_tokens=100, output_tokens=10)
    async with model_endpoint(*script(name, ending)) as model:
        work = await spawned(client, name, model, tmp_path)
        task = await client.tasks.run(name, "Make made.txt", max_attempts=1)
        said = await lines_of(client, task.task_id)

    assert task.state == TASK_STATE_SUCCEEDED, (task.failure, said)
    assert str(from_value(task.result)).endswith("All done")
    assert (work / "made.txt").read_text() == "made\n"
    assert "I will make it" in said
    assert not [line for line in said if line.startswith('{"')]
    records = (await client.usage.list(task_ids=[task.task_id])).records
    tokens = [record.tokens for record in records]
    assert sum(one.uncached_input_tokens for one in tokens) == (200, 300)[AGENTS[name].answers - 1]
    assert sum(one.output_tokens for one in tokens) == (33, 43)[AGENTS[name].answers - 1]
    assert all("Make made.txt" in json.dumps(asked.body) for asked in model.asked)


@pytest.mark.parametrize("name", ["claude", "codex", "opencode"])
async def test_a_retry_continues_the_session_of_the_attempt_that_failed(
    client: Client, tmp_path: Path, name: str
) -> None:
    broken = Refusal(status=400, message="out of order")
    async with model_endpoint(*script(name, broken, Reply(text="All done"))) as model:
        await spawned(client, name, model, tmp_path)
        task = await client.tasks.run(name, "Make made.txt", max_attempts=2)
        async with client.tasks.logs(task.task_id) as log:
            said = [entry.text async for entry in log]

    assert task.state == TASK_STATE_SUCCEEDED, (task.failure, said)
    assert task.attempt == 2
    assert any(line.startswith("continues session ") for line in said)
    last = json.dumps(model.asked[-1].body)
    assert "I will make it" in last
    records = (await client.usage.list(task_ids=[task.task_id])).records
    assert sum(record.tokens.uncached_input_tokens for record in records) == 300


@pytest.mark.parametrize("name", AGENTS)
async def test_a_key_that_is_refused_is_told_with_a_hint(client: Client, tmp_path: Path, name: str) -> None:
    refused = Refusal(
        status=401,
        body=json.dumps(
            {"type": "error", "error": {"type": "authentication_error", "message": "bad key", "code": 401}}
        ),
    )
    async with model_endpoint(*[refused] * 20) as model:
        await spawned(client, name, model, tmp_path)
        task = await client.tasks.run(name, "Make made.txt")

    assert (task.failure.reason, task.attempts_used) == ("AUTH_MISSING", 1), task.failure
    assert "env_from_secret" in task.failure.message
