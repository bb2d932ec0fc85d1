"""The command runtime with real programs: what they are given, what their exit means."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from kapell._locks.environment import KnownLock
from kapell._worker.outcome import TaskFailed
from kapell._worker.values import to_value
from kapell.runtimes import placeholders
from kapell.runtimes.command import Command
from kapell.v1.agent_pb2 import (
    RESULT_FORMAT_FILE,
    RESULT_FORMAT_JSON,
    RESULT_FORMAT_TEXT,
    CommandRuntime,
)
from kapell.v1.task_pb2 import Task

from tests.host.attempts import RecordedAttempt

TOKEN = "kapell_ticket_very-secret"


def a_task(prompt: str = "", input: Mapping[str, object] | None = None) -> Task:
    task = Task(task_id="task_one", agent_type="shell", prompt=prompt)
    if input is not None:
        task.input.CopyFrom(to_value(input).struct_value)
    return task


async def run(
    tmp_path: Path, spec: CommandRuntime, task: Task | None = None, attempt: RecordedAttempt | None = None
) -> object:
    runtime = Command(spec, agent_id="agent_one", directory=tmp_path / "agent")
    try:
        return await runtime.run(attempt or RecordedAttempt(), task or a_task())
    finally:
        await runtime.close()


async def failure_of(tmp_path: Path, spec: CommandRuntime, task: Task | None = None) -> TaskFailed:
    with pytest.raises(TaskFailed) as caught:
        await run(tmp_path, spec, task)
    return caught.value


def sh(script: str, **more: object) -> CommandRuntime:
    """Runs a shell script as it stands, braces and all."""
    literal = script.replace("{", "{{").replace("}", "}}")
    return CommandRuntime(argv=["sh", "-c", literal], **more)  # type: ignore[arg-type]


async def test_prompt_reaches_the_program_as_argument_and_its_output_is_the_result(tmp_path: Path) -> None:
    attempt = RecordedAttempt()

    result = await run(tmp_path, CommandRuntime(argv=["echo", "-n", "say {prompt}"]), a_task("héllo $HOME"), attempt)

    assert result == "say héllo $HOME"
    assert attempt.stdout == ["say héllo $HOME"]


async def test_the_end_of_the_program_is_told_whatever_its_exit(tmp_path: Path) -> None:
    succeeded, failed = RecordedAttempt(), RecordedAttempt()

    await run(tmp_path, sh("true"), attempt=succeeded)
    with pytest.raises(TaskFailed):
        await run(tmp_path, sh("exit 3"), attempt=failed)

    assert (succeeded.has_ended, failed.has_ended) == (True, True)


async def test_prompt_reaches_the_program_on_standard_input(tmp_path: Path) -> None:
    long = "x" * 200_000

    result = await run(tmp_path, CommandRuntime(argv=["wc", "-c"], stdin="{prompt}\n"), a_task(long))

    assert result == "200001"


async def test_program_without_stdin_reads_nothing(tmp_path: Path) -> None:
    assert await run(tmp_path, CommandRuntime(argv=["cat"])) == ""


async def test_every_placeholder_is_filled_in(tmp_path: Path) -> None:
    spec = CommandRuntime(
        argv=[
            "printf",
            "%s|",
            "{task_id}",
            "{attempt}",
            "{agent_type}",
            "{input}",
            "{input.name}",
            "{input.n}",
            "{{x}}",
        ]
    )

    result = await run(tmp_path, spec, a_task(input={"name": "Åsa", "n": 3, "list": [1, True, None]}))

    assert isinstance(result, str)
    *shown, last = result.split("|")[:-1]
    assert (shown[0], shown[1], shown[2], shown[4], shown[5], last) == ("task_one", "1", "shell", "Åsa", "3", "{x}")
    assert json.loads(shown[3]) == {"name": "Åsa", "n": 3, "list": [1, True, None]}


async def test_program_finds_its_task_in_the_environment(tmp_path: Path) -> None:
    script = 'echo "$KAPELL_TASK_ID $KAPELL_ATTEMPT $KAPELL_AGENT_ID $KAPELL_PROMPT $MORE"; cat "$KAPELL_INPUT_FILE"'
    spec = sh(script, env={"MORE": "got {prompt}"})

    result = await run(tmp_path, spec, a_task("go", {"k": "v"}))

    assert result == 'task_one 1 agent_one go got go\n{"k": "v"}'


async def test_a_program_is_told_the_locks_of_its_attempt_and_where_to_have_them_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAPELL_ADDRESS", "127.0.0.1:1")
    locks = [KnownLock(path="web/src", mode="exclusive", lock_id="lock_1", fencing_token=7)]

    told = await run(tmp_path, sh('echo "$KAPELL_LOCKS $KAPELL_ADDRESS"'), attempt=RecordedAttempt(locks=locks))
    without = await run(tmp_path, sh('echo "$KAPELL_LOCKS $KAPELL_ADDRESS"'))

    known = '[{"path":"web/src","mode":"exclusive","lock_id":"lock_1","fencing_token":7}]'
    assert (told, without) == (f"{known} 127.0.0.1:1", "[] ")


async def test_a_program_finds_the_token_of_its_attempt_unless_its_profile_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAPELL_ADDRESS", "127.0.0.1:1")
    spec = sh('echo "$KAPELL_ADDRESS $KAPELL_TOKEN" | tr a-z A-Z')
    attempt = RecordedAttempt(token="kapell_attempt_t.1.0.ff")

    found = await run(tmp_path, spec, attempt=attempt)
    await run(tmp_path, sh('echo "$KAPELL_TOKEN"'), attempt=attempt)
    spec.env["KAPELL_TOKEN"] = "of the profile"
    its_own = await run(tmp_path, spec, attempt=attempt)

    assert found == "127.0.0.1:1 KAPELL_ATTEMPT_T.1.0.FF"
    assert "kapell_attempt_" not in repr(attempt.lines)
    assert its_own == "127.0.0.1:1 OF THE PROFILE"


async def test_program_inherits_only_the_allow_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAPELL_TICKET", TOKEN)
    monkeypatch.setenv("KAPELL_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("SECRET_OF_THE_HOST", TOKEN)
    monkeypatch.setenv("LC_NUMERIC", "C")
    monkeypatch.setenv("KAPELL_MARK", "log/agent")

    printed = await run(tmp_path, CommandRuntime(argv=["env"]))

    assert isinstance(printed, str)
    names = {line.partition("=")[0] for line in printed.splitlines()}
    assert TOKEN not in printed
    assert "KAPELL_ADDRESS" not in names
    assert {"PATH", "LC_NUMERIC", "KAPELL_MARK", "KAPELL_TASK_ID"} <= names
    allowed = {"PATH", "HOME", "LANG", "TERM", "TMPDIR", "TZ", "USER"}
    assert all(name in allowed or name.startswith(("LC_", "KAPELL_")) for name in names)


async def test_nothing_of_the_start_stays_open_or_ignored_in_the_program(tmp_path: Path) -> None:
    spec = CommandRuntime(argv=["sh", "-c", "ls /proc/self/fd; grep SigIgn /proc/self/status"])

    result = await run(tmp_path, spec)

    assert isinstance(result, str)
    *descriptors, ignored = result.splitlines()
    assert descriptors == ["0", "1", "2", "3"], "3 is ls reading the directory"
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


async def test_fresh_directory_is_given_and_removed(tmp_path: Path) -> None:
    result = await run(tmp_path, sh("pwd; ls -A; echo x > made"))

    assert isinstance(result, str)
    directory = Path(result)
    assert directory.is_relative_to(tmp_path)
    assert not directory.exists()


async def test_named_working_directory_is_used_and_stays(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()

    result = await run(tmp_path, sh("pwd; echo x > made", working_directory=str(tmp_path / "repo")))

    assert result == str(tmp_path / "repo")
    assert (tmp_path / "repo" / "made").read_text() == "x\n"


async def test_program_is_found_relative_to_its_working_directory(tmp_path: Path) -> None:
    script = tmp_path / "tool"
    script.write_text("#!/bin/sh\necho ran\n")
    script.chmod(0o755)

    assert await run(tmp_path, CommandRuntime(argv=["./tool"], working_directory=str(tmp_path))) == "ran"


@pytest.mark.parametrize(
    ("script", "result_format", "expected"),
    [
        ("echo hi", RESULT_FORMAT_TEXT, "hi"),
        ("printf 'a\\n\\nb\\n\\n'", RESULT_FORMAT_TEXT, "a\n\nb\n"),
        ("""echo '{"a": [1, 2.5, null]}'""", RESULT_FORMAT_JSON, {"a": [1, 2.5, None]}),
        ("echo noise", RESULT_FORMAT_FILE, None),
        ("""echo noise; printf '[true]' > "$KAPELL_RESULT_FILE" """, RESULT_FORMAT_FILE, [True]),
        ("""echo noise; printf '[true]' > "$KAPELL_RESULT_FILE" """, RESULT_FORMAT_JSON, [True]),
        ("""echo noise; printf 'plain' > "$KAPELL_RESULT_FILE" """, RESULT_FORMAT_TEXT, "plain"),
    ],
)
async def test_result_is_read_as_the_profile_says(
    tmp_path: Path, script: str, result_format: int, expected: object
) -> None:
    assert await run(tmp_path, sh(script, result_format=result_format)) == expected


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("true", "it printed nothing"),
        ("echo '{} {}'", "did not print one JSON value"),
        ("echo NaN", "NaN is not JSON"),
        ("echo 1e999", "did not print one JSON value"),
        ("head -c 300000 /dev/zero | tr '\\0' 1", "at most 262144"),
        ("head -c 300000 /dev/zero > $KAPELL_RESULT_FILE", "more than 262144 bytes"),
        ("head -c 2000 /dev/zero | tr '\\0' '['", "did not print one JSON value"),
    ],
)
async def test_result_that_is_not_as_agreed_fails_the_attempt(tmp_path: Path, script: str, says: str) -> None:
    failure = await failure_of(tmp_path, sh(script, result_format=RESULT_FORMAT_JSON))

    assert failure.reason == "RESULT_INVALID"
    assert says in failure.message
    assert failure.retryable is None


async def test_text_result_is_the_last_64_kib_and_never_half_a_character(tmp_path: Path) -> None:
    result = await run(tmp_path, sh("yes ééé | head -c 140000; echo; echo end"))

    assert isinstance(result, str)
    assert 65536 - 4 <= len(result.encode()) <= 65536
    assert result.endswith("end")
    assert "�" not in result[:10]


async def test_exit_code_fails_the_attempt_with_the_end_of_stderr(tmp_path: Path) -> None:
    failure = await failure_of(tmp_path, sh("seq 1 100 >&2; echo broken >&2; exit 3"))

    assert failure.reason == "EXIT_CODE"
    assert failure.message.startswith("sh exited with code 3:\n")
    assert failure.message.endswith("\n99\n100\nbroken")
    assert len(failure.message.splitlines()) <= 21
    assert failure.details == {"exit_code": 3}
    assert failure.retryable is None


async def test_signal_fails_the_attempt_by_its_name(tmp_path: Path) -> None:
    failure = await failure_of(tmp_path, sh("kill -SEGV $$"))

    assert (failure.reason, failure.message) == ("SIGNAL", "sh was ended by SIGSEGV")
    assert failure.details == {"signal": "SIGSEGV", "number": signal.SIGSEGV}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["no-such-program-here"], "in no directory of PATH"),
        (["/no/such/program"], "does not exist"),
        (["./here"], "does not exist"),
        (["{input.which}"], "in no directory of PATH"),
    ],
)
async def test_missing_program_says_what_to_do(tmp_path: Path, argv: list[str], says: str) -> None:
    failure = await failure_of(tmp_path, CommandRuntime(argv=argv), a_task(input={"which": "no-such-program"}))

    assert failure.reason == "PROGRAM_NOT_FOUND"
    assert says in failure.message
    assert "correct argv" in failure.message
    assert failure.retryable is False


async def test_script_whose_interpreter_is_missing_is_a_missing_program(tmp_path: Path) -> None:
    script = tmp_path / "tool"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)

    failure = await failure_of(tmp_path, CommandRuntime(argv=[str(script)]))

    assert failure.reason == "PROGRAM_NOT_FOUND"
    assert "interpreter" in failure.message


async def test_file_that_cannot_be_executed_is_a_failed_setup(tmp_path: Path) -> None:
    plain, empty = tmp_path / "plain", tmp_path / "empty"
    plain.write_text("x")
    empty.write_text("no first line")
    empty.chmod(0o755)

    not_executable = await failure_of(tmp_path, CommandRuntime(argv=[str(plain)]))
    not_a_program = await failure_of(tmp_path, CommandRuntime(argv=[str(empty)]))

    assert (not_executable.reason, not_a_program.reason) == ("SETUP_FAILED", "SETUP_FAILED")
    assert "chmod +x" in not_executable.message
    assert "#!/bin/sh" in not_a_program.message


@pytest.mark.parametrize(
    ("spec", "task", "says"),
    [
        (CommandRuntime(argv=["{input.missing}"]), a_task(input={"a": 1, "b": 2}), "no entry 'missing'"),
        (CommandRuntime(argv=["x"], stdin="{input.missing}"), a_task(), "it has: nothing"),
        (sh("x", working_directory="/no/such/place"), a_task(), "does not exist"),
        (CommandRuntime(argv=["echo", "{prompt}"]), a_task("x" * 140_000), "into stdin instead"),
        (CommandRuntime(argv=["echo", "{prompt}"]), a_task("a\0b"), "NUL"),
    ],
)
async def test_what_cannot_be_set_up_is_said_and_not_tried_again(
    tmp_path: Path, spec: CommandRuntime, task: Task, says: str
) -> None:
    failure = await failure_of(tmp_path, spec, task)

    assert failure.reason == "SETUP_FAILED"
    assert says in failure.message
    assert failure.retryable is False


async def test_arguments_too_long_together_are_a_failed_setup(tmp_path: Path) -> None:
    spec = CommandRuntime(argv=["true", *["{prompt}"] * 60])

    failure = await failure_of(tmp_path, spec, a_task("x" * 100_000))

    assert failure.reason == "SETUP_FAILED"
    assert "too long" in failure.message


async def test_prompt_too_long_for_the_environment_is_left_out_with_a_remark(tmp_path: Path) -> None:
    attempt = RecordedAttempt()

    result = await run(tmp_path, sh('echo "${KAPELL_PROMPT-unset}"'), a_task("x" * 200_000), attempt)

    assert result == "unset"
    assert any("KAPELL_PROMPT" in remark for remark in attempt.remarks)


@pytest.mark.parametrize("template", ["{promt}", "{", "a } b", "{input.}", '{"json": 1}'])
def test_template_that_can_never_be_filled_in_is_refused_before_any_task(tmp_path: Path, template: str) -> None:
    with pytest.raises(placeholders.TemplateError, match="doubled"):
        Command(CommandRuntime(argv=["echo", template]), agent_id="a", directory=tmp_path)


async def test_attempt_directories_left_by_a_killed_host_are_removed(tmp_path: Path) -> None:
    old = tmp_path / "attempts" / "1-old"
    old.mkdir(parents=True)

    Command(sh("true"), agent_id="a", directory=tmp_path)

    assert not old.exists()


async def test_program_runs_in_a_session_of_its_own(tmp_path: Path) -> None:
    spec = CommandRuntime(argv=[sys.executable, "-c", "import os; print(os.getsid(0) == os.getpid())"])

    assert await run(tmp_path, spec) == "True"


async def _paused(tmp_path: Path, script: str) -> tuple[asyncio.Task[object], RecordedAttempt, Path]:
    """A program that waits for a line from a pipe, and was stopped by then. No process is begun meanwhile."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    attempt = RecordedAttempt()
    running = asyncio.create_task(run(tmp_path, sh(script.replace("GATE", str(gate))), attempt=attempt))
    pid = int((await attempt.until_stdout(1))[0])
    attempt.paused.set()
    await attempt.until_remark("SIGSTOP")
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    return running, attempt, gate


