"""The python runtime: which app is loaded, what is said of one that cannot be, and how handlers are stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from kapell import runtimes
from kapell._worker.outcome import TaskFailed
from kapell.runtimes import Runtime
from kapell.v1.agent_pb2 import AgentSpec, PythonRuntime
from kapell.v1.task_pb2 import Task

from tests.host.attempts import RecordedAttempt

HERE = str(Path(__file__).parent)
TASK = Task(task_id="task_one", agent_type="played", prompt="hello")


def build(app: str, *agent_types: str, path: str = HERE) -> Runtime:
    spec = AgentSpec(agent_types=agent_types or ["played"], python=PythonRuntime(app=app, path=path))
    return runtimes.build(spec, agent_id="agent_one", directory=Path())


@pytest.mark.parametrize(
    ("app", "types", "says"),
    [
        ("no_such_module_anywhere:worker", ["played"], "cannot be imported"),
        ("python_app:nobody", ["played"], "nobody of python_app is not there - it must be a kapell.Worker"),
        ("python_app:answer", ["played"], "is a function"),
        ("python_app:answers", ["played", "sung"], "has no handler for sung.*it has: played"),
        ("python_app:answers", ["sung"], "has no handler for sung"),
        ("broken_app:worker", ["played"], r"cannot be imported \(looked for in .* first\): RuntimeError: not now"),
    ],
)
def test_an_app_that_cannot_be_used_is_refused_in_words(tmp_path: Path, app: str, types: list[str], says: str) -> None:
    (tmp_path / "broken_app.py").write_text("raise RuntimeError('not now')")

    with pytest.raises(ValueError, match=says):
        build(app, *types, path=str(tmp_path) if "broken" in app else HERE)


def test_handlers_that_the_profile_leaves_out_are_named(tmp_path: Path) -> None:
    (tmp_path / "wide_app.py").write_text(
        "from kapell import Worker\n"
        "worker = Worker()\n"
        "@worker.task('a')\n@worker.task('b')\nasync def f(ctx, task): ...\n"
    )

    with pytest.raises(ValueError, match="leave out: b"):
        build("wide_app:worker", "a", path=str(tmp_path))


async def test_a_handler_with_a_grace_may_finish_when_its_task_is_cancelled() -> None:
    runtime, attempt = build("python_app:graceful"), RecordedAttempt()
    running = asyncio.create_task(runtime.run(attempt, TASK))
    await attempt.until_stdout(1)

    attempt.cancel()

    assert await asyncio.wait_for(running, 20) == "tidied"


async def test_a_lost_lease_leaves_no_grace() -> None:
    runtime, attempt = build("python_app:hangs"), RecordedAttempt()
    running = asyncio.create_task(runtime.run(attempt, TASK))
    await attempt.until_stdout(1)

    attempt.lose()

    with pytest.raises(TaskFailed) as caught:
        await asyncio.wait_for(running, 20)
    assert caught.value.reason == "CANCELLED"
