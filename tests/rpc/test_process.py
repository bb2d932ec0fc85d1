"""The server as a process: what it says when it starts, when it cannot, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.server_process import ServerProcess


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A start that must end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "kapell_server", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environment},
        check=False,
    )


def refusal(*arguments: str, code: int = 1, **environment: str) -> str:
    """What a start that is refused says: one line on stderr, the exit code, nothing on stdout."""
    result = run(*arguments, **environment)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@contextmanager
def taken_port() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_it_says_where_it_serves_and_stops_when_asked(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data")
    server.start()
    note = json.loads((tmp_path / "data" / "server.json").read_text())

    code = server.stop(signal.SIGTERM)

    assert note["grpc_address"] == server.address
    assert note["log_id"].startswith("log_")
    assert code == 0
    assert not (tmp_path / "data" / "server.json").exists()
    assert server.admin_token not in server.log


def test_a_port_in_use_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with taken_port() as address:
        said = refusal("--data-dir", str(tmp_path / "data"), "--grpc-address", address)

    assert f"Cannot listen on {address}: the port is in use" in said
    assert "--grpc-address" in said
    assert not (tmp_path / "data" / "kapell.db").exists()


def test_a_second_server_on_the_directory_is_refused(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        said = refusal("--data-dir", str(tmp_path / "data"), "--grpc-address", "127.0.0.1:0")

        assert f"Another Kapell server (process {server.pid}) uses the data directory" in said
        assert json.loads((tmp_path / "data" / "server.json").read_text())["pid"] == server.pid


def test_a_read_only_data_directory_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        directory = Path("/sys/kapell")  # where even root may not write
    else:
        tmp_path.chmod(0o500)
        directory = tmp_path / "data"

    said = refusal("--data-dir", str(directory), "--grpc-address", "127.0.0.1:0")

    assert f"Cannot write to {directory}: it is read-only for this user" in said


def test_a_database_that_is_none_is_refused(tmp_path: Path) -> None:
    database = tmp_path / "kapell.db"
    database.write_bytes(b"this is no database, whatever its name says" * 100)
    database.chmod(0o600)  # else there is a warning as well

    said = refusal("--data-dir", str(tmp_path), "--grpc-address", "127.0.0.1:0")

    assert "kapell.db cannot be opened" in said


def test_an_unknown_key_is_refused_with_the_close_spelling(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[server]\nlog_fromat = "json"\n')

    said = refusal("--config", str(tmp_path / "mine.toml"), "--data-dir", str(tmp_path / "data"), code=2)

    assert "there is no key `log_fromat`; did you mean `log_format`?" in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--grpc-address", "0.0.0.0:0"), 1, "add --insecure-bind"),
        (("--grpc-address", "0.0.0.0:0", "--no-auth", "--insecure-bind"), 1, "let anyone on the network"),
        (("--grpc-address", "nowhere"), 2, 'must read "host:port"'),
        (("--grpc-address", "192.0.2.1:0", "--insecure-bind"), 1, "not one of this machine"),
    ],
)
def test_an_address_that_would_be_unsafe_or_is_none_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    assert said in refusal("--data-dir", str(tmp_path / "data"), *arguments, code=code)


def test_every_value_can_be_shown_with_its_origin(tmp_path: Path) -> None:
    result = run("--show-config", "--data-dir", str(tmp_path), KAPELL_MAX_AGENTS="12")

    assert result.returncode == 0
    assert f"data_dir = {tmp_path}\t(--data-dir)" in result.stdout
    assert "max_agents = 12\t(KAPELL_MAX_AGENTS)" in result.stdout
    assert "grpc_address = 127.0.0.1:50051\t(default)" in result.stdout


def test_a_killed_server_starts_again_on_its_directory(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data") as server:
        token = server.admin_token

        server.restart()

        assert server.admin_token == token
