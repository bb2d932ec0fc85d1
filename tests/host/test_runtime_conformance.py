"""What every runtime must do, programs or not. Those with programs are tried further in tests/runtimes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kapell import runtimes
from kapell._worker.outcome import TaskFailed
from kapell._worker.values import to_value
from kapell.runtimes import Runtime
from kapell.v1.agent_pb2 import AgentSpec, CommandRuntime, LlmRuntime, PythonRuntime
from kapell.v1.task_pb2 import Task

from tests.host.attempts import RecordedAttempt
from tests.runtimes.casts import CASTS
from tests.support.model_endpoint import Refusal, Reply, model_endpoint

HERE = Path(__file__).parent
MODELS: dict[str, tuple[Reply | Refusal, ...]] = {
    "answers": (Reply(text="hello"),),
    "fails": (Refusal(status=500),),
    "hangs": (Reply(text="up\nup\n", hangs=True),) * 2,
}

# For each runtime: one that answers "hello", one that fails, one that logs a line and goes on for ever.
SPECS: dict[str, tuple[AgentSpec, ...]] = {
    "command": (
        AgentSpec(command=CommandRuntime(argv=["printf", "hello"])),
        AgentSpec(command=CommandRuntime(argv=["false"])),
        AgentSpec(command=CommandRuntime(argv=["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"])),
    ),
    "llm": tuple(AgentSpec(llm=LlmRuntime(model=name)) for name in ("answers", "fails", "hangs")),
    "python": tuple(
        AgentSpec(agent_types=["played"], python=PythonRuntime(app=f"python_app:{name}", path=str(HERE)))
        for name in ("answers", "fails", "hangs")
    ),
}
SPECS["command"][2].command.kill_grace.FromMilliseconds(100)

TASK = Task(task_id="task_one", agent_type="played", prompt="hello")


@pytest.fixture(params=SPECS)
async def specs(request: pytest.FixtureRequest) -> AsyncIterator[tuple[AgentSpec, ...]]:
    """The specs of a runtime; models are scripted and on loopback."""
    async with contextlib.AsyncExitStack() as models:
        for spec in SPECS[request.param]:
            if spec.HasField("llm"):
                model = await models.enter_async_context(model_endpoint(*MODELS[spec.llm.model]))
                spec.llm.base_url = f"{model.url}/v1"
        yield SPECS[request.param]


@pytest.fixture
async def endless(specs: tuple[AgentSpec, ...], tmp_path: Path) -> AsyncIterator[Runtime]:
    runtime = build(specs[2], tmp_path)
    yield runtime
    await runtime.close()


def build(spec: AgentSpec, tmp_path: Path) -> Runtime:
    return runtimes.build(spec, agent_id="agent_one", directory=tmp_path)


def test_every_runtime_of_the_api_is_there_and_tested() -> None:
    in_the_api = {field.name for field in AgentSpec.DESCRIPTOR.oneofs_by_name["runtime"].fields}

    assert set(runtimes._RUNTIMES) == in_the_api == set(SPECS) | set(CASTS)


def test_runtime_this_version_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has: acp, command, llm, python"):
        build(AgentSpec(), tmp_path)


async def test_result_is_json(specs: tuple[AgentSpec, ...], tmp_path: Path) -> None:
    runtime = build(specs[0], tmp_path)

    result = await runtime.run(RecordedAttempt(), TASK)
    await runtime.close()

    assert result == "hello"
    assert to_value(result) is not None


async def test_failure_is_a_task_failure(specs: tuple[AgentSpec, ...], tmp_path: Path) -> None:
    runtime = build(specs[1], tmp_path)

    with pytest.raises(TaskFailed):
        await runtime.run(RecordedAttempt(), TASK)

    await runtime.close()


async def test_two_attempts_run_side_by_side_and_are_stopped_apart(endless: Runtime) -> None:
    attempts = [RecordedAttempt(task_id="task_one"), RecordedAttempt(task_id="task_two")]
    runs = [asyncio.create_task(endless.run(attempt, TASK)) for attempt in attempts]
    for attempt in attempts:
        await attempt.until_stdout(1)

    attempts[0].cancel()
    await stopped(runs[0])
    is_running = not runs[1].done()
    attempts[1].lose()
    await stopped(runs[1])

    assert is_running


async def test_cancelled_caller_stops_the_work(endless: Runtime) -> None:
    attempt = RecordedAttempt()
    running = asyncio.create_task(endless.run(attempt, TASK))
    await attempt.until_stdout(1)

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, 20)


async def stopped(running: asyncio.Task[object]) -> None:
    """The attempt ends, whatever it says of itself."""
    async with asyncio.timeout(20):
        await asyncio.wait((running,))
    with pytest.raises(TaskFailed):
        running.result()
