"""Every block of the README runs as it stands, on the demo that the README starts."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import shell_environment
from tests.cli.shell import Shell
from tests.cli.test_up import read_until

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", README)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """What `make run` starts, on a free port and in a directory of its own."""
    home = tmp_path_factory.mktemp("readme")
    shell = Shell(shell_environment(home, KAPELL_DATA_DIR=str(home / "data"), KAPELL_GRPC_ADDRESS="127.0.0.1:0"))
    with shell.process("up", "--demo", cwd=ROOT) as process:
        read_until(process, "failed")
        yield shell
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def run(shell: Shell, script: str) -> str:
    """Runs a block in the root of the repository; what it wrote, both streams together."""
    address = json.loads((Path(shell.environment["KAPELL_DATA_DIR"]) / "server.json").read_text())["grpc_address"]
    here = script.replace("127.0.0.1:50051", address).replace("source .venv/bin/activate", ":")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", here],
        cwd=ROOT,
        env=dict(shell.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def same(text: str) -> str:
    """Without process ids, task ids and times."""
    text = re.sub(r"process \d+", "process N", text)
    return re.sub(r"in [\d.]+s", "in N", re.sub(r"task_\w+", "task_ID", text)).strip()


def test_every_block_is_of_a_kind_that_is_run() -> None:
    assert {kind for kind, _ in BLOCKS} <= {"console", "sh", "python"}


def test_the_transcript_is_what_happens(demo: Shell) -> None:
    for transcript in blocks("console"):
        command, shown = transcript.removeprefix("$ ").split("\n", 1)

        # On a pipe stdout and stderr are read by different ends of the command, so lines are compared.
        assert sorted(same(run(demo, command)).splitlines()) == sorted(same(shown).splitlines())


def test_the_two_commands_are_targets_that_start_the_demo() -> None:
    for line in blocks("sh")[0].splitlines():
        program, target = shlex.split(line)
        planned = subprocess.run([program, "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert "kapell up --demo" in planned or target == "install"


@pytest.mark.parametrize("script", blocks("sh")[1:])
def test_a_block_of_commands_runs(demo: Shell, script: str) -> None:
    assert run(demo, script)


@pytest.mark.parametrize("script", blocks("python"))
def test_the_python_runs(demo: Shell, script: str) -> None:
    done = run(demo, f"python - <<'END'\n{script}\nEND")

    assert "README.md" in done


def test_the_python_has_eight_lines() -> None:
    assert [len([line for line in script.splitlines() if line.strip()]) for script in blocks("python")] == [8]


def test_what_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