@pytest.mark.parametrize("how", ["cancelled", "lost"])
async def test_a_stopped_program_is_ended_with_its_attempt(tmp_path: Path, how: str) -> None:
    running, attempt, _ = await _paused(tmp_path, "trap 'echo tidied; exit 0' TERM; echo $$; read line < GATE")

    attempt.cancel() if how == "cancelled" else attempt.lose()

    with pytest.raises(TaskFailed, match="cancelled"):
        await asyncio.wait_for(running, 20)
    assert attempt.stdout[1:] == (["tidied"] if how == "cancelled" else [])


async def test_usage_in_the_result_is_reported(tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    own = {"record_id": "r1", "model": "gpt-5", "input_tokens": 12, "output_tokens": 3}
    theirs = {"id": "msg_1", "type": "message", "usage": {"input_tokens": 1, "output_tokens": 2}}
    result = {"answer": 42, "kapell_usage": [own, theirs, "no object", {"output_tokens": 1, "colour": "red"}]}

    found = await run(tmp_path, sh(f"echo '{json.dumps(result)}'", result_format=RESULT_FORMAT_JSON), attempt=attempt)

    assert found == result
    assert attempt.used == [own, theirs]
    remarks = [text for stream, text in attempt.lines if text.startswith("kapell_usage")]
    assert len(remarks) == 2
    assert "'colour' is not known" in remarks[1]


async def test_the_result_of_claude_code_tells_of_its_models(tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    result = {"type": "result", "session_id": "s1", "modelUsage": {"claude-haiku-4-5": {"inputTokens": 3}}}

    await run(tmp_path, sh(f"echo '{json.dumps(result)}'", result_format=RESULT_FORMAT_JSON), attempt=attempt)

    assert attempt.used == [result]
