"""`kapell auth token`: what proves who you are, and what to do without it."""

from __future__ import annotations

from pathlib import Path

from tests.cli.shell import Shell
from tests.support.server_process import ServerProcess


def test_the_token_of_the_local_server_is_printed(shell: Shell, cli_server: ServerProcess) -> None:
    assert shell.pipe("auth", "token").out == cli_server.admin_token + "\n"


def test_its_file_is_printed(shell: Shell, cli_server: ServerProcess) -> None:
    assert Path(shell.pipe("auth", "token", "--path").out.strip()) == cli_server.data_dir / "admin.token"


def test_the_environment_comes_first(no_server: Shell) -> None:
    assert Shell({**no_server.environment, "KAPELL_TOKEN": "from-environment"}).pipe("auth", "token").out == (
        "from-environment\n"
    )


def test_without_a_token_the_way_to_one_is_told(no_server: Shell) -> None:
    result = no_server.pipe("auth", "token")

    assert result.code == 4
    assert "kapell up" in result.err
    assert result.out == ""


def test_the_token_is_never_shown_for_another_machine(shell: Shell) -> None:
    assert shell.pipe("auth", "token", "--address", "example.com:50051").code == 4
