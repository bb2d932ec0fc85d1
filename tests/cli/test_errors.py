"""Exit codes are a contract, and an error is at most four lines that say what to do."""

from __future__ import annotations

import io
import re
import shlex
import signal
import socket
import subprocess
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from kapell.cli.errors import Exit, Refusal, refusal_of, report
from kapell.cli.terminal import detect
from kapell.errors import FieldViolation, KapellError, error_class
from kapell.v1.error_pb2 import ErrorReason

from tests.cli.shell import KAPELL, Shell
from tests.support.server_process import ServerProcess, free_port

EXIT_CODES = {
    "REQUEST_INVALID": 2,
    "PAGE_TOKEN_INVALID": 2,
    "PAYLOAD_TOO_LARGE": 2,
    "ADDRESS_INVALID": 2,
    "ARGUMENT_INVALID": 2,
    "TASK_NOT_FOUND": 3,
    "AGENT_NOT_FOUND": 3,
    "WORKSPACE_NOT_FOUND": 3,
    "WORKSPACE_CHANGED": 5,
    "ATTEMPT_NOT_FOUND": 3,
    "PROFILE_NOT_FOUND": 3,
    "TOKEN_MISSING": 4,
    "TOKEN_INVALID": 4,
    "SCOPE_MISSING": 4,
    "NOT_OWNER": 4,
    "REQUEST_ID_REUSED": 5,
    "ID_TAKEN": 5,
    "TASK_STATE_CONFLICT": 5,
    "AGENT_STATE_CONFLICT": 5,
    "PROGRAM_NOT_FOUND": 5,
    "ETAG_MISMATCH": 5,
    "LEASE_LOST": 5,
    "REVISION_COMPACTED": 5,
    "REVISION_IN_FUTURE": 5,
    "LOG_OFFSET_GAP": 5,
    "TEMPLATE_NOT_FOUND": 3,
    "TEMPLATE_PARAMETERS_INVALID": 2,
    "TEMPLATE_IN_USE": 5,
    "TOO_MANY_MATCHES": 5,
    "TEMPLATE_BUILT_IN": 5,
    "DEPENDENCY_CYCLE": 2,
    "DEPENDENCY_FAILED": 5,
    "CHILD_LIMIT": 1,
    "QUEUE_DRAINING": 5,
    "LIMIT_NOT_FOUND": 3,
    "ARTIFACT_NOT_FOUND": 3,
    "ARTIFACT_CHECKSUM_MISMATCH": 5,
    "ARTIFACT_OFFSET_GAP": 5,
    "ARTIFACT_STATE_CONFLICT": 5,
    "ARTIFACT_LIMIT": 1,
    "BUDGET_NOT_FOUND": 3,
    "BUDGET_EXCEEDED": 9,
    "RESERVATION_NOT_FOUND": 3,
    "ALERT_NOT_FOUND": 3,
    "WEBHOOK_NOT_FOUND": 3,
    "SCHEDULE_NOT_FOUND": 3,
    "SCHEDULE_LIMIT": 1,
    "LOCK_HELD": 5,
    "LOCK_LOST": 5,
    "FENCING_TOKEN_STALE": 5,
    "DEADLOCK": 5,
    "LOCK_TICKET_NOT_FOUND": 3,
    "LOCK_LIMIT": 1,
    "APPROVAL_NOT_FOUND": 3,
    "APPROVAL_ALREADY_DECIDED": 5,
    "APPROVAL_CHANGED": 5,
    "SELF_APPROVAL": 4,
    "NOT_APPROVER": 4,
    "PRICE_NOT_FOUND": 3,
    "PRICE_LIMIT": 1,
    "USAGE_QUERY_TOO_LARGE": 2,
    "USAGE_CONFLICT": 5,
    "USAGE_LIMIT": 1,
    "SECRET_NOT_FOUND": 3,
    "SECRET_LIMIT": 1,
    "SERVER_DRAINING": 6,
    "SERVER_UNREACHABLE": 6,
    "SERVER_NOT_FOUND": 6,
    "WAIT_TIMEOUT": 8,
    "AGENT_LIMIT": 1,
    "QUEUE_FULL": 1,
    "TOO_MANY_WATCHES": 1,
    "STORAGE_FULL": 1,
    "STORAGE_BUSY": 1,
    "DEADLINE_EXCEEDED": 1,
    "INTERNAL": 1,
    "TOKEN_EXPIRED": 4,
    "TOKEN_NOT_FOUND": 3,
    "TOKEN_LIMIT": 1,
    "NOT_FOR_AGENTS": 4,
    "RATE_LIMITED": 1,
}


@pytest.mark.parametrize(("reason", "code"), EXIT_CODES.items())
def test_a_reason_has_its_exit_code(reason: str, code: int) -> None:
    assert refusal_of(KapellError("it failed", reason=reason)).exit == code


