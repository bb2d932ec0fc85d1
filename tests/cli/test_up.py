"""`kapell up`: the server, the demo that fills it, and an end that leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from kapell.cli.banner import banner, curl_lines
from kapell.cli.terminal import detect

from tests.cli.conftest import shell_environment
from tests.cli.shell import Shell


@pytest.fixture
def up(tmp_path: Path) -> Shell:
    """A shell for a server of the test's own, over a small directory of files."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.py").write_text("print(1)\n# TODO" + ": less\n")
    (tmp_path / "files" / "notes.md").write_text("two words\n")
    return Shell(
        shell_environment(
            tmp_path,
            KAPELL_DATA_DIR=str(tmp_path / "data"),
            KAPELL_GRPC_ADDRESS="127.0.0.1:0",
            KAPELL_DEMO_PACE="0",
        )
    )


@contextmanager
def running(shell: Shell, *args: str) -> Iterator[subprocess.Popen[str]]:
    """`kapell up ARGS` in the directory of files; ended by Ctrl-C if the test has not done so."""
    files = Path(shell.environment["HOME"]) / "files"
    with shell.process("up", *args, cwd=files) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What it writes to stdout up to the line with these words."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"{words!r} never came; it wrote: {''.join(lines)} {process.stderr and process.stderr.read()}")


def left_over(shell: Shell) -> list[str]:
    """Processes that know the data directory of this test: server, hosts, programs."""
    data_dir = shell.environment["KAPELL_DATA_DIR"]
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(data_dir in value for value in process.environ().values()):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def states(shell: Shell) -> dict[str, str]:
    """State of the newest task of each name."""
    tasks = json.loads(shell.pipe("task", "list", "--oldest", "-n", "200", "-o", "json").out)
    return {task["displayName"]: task["state"].removeprefix("TASK_STATE_").lower() for task in tasks}


def test_up_becomes_the_server(up: Shell) -> None:
    with running(up) as process:
        read_until(process, "Ctrl-C")

        assert up.pipe("status").code == 0
        assert psutil.Process(process.pid).cmdline()[1:3] == ["-m", "kapell_server"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_refusal_of_the_server_is_passed_on(up: Shell) -> None:
    with running(up, "--grpc-address", "nonsense") as process:
        _, err = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "host:port" in err


def test_an_empty_value_is_refused_and_never_means_the_default(up: Shell) -> None:
    with running(up, "--data-dir", "") as process:
        _, err = process.communicate(timeout=60)

    assert process.returncode == 2
    assert "--data-dir must not be empty" in err


def test_the_way_out_of_a_refused_address_is_there(up: Shell) -> None:
    with running(up, "--grpc-address", "0.0.0.0:0") as process:
        _, err = process.communicate(timeout=60)
    assert "add --insecure-bind" in err

    with running(up, "--grpc-address", "0.0.0.0:0", "--insecure-bind") as process:
        assert "is up" in read_until(process, "Ctrl-C")


def test_the_demo_does_what_it_says_and_leaves_nothing(up: Shell) -> None:
    with running(up, "--demo") as process:
        said = read_until(process, "will be cancelled")
        types = [part for kind in ("count", "todo", "hash") for part in ("--type", kind)]
        up.pipe("task", "wait", *up.pipe("task", "list", *types, "-n", "200", "-o", "id").out.split())
        agents = json.loads(up.pipe("agent", "list", "-o", "json").out)
        seen = states(up)
        attempts = {
            t["displayName"]: t.get("attempt", 0)
            for t in json.loads(up.pipe("task", "list", "-n", "200", "-o", "json").out)
        }
        counted = up.pipe("task", "run", "--type", "shell", "wc -l < a.py")
        reviewed = up.pipe("run", "code-review", "--param", "files=a.py", "--param", "branch=dev")

        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)

    assert "no model" in said
    assert sorted(agent["displayName"] for agent in agents) == [
        "counter",
        "drafter",
        "editor",
        "hasher",
        "reader",
        "scribe",
    ]
    assert seen["Count the lines of every Python file"] == "succeeded"
    assert seen["Find a file that is not there"] == "failed"
    assert attempts["Find a file that is not there"] == 2
    assert seen["Works at the second attempt"] == "succeeded"
    assert seen["Count to a thousand, slowly (will be cancelled)"] == "cancelled"
    assert counted.out.split() == ["2"]
    assert "a.py: 2 lines" in reviewed.out
    assert reviewed.code == 0
    assert process.returncode == 0, err
    assert "Everything has stopped" in rest
    assert left_over(up) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_however_the_demo_ends_nothing_is_left(up: Shell, number: signal.Signals) -> None:
    with running(up, "--demo") as process:
        read_until(process, "succeeded")
        server = psutil.Process(process.pid).children()[0]

        process.send_signal(number)
        process.communicate(timeout=60)
        psutil.wait_procs([server], timeout=30)

    assert left_over(up) == []


def test_a_demo_whose_server_dies_says_so(up: Shell) -> None:
    with running(up, "--demo") as process:
        read_until(process, "Ctrl-C")
        psutil.Process(process.pid).children()[0].kill()

        _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "has died" in err
    # Its agents outlive a killed server by design; a server that comes back and is stopped ends them.
    with running(up) as again:
        read_until(again, "Ctrl-C")
        again.send_signal(signal.SIGINT)
        assert again.wait(30) == 0
    assert left_over(up) == []


def test_the_banner_fits_a_terminal(tmp_path: Path) -> None:
    lines = banner(detect(), address="127.0.0.1:50051", data_dir=tmp_path, is_demo=True)

    assert len(lines) <= 24
    shown = r"kapell (status|approval list|budget list|usage show|lock list|task run) "
    assert sum(re.search(shown, line) is not None for line in lines) == 6


def test_the_first_commands_of_the_banner_work_as_they_stand(up: Shell) -> None:
    with running(up) as process:
        said = read_until(process, "Ctrl-C")
        spawn, run = (
            re.sub(r"^ *\S*kapell (.*?)(  .*)?$", r"\1", line)
            for line in said.splitlines()
            if re.search("agent spawn|task run", line)
        )

        done = subprocess.run(
            ["sh", "-euc", f'"$0" -m kapell.cli.main {spawn}; "$0" -m kapell.cli.main {run}', sys.executable],
            env=dict(up.environment),
            cwd=Path(up.environment["HOME"]) / "files",
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert done.returncode == 0, done.stderr
    assert "1 notes.md" in done.stdout


def test_the_command_for_any_shell_works(up: Shell) -> None:
    with running(up) as process:
        read_until(process, "Ctrl-C")
        address = json.loads((Path(up.environment["KAPELL_DATA_DIR"]) / "server.json").read_text())["grpc_address"]
        lines = curl_lines(address, Path(up.environment["KAPELL_DATA_DIR"]) / "admin.token")

        done = subprocess.run(
            ["sh", "-c", "\n".join(lines)],
            env=dict(up.environment),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )

    assert json.loads(done.stdout)["task"]["displayName"] == "date"
    assert lines[0].startswith("buf curl")


def test_a_demo_that_cannot_start_says_what_to_mend(up: Shell) -> None:
    with running(up, "--demo", "--grpc-address", "nonsense") as process:
        _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "host:port" in err
    assert "error: the server did not start" in err
    assert "Traceback" not in err


def test_two_servers_on_one_directory_the_second_is_refused(up: Shell) -> None:
    with running(up) as first:
        read_until(first, "Ctrl-C")
        with running(up, "--demo") as second:
            _, err = second.communicate(timeout=60)

        assert second.returncode == 1
        assert "error: the server did not start" in err
        assert up.pipe("status").code == 0
