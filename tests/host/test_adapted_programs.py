"""The command runtime with an adapter: a real program whose output is events, from its start to the outcome."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from kapell._worker.outcome import TaskFailed
from kapell.runtimes._transcript import MAX_EVENT_BYTES
from kapell.runtimes.contract import Workspace
from kapell.v1 import agent_pb2
from kapell.v1.agent_pb2 import CommandRuntime
from kapell.v1.task_pb2 import Task

from tests.host.attempts import RecordedAttempt
from tests.host.test_adapters import TRANSCRIPTS, transcript
from tests.host.test_command import run, sh

CLAUDE = agent_pb2.PROGRAM_OUTPUT_CLAUDE
CODEX = agent_pb2.PROGRAM_OUTPUT_CODEX
SESSION = "01a206ad-5cf8-71a2-9671-4832116452fb"
TASK = Task(task_id="task_one", prompt="make it")
TASK.create_time.FromSeconds(1)


def printing(lines: list[str], *, then: str = "true") -> str:
    return f"printf '%s\\n' {shlex.join(lines)}; {then}"


async def test_log_progress_usage_and_result_come_from_the_events(tmp_path: Path) -> None:
    attempt = RecordedAttempt()

    result = await run(tmp_path, sh(printing(transcript("claude")), output=CLAUDE), TASK, attempt)

    assert result == "All done"
    assert "→ Write made.txt" in attempt.stdout
    assert attempt.progress_seen == [(None, "Write", "made.txt")]
    assert [set(one) for one in attempt.used] == [{"uuid", "session_id", "modelUsage"}]
    assert attempt.has_ended


async def test_a_result_in_json_is_read_from_the_last_message(tmp_path: Path) -> None:
    said = json.dumps({"type": "result", "is_error": False, "result": '{"ok": true}'})
    spec = sh(printing([said]), output=CLAUDE, result_format=agent_pb2.RESULT_FORMAT_JSON)

    assert await run(tmp_path, spec, TASK) == {"ok": True}


async def test_what_was_used_is_told_also_where_the_attempt_fails(tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    said = json.dumps({"type": "result", "is_error": True, "result": "broke", "uuid": "u", "modelUsage": {"m": {}}})

    with pytest.raises(TaskFailed) as caught:
        await run(tmp_path, sh(printing([said], then="exit 1"), output=CLAUDE), TASK, attempt)

    assert (caught.value.reason, caught.value.message) == ("AGENT_ERROR", "claude failed: broke")
    assert len(attempt.used) == 1


async def test_an_exit_code_that_no_event_explains_is_told_with_the_last_lines(tmp_path: Path) -> None:
    with pytest.raises(TaskFailed) as caught:
        await run(tmp_path, sh("echo no such option >&2; exit 2", output=CODEX), TASK)

    assert caught.value.reason == "EXIT_CODE"
    assert "no such option" in caught.value.message


async def test_events_are_read_on_where_the_log_is_full_and_a_line_is_endless(tmp_path: Path) -> None:
    attempt = RecordedAttempt(capacity=1)
    flood = f"{sys.executable} -c \"print('x' * {2 * MAX_EVENT_BYTES + 5})\""

    result = await run(tmp_path, sh(f"echo; {flood}; {printing(transcript('codex'))}", output=CODEX), TASK, attempt)

    assert result == "All done"
    assert len(attempt.used) == 1


async def test_a_line_that_is_too_long_is_left_out_with_one_remark(tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    flood = f"{sys.executable} -c \"print('x' * {3 * MAX_EVENT_BYTES})\""

    await run(tmp_path, sh(f"{flood}; {printing(transcript('codex'))}", output=CODEX), TASK, attempt)

    assert attempt.remarks[-1] == f"a line of more than {MAX_EVENT_BYTES} bytes was left out"
    assert max(map(len, attempt.stdout)) < 1000


def resumable(tmp_path: Path, *, fresh: str, resumed: str) -> CommandRuntime:
    """Runs one script first, and another one with the session as its argument where an attempt has left one."""
    spec = sh(fresh, output=CODEX, working_directory=str(tmp_path))
    literal = resumed.replace("{", "{{").replace("}", "}}")
    spec.resume_argv.extend(["sh", "-c", literal, "sh", "{session}"])
    return spec


async def fail_once(tmp_path: Path, spec: CommandRuntime) -> None:
    with pytest.raises(TaskFailed):
        await run(tmp_path, spec, TASK, RecordedAttempt(attempt=1))


async def test_a_retry_goes_on_with_the_session_of_the_attempt_that_broke_off(tmp_path: Path) -> None:
    spec = resumable(
        tmp_path,
        fresh=printing(transcript("codex")[:2], then="exit 1"),
        resumed=f'echo "$1"; {printing(transcript("codex"))}',
    )
    await fail_once(tmp_path, spec)
    second = RecordedAttempt(attempt=2)

    result = await run(tmp_path, spec, TASK, second)

    assert (result, second.stdout[0]) == ("All done", SESSION)
    assert f"continues session {SESSION} of an earlier attempt" in second.remarks


async def test_a_session_goes_on_in_the_tasks_workspace_and_in_no_other(tmp_path: Path) -> None:
    spec = resumable(
        tmp_path,
        fresh=printing(transcript("codex")[:2], then="exit 1"),
        resumed=printing(transcript("codex")),
    )
    spec.working_directory = ""
    (tmp_path / "tree").mkdir()
    workspace, other = Workspace(directory=tmp_path / "tree"), Workspace(directory=tmp_path)
    with pytest.raises(TaskFailed):
        await run(tmp_path, spec, TASK, RecordedAttempt(attempt=1, workspace=workspace))

    for elsewhere in (RecordedAttempt(attempt=2), RecordedAttempt(attempt=2, workspace=other)):
        with pytest.raises(TaskFailed):
            await run(tmp_path, spec, TASK, elsewhere)
        with pytest.raises(TaskFailed):
            await run(tmp_path, spec, TASK, RecordedAttempt(attempt=1, workspace=workspace))
    result = await run(tmp_path, spec, TASK, RecordedAttempt(attempt=3, workspace=workspace))

    assert result == "All done"


async def test_a_session_that_is_gone_lets_the_retry_begin_anew(tmp_path: Path) -> None:
    marker = tmp_path / "tried"
    spec = resumable(
        tmp_path,
        fresh=f"if test -e {marker}; then {printing(transcript('codex'))}; "
        f"else touch {marker}; {printing(transcript('codex')[:2])}; exit 1; fi",
        resumed="echo 'Error: no rollout found for thread id' >&2; exit 1",
    )
    await fail_once(tmp_path, spec)
    second = RecordedAttempt(attempt=2)

    result = await run(tmp_path, spec, TASK, second)

    assert result == "All done"
    assert f"session {SESSION} is not known any more: beginning anew" in second.remarks


@pytest.mark.parametrize("change", ["success", "another task", "another directory", "first attempt"])
async def test_a_session_is_not_continued_where_it_is_not_the_tasks_own(tmp_path: Path, change: str) -> None:
    done = tmp_path / "done"
    spec = resumable(
        tmp_path,
        fresh=f"{printing(transcript('codex')[:2])}; if test -e {done}; then {printing(transcript('codex'))}; fi",
        resumed="echo resumed",
    )
    await fail_once(tmp_path, spec)
    task, attempt = Task(), RecordedAttempt(attempt=2)
    task.CopyFrom(TASK)
    done.touch()
    match change:
        case "success":
            await run(tmp_path, spec, task, RecordedAttempt(attempt=1))
        case "another task":
            task.create_time.FromSeconds(2)
        case "another directory":
            (tmp_path / "other").mkdir()
            spec.working_directory = str(tmp_path / "other")
        case "first attempt":
            attempt = RecordedAttempt(attempt=1)

    assert await run(tmp_path, spec, task, attempt) == "All done"


async def test_a_session_id_that_is_none_is_never_an_argument(tmp_path: Path) -> None:
    evil = json.dumps({"type": "thread.started", "thread_id": "--dangerously-bypass-approvals-and-sandbox"})
    spec = resumable(tmp_path, fresh=printing([evil], then="exit 1"), resumed="echo resumed; exit 1")
    await fail_once(tmp_path, spec)
    second = RecordedAttempt(attempt=2)

    with pytest.raises(TaskFailed):
        await run(tmp_path, spec, TASK, second)

    assert "resumed" not in second.stdout


MINI = agent_pb2.PROGRAM_OUTPUT_MINI
OUTPUT = "--output={artifacts_dir}/trajectory.json"


async def test_what_a_program_keeps_of_its_run_is_read_and_becomes_an_artifact(tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    kept = TRANSCRIPTS / "mini.trajectory.json"
    script = f'cp {kept} "${{0#--output=}}"; {printing(transcript("mini"))}'.replace("{", "{{").replace("}", "}}")

    result = await run(tmp_path, CommandRuntime(argv=["sh", "-c", script, OUTPUT], output=MINI), TASK, attempt)

    assert result == "All done"
    assert len(attempt.used) == 2
    assert attempt.artifacts == {"trajectory.json": kept.read_bytes()}


@pytest.mark.parametrize("instead", ["mkfifo F", "ln -s /dev/zero F", "mkdir F", "true"])
async def test_what_is_no_file_in_its_place_is_said_and_not_waited_for(tmp_path: Path, instead: str) -> None:
    attempt = RecordedAttempt()
    script = f'F="${{{{0#--output=}}}}"; {instead.replace("F", chr(34) + "$F" + chr(34))}; exit 3'

    with pytest.raises(TaskFailed, match="code 3"):
        await run(tmp_path, CommandRuntime(argv=["sh", "-c", script, OUTPUT], output=MINI), TASK, attempt)

    assert any("cannot be read, so usage is not known" in remark for remark in attempt.remarks)