def test_every_reason_of_the_api_has_an_exit_code() -> None:
    reasons = {name.removeprefix("ERROR_REASON_") for name, _ in ErrorReason.items()} - {"UNSPECIFIED"}

    assert reasons <= EXIT_CODES.keys()


@pytest.mark.parametrize(
    ("code", "exit"), [("NOT_FOUND", 3), ("PERMISSION_DENIED", 4), ("ABORTED", 5), ("UNAVAILABLE", 6), ("UNKNOWN", 1)]
)
def test_a_reason_of_a_newer_server_falls_back_on_its_code(code: str, exit: int) -> None:
    error = error_class(code, "NEW_REASON")("it failed", reason="NEW_REASON", code=code, from_server=True)

    assert refusal_of(error).exit == exit


@pytest.mark.parametrize(
    ("message", "parts"),
    [
        ("the what - the why - the way out", ("the what", "the why", "the way out")),
        ("the what: the why; the way out", ("the what", "the why", "the way out")),
        ("The what: the why. Take this way; or that.", ("The what", "the why", "Take this way; or that")),
        ("just the what", ("just the what", "", "")),
    ],
)
def test_a_message_is_parted_into_what_why_and_what_to_do(message: str, parts: tuple[str, str, str]) -> None:
    refusal = refusal_of(KapellError(message, reason="QUEUE_FULL"))

    assert (refusal.what, refusal.why, refusal.next) == parts


def test_an_error_has_at_most_four_lines() -> None:
    error = KapellError(
        "a\nb - c\nd - e\nf",
        reason="INTERNAL",
        metadata={"request_id": "req_1"},
        violations=(FieldViolation("task.prompt", "too long"), FieldViolation("task.labels", "too many")),
    )
    written = io.StringIO()

    with redirect_stderr(written):
        report(refusal_of(error), detect())

    assert len(written.getvalue().splitlines()) == 4
    assert "request id: req_1" in written.getvalue()


def test_an_error_shows_escape_sequences_instead_of_obeying_them() -> None:
    written = io.StringIO()

    with redirect_stderr(written):
        report(Refusal("bad \x1b[2J name"), detect())

    assert "\x1b" not in written.getvalue()
    assert "\\x1b[2J" in written.getvalue()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (("task", "get", "task_nobody_knows"), Exit.NOT_FOUND),
        (("agent", "get", "agent_nobody_knows"), Exit.NOT_FOUND),
        (("agent", "spawn", "no-such-profile"), Exit.NOT_FOUND),
        (("task", "logs", "task_good", "--attempt", "9"), Exit.NOT_FOUND),
        (("task", "cancel", "task_good"), Exit.CONFLICT),
        (("task", "create", "-t", "shell", "--id", "task_good", "again"), Exit.CONFLICT),
        (("task", "update", "task_waiting", "--priority", "1", "--etag", "stale"), Exit.CONFLICT),
        (("agent", "spawn", "--type", "x", "--command", "no-such-program-anywhere"), Exit.CONFLICT),
        (("task", "create", "-t", "Bad Type", "x"), Exit.USAGE),
        (("task", "create", "-t", "shell", "-p", "1001", "x"), Exit.USAGE),
        (("task", "create", "-t", "shell", "--file", "/no/such/file"), Exit.USAGE),
        (("task", "create", "-t", "shell", "--file", "/"), Exit.USAGE),
        (("agent", "spawn", "--type", "x", "--command", "echo 'unclosed"), Exit.USAGE),
        (("agent", "spawn", "--type", "x", "--command", " "), Exit.USAGE),
        (("task", "list", "--nonsense"), Exit.USAGE),
        (("event", "watch", "--kind", "task.compleated"), Exit.USAGE),
        (("task",), Exit.USAGE),
    ],
)
def test_exit_code(cast: Shell, line: tuple[str, ...], code: Exit) -> None:
    result = cast.pipe(*line)

    assert result.code == code, result.err
    assert result.out == ""
    if line != ("task",):
        assert len(result.err.splitlines()) <= 4
        assert re.match(r"error: \S", result.err)


def test_a_wrong_token_is_not_signed_in(shell: Shell) -> None:
    stranger = Shell({**shell.environment, "KAPELL_TOKEN": "kapell_admin_wrong"})

    result = stranger.pipe("task", "list")

    assert result.code == Exit.DENIED
    assert "kapell_admin_wrong" not in result.err


def test_without_a_server_the_way_to_start_one_is_told(no_server: Shell) -> None:
    result = no_server.pipe("status")

    assert result.code == Exit.UNREACHABLE
    assert "kapell up" in result.err


