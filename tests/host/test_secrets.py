"""Secrets of a task as its program finds them, and what of them gets out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kapell._worker.outcome import TaskFailed
from kapell.runtimes.command import Command
from kapell.v1.agent_pb2 import CommandRuntime

from tests.host.attempts import RecordedAttempt
from tests.host.test_command import a_task, run, sh

VALUE = "correct-horse-battery"


async def test_a_program_finds_secrets_in_files_and_variables_and_never_in_its_arguments(tmp_path: Path) -> None:
    attempt = RecordedAttempt(secrets={"GIT_TOKEN": VALUE, "key": "lower-case-value"})
    script = """
        cd "$KAPELL_SECRETS_DIR" && stat -c '%a %n' . GIT_TOKEN key
        test "$(cat GIT_TOKEN)" = "$GIT_TOKEN" && test -z "$key" && test "$(cat key)" = lower-case-value && echo same
        tr '\\0' ' ' < /proc/$$/cmdline | grep -c "correct-hors[e]"
    """

    with pytest.raises(TaskFailed, match="code 1"):  # grep has found nothing
        await run(tmp_path, sh(script), attempt=attempt)

    assert attempt.stdout[:4] == ["700 .", "600 GIT_TOKEN", "600 key", "same"]
    assert attempt.stdout[-1] == "0"
    assert list(tmp_path.rglob("GIT_TOKEN")) == []


async def test_a_variable_that_the_profile_asks_for_may_have_any_name(tmp_path: Path) -> None:
    attempt = RecordedAttempt(secrets={"http_proxy": VALUE})
    spec = sh('test "$http_proxy" = "$(cat "$KAPELL_SECRETS_DIR/http_proxy")" && echo same')
    spec.env_from_secret["http_proxy"] = "proxy"

    assert await run(tmp_path, spec, attempt=attempt) == "same\n".strip()


async def test_what_a_program_prints_is_masked_in_log_result_progress_and_failure(tmp_path: Path) -> None:
    attempt = RecordedAttempt(secrets={"GIT_TOKEN": VALUE})
    script = """
        printf correct-; sleep 0.05; printf 'horse-batt'; printf 'ery\\n'
        echo "::progress 50% with $GIT_TOKEN"
        echo "401 for $GIT_TOKEN" >&2
        head -c 16375 /dev/zero | tr '\\0' x; echo "$GIT_TOKEN"
        exit 3
    """

    with pytest.raises(TaskFailed) as caught:
        await run(tmp_path, sh(script), attempt=attempt)

    everything = "".join(attempt.stdout + attempt.stderr) + str(attempt.progress_seen) + str(caught.value)
    assert attempt.stdout[0] == "[secret]"
    assert attempt.progress_seen == [(0.5, "", "with [secret]")]
    assert "401 for [secret]" in str(caught.value)
    assert VALUE not in everything
    assert "battery" not in everything


async def test_a_secret_too_long_for_a_variable_is_refused_without_telling_it(tmp_path: Path) -> None:
    attempt = RecordedAttempt(secrets={"GIT_TOKEN": VALUE * 10_000})
    runtime = Command(CommandRuntime(argv=["true"]), agent_id="agent_one", directory=tmp_path / "agent")

    with pytest.raises(TaskFailed, match="the secret GIT_TOKEN is too long") as caught:
        await runtime.run(attempt, a_task())
    await runtime.close()

    assert VALUE not in str(caught.value)
    assert "GIT_TOKEN" not in os.environ
