"""Agents of profiles without a program, from the command line."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import shell_environment
from tests.cli.shell import Shell
from tests.support.server_process import ServerProcess

PROFILE = """
[profiles.triage.llm]
base_url = "http://127.0.0.1:9/v1"
model = "small"
"""


def test_a_model_is_shown_as_what_it_is_and_has_no_directory(tmp_path: Path) -> None:
    config = tmp_path / "kapell.toml"
    config.write_text(PROFILE)
    with ServerProcess(tmp_path / "data", arguments=("--config", str(config))) as server:
        home = tmp_path / "home"
        home.mkdir()
        address = {"KAPELL_ADDRESS": server.address, "KAPELL_TOKEN": server.admin_token}
        shell = Shell(shell_environment(home, **address))

        moved = shell.pipe("agent", "spawn", "triage", "--cwd", str(tmp_path))
        spawned = shell.pipe("agent", "spawn", "triage", "--id", "agent_triage")
        shown = shell.pipe("agent", "get", "agent_triage")

    assert moved.code == 2
    assert "it is for profiles that run a program in no workspace; triage runs llm" in moved.err
    assert spawned.code == 0, spawned.err
    assert "small at http://127.0.0.1:9/v1" in shown.out


KEYED = """
[profiles.keyed.command]
argv = ["sh", "-c", "echo $KEY; pwd"]
env = { KEY = "from-the-profile" }
"""


def test_a_profile_that_is_moved_keeps_the_values_of_its_environment(tmp_path: Path) -> None:
    config = tmp_path / "kapell.toml"
    config.write_text(KEYED)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with ServerProcess(tmp_path / "data", arguments=("--config", str(config))) as server:
        home = tmp_path / "home"
        home.mkdir()
        address = {"KAPELL_ADDRESS": server.address, "KAPELL_TOKEN": server.admin_token}
        shell = Shell(shell_environment(home, **address))

        would = shell.pipe("agent", "spawn", "keyed", "--cwd", str(elsewhere), "--dry-run", "-o", "json")
        spawned = shell.pipe("agent", "spawn", "keyed", "--cwd", str(elsewhere), "-o", "json")
        ran = shell.pipe("task", "run", "--type", "keyed", "any", "-o", "json")

    assert str(elsewhere) in would.out
    assert spawned.code == 0, spawned.err
    assert '"profile": "keyed"' in spawned.out
    assert "from-the-profile" not in f"{would.out}{spawned.out}"
    assert f"from-the-profile\\n{elsewhere}" in ran.out