def test_a_refused_connection_is_unreachable(no_server: Shell) -> None:
    result = no_server.pipe("task", "list", "--address", f"127.0.0.1:{free_port()}")

    assert result.code == Exit.UNREACHABLE
    assert "connection refused" in result.err


def test_a_listener_that_says_nothing_is_unreachable(no_server: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = no_server.pipe("task", "list", "--address", f"127.0.0.1:{silent.getsockname()[1]}")

    assert result.code == Exit.UNREACHABLE
    assert "did not answer" in result.err


def test_a_killed_server_is_unreachable(server_process: ServerProcess, no_server: Shell) -> None:
    shell = Shell({**no_server.environment, "KAPELL_DATA_DIR": str(server_process.data_dir)})
    server_process.stop(signal.SIGKILL)

    assert shell.pipe("status").code == Exit.UNREACHABLE
    server_process.start()
    assert shell.pipe("status").code == Exit.DONE


def test_a_defect_is_called_one_and_has_no_traceback(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("kapell.cli.commands.profile.write_list", broken)

    result = shell.pipe("profile", "list")

    assert result.code == Exit.FAILURE
    assert "defect" in result.err
    assert "Traceback" not in result.err
    with pytest.raises(ZeroDivisionError):
        shell.pipe("profile", "list", "--debug")


def test_a_reader_that_leaves_is_no_error(cast: Shell) -> None:
    process = cast.process("event", "watch", "--after", "1")
    assert process.stdout is not None and process.stderr is not None

    process.stdout.readline()
    process.stdout.close()
    cast.pipe("task", "update", "task_waiting", "--name", "Review the change")

    assert process.wait(30) == Exit.DONE
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_prompt_that_is_no_text_is_refused(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff")

    result = shell.pipe("task", "create", "-t", "shell", "--file", str(tmp_path / "picture"))

    assert result.code == Exit.USAGE
    assert "is not text in UTF-8" in result.err


def test_a_message_that_is_too_large_is_refused_in_words(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "novel").write_text("x" * 5_000_000)

    result = shell.pipe("task", "create", "-t", "shell", "--file", str(tmp_path / "novel"))

    assert result.code == Exit.USAGE
    assert result.err.startswith("error: the message is too large\n")
    assert "4194304" not in result.err


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("task list <&- >&- 2>&-", Exit.DONE),
        ("task create -t shell --id task_closed --input a=b --file - <&-", Exit.DONE),
        ("task cancel - <&-", Exit.DONE),
        ("task delete task_good <&-", Exit.USAGE),
    ],
)
def test_closed_streams_are_empty_ones(cast: Shell, line: str, code: Exit) -> None:
    command = ["sh", "-c", f"exec {shlex.join(KAPELL)} {line}"]
    ended = subprocess.run(command, env=dict(cast.environment), capture_output=True, text=True)

    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (("task", "create", "-t", "shell"), "There is nothing to do: give a PROMPT, --file, or --input"),
        (("task", "create", "-t", "shell", "  "), "There is nothing to do"),
        (("task", "run", "-t", "shell", "--file", "-"), "There is nothing to do"),
        (("schedule", "create", "x", "--every", "1h", "-t", "shell"), "Its tasks have nothing to do"),
        (("schedule", "create", "x", "--every", "1h", "-z", "UTC", "-t", "a", "--prompt", "b"), "--timezone is for"),
        (("task", "create", "-t", "Not Good", "x"), "--type: must be 1 to 63 of a-z, 0-9, '.', '_' and '-'"),
        (("task", "create", "-t", "shell", "--id", "X", "x"), "--id: must be 'task_' and then"),
        (("task", "create", "-t", "shell", "--label", "a b=c", "x"), "--label a b: key must be 1 to 63 of"),
        (("template", "apply", "-f", "no-such-file.yaml"), "no-such-file.yaml: no such file"),
        (("run", "code-review", "-P", "files=@no-such-file"), "no-such-file: no such file"),
    ],
)
def test_usage_is_told_in_the_words_of_the_command_line(cast: Shell, line: tuple[str, ...], words: str) -> None:
    result = cast.pipe(*line)

    assert result.code == Exit.USAGE
    assert words in result.err
    assert "^" not in result.err


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        (("run", "code-reveiw", "-P", "files=a"), "did you mean code-review?"),
        (("template", "get", "bugfix"), "did you mean bug-fix?"),
        (("agent", "spawn", "shel"), "did you mean shell?"),
        (("template", "get", "quite-another"), ""),
    ],
)
def test_a_name_that_is_nearly_right_is_recognised(cast: Shell, line: tuple[str, ...], meant: str) -> None:
    result = cast.pipe(*line)

    assert result.code == Exit.NOT_FOUND
    assert meant in result.err
    assert bool(meant) == ("did you mean" in result.err)
