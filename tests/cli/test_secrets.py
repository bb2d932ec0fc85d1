"""`kapell secret`, and what of a secret gets anywhere: canaries are planted, and everything that leaves is searched."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kapell import SyncClient

from tests.cli.conftest import shell_environment
from tests.cli.shell import Shell
from tests.support.server_process import ServerProcess

CANARY = "canary-7f3a91-"
STORED = CANARY + "stored"
IN_FILE = CANARY + "in-a-file"
IN_ENVIRONMENT = CANARY + "in-the-environment"
OF_PROFILE = CANARY + "of-a-profile"
TEMPLATE = """
template_id: push
agent_type: keeper
parameters:
  key: {type: secret, required: true}
prompt: |
  echo {key}; cat "$KAPELL_SECRETS_DIR"/*; echo "$STORED $IN_ENV $MODEL_KEY" >&2
  echo "::progress 50% $STORED"; cat "$KAPELL_SECRETS_DIR/key"; exit 3
"""
PROFILE = """
[profiles.keeper]
agent_types = ["keeper"]
command = { argv = ["sh", "-c", "{prompt}"], env_from_secret = { MODEL_KEY = "of-profile" } }
"""


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[tuple[ServerProcess, Shell]]:
    """A server with four secrets, kept in four ways, and an agent of a profile that has one of them."""
    config = tmp_path / "kapell.toml"
    config.write_text(PROFILE)
    (tmp_path / "secret").write_text(IN_FILE + "\n")
    server = ServerProcess(
        tmp_path / "data", arguments=("--config", str(config)), environment={"THEIRS": IN_ENVIRONMENT}
    )
    with server:
        home = tmp_path / "home"
        home.mkdir()
        address = {"KAPELL_ADDRESS": server.address, "KAPELL_TOKEN": server.admin_token}
        shell = Shell(shell_environment(home, **address))
        assert shell.pipe("secret", "set", "stored", "-", stdin=STORED + "\n").code == 0
        assert shell.pipe("secret", "set", "of-profile", stdin=OF_PROFILE).code == 0
        assert shell.pipe("secret", "set", "in-file", "--server-file", str(tmp_path / "secret")).code == 0
        assert shell.pipe("secret", "set", "in-env", "--server-env", "THEIRS").code == 0
        yield server, shell


def everything_told(shell: Shell, task_ids: list[str]) -> str:
    """What anybody can read of these tasks, and of all else."""
    told = []
    for line in (
        *[("task", verb, task_id, "-o", "json") for task_id in task_ids for verb in ("get", "attempts", "explain")],
        *[("task", "logs", task_id) for task_id in task_ids],
        ("task", "list", "-o", "json"),
        ("event", "list", "-n", "1000", "-o", "json"),
        ("agent", "list", "-o", "json"),
        ("profile", "list", "-o", "json"),
        ("secret", "list", "-o", "json"),
        ("audit", "list", "-n", "1000", "-o", "json"),
        ("template", "render", "push", "-P", "key=secret:in-file", "-o", "json"),
        ("template", "render", "push", "-P", f"key={STORED}", "-o", "json"),
        ("run", "push", "-P", f"key={STORED}"),
    ):
        result = shell.pipe(*line)
        told += [result.out, result.err]
    return "\n".join(told)


def test_a_canary_gets_to_its_program_and_nowhere_else(keeper: tuple[ServerProcess, Shell], tmp_path: Path) -> None:
    _, shell = keeper
    (tmp_path / "push.yaml").write_text(TEMPLATE)
    assert shell.pipe("template", "apply", "-f", str(tmp_path / "push.yaml")).code == 0
    assert shell.pipe("agent", "spawn", "keeper").code == 0
    given = ("--secret", "STORED=stored", "--secret", "IN_ENV=in-env", "--max-attempts", "1")

    failed = shell.pipe("run", "push", "-P", "key=secret:in-file", "--id", "task_fails", *given)
    told = shell.pipe(
        *("task", "run", "-t", "keeper", "--id", "task_works", *given),
        'test ${#STORED} = 20 && test ${#MODEL_KEY} = 26 && test ${#IN_ENV} = 32 && echo "all $STORED"'
        "; tr '\\0' ' ' < /proc/$$/cmdline; tr '\\0' ' ' < /proc/$PPID/cmdline",
    )

    assert failed.code == 7
    assert told.code == 0, told.err
    assert "all [secret]" in told.out
    logs = shell.pipe("task", "logs", "task_fails").out
    assert "[secret in-file]" in logs
    assert logs.count("[secret]") >= 5
    read = everything_told(shell, ["task_fails", "task_works"]) + failed.out + failed.err + told.out + told.err
    read = read.replace(f"key={STORED}", "")
    assert CANARY not in read
    assert "must name a secret" in read


def test_canaries_are_in_no_file_and_no_command_line_of_the_server(keeper: tuple[ServerProcess, Shell]) -> None:
    server, shell = keeper
    assert shell.pipe("agent", "spawn", "keeper").code == 0
    line = ("task", "run", "-t", "keeper", "--secret", "STORED=stored", "--secret", "MINE=in-env", "true")
    assert shell.pipe(*line).code == 0
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    server.kill()

    found = [file for file in server.data_dir.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
    assert found == []
    assert CANARY not in server.log
    assert CANARY not in lines

    server.start()
    assert shell.pipe(*line).code == 0


def test_values_never_come_back_and_outlive_a_new_key(keeper: tuple[ServerProcess, Shell]) -> None:
    server, shell = keeper
    assert shell.pipe("agent", "spawn", "keeper").code == 0
    before = (server.data_dir / "secrets.key").read_bytes()

    assert "2 values encrypted" in shell.pipe("secret", "rotate-key").out
    server.restart()
    line = ("task", "run", "-t", "keeper", "--secret", "STORED=stored", 'test "${#STORED}" = 20')

    assert shell.pipe(*line).code == 0
    assert (server.data_dir / "secrets.key").read_bytes() != before
    listed = json.loads(shell.pipe("secret", "list", "-o", "json").out)
    assert [secret["name"] for secret in listed] == ["in-env", "in-file", "of-profile", "stored"]
    assert listed[0]["source"] == "SECRET_SOURCE_ENVIRONMENT"


def test_a_secret_that_is_gone_fails_the_attempt_with_advice(keeper: tuple[ServerProcess, Shell]) -> None:
    _, shell = keeper
    assert shell.pipe("secret", "delete", "of-profile", "--yes").code == 0
    assert shell.pipe("agent", "spawn", "keeper").code == 0

    result = shell.pipe("task", "run", "-t", "keeper", "true")

    assert result.code == 7
    assert "SECRET_MISSING" in result.err
    assert "kapell secret set" in result.err


def test_usage_of_the_command(cast: Shell) -> None:
    assert cast.pipe("secret", "set", "a", stdin="").code == 2
    assert cast.pipe("secret", "set", "a", stdin="abc").code == 2
    assert "one of" in cast.pipe("secret", "set", "a", "-", "--server-env", "X", stdin="long enough").err
    assert cast.pipe("secret", "set", "a", "--dry-run", stdin="long enough").code == 0
    assert cast.pipe("secret", "list", "-o", "id").out == ""
    missing = cast.pipe("task", "create", "-t", "nobody", "--secret", "not-there", "x")
    assert (missing.code, "kapell secret set not-there" in missing.err) == (3, True)


def test_the_sdk_sets_lists_and_deletes(keeper: tuple[ServerProcess, Shell]) -> None:
    server, _ = keeper
    with SyncClient(server.address, token=server.admin_token) as client:  # type: ignore[attr-defined]
        made = client.secrets.set("token", "a value of its own", description="for the test")

        assert (made.version, made.description) == (1, "for the test")
        assert "token" in [secret.name for secret in client.secrets.iterate()]
        client.secrets.delete("token")
        assert "token" not in [secret.name for secret in client.secrets.list().secrets]
