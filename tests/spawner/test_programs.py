"""What a spec's program resolves to, what is said when it does not, and what a host inherits."""

from __future__ import annotations

from pathlib import Path

import pytest
from kapell.v1.agent_pb2 import AgentSpec, CommandRuntime
from kapell.v1.error_pb2 import ERROR_REASON_PROGRAM_NOT_FOUND
from kapell_server.domain.errors import KapellError
from kapell_server.spawner.environment import allowed
from kapell_server.spawner.gate import StartGate
from kapell_server.spawner.programs import find_program

PATH = {"PATH": "/usr/bin:/bin"}


def spec(*argv: str, directory: str = "", **env: str) -> AgentSpec:
    return AgentSpec(command=CommandRuntime(argv=argv, working_directory=directory, env=env))


def script(path: Path, *, mode: int = 0o755) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def refusal(wanted: AgentSpec) -> str:
    with pytest.raises(KapellError) as error:
        find_program(wanted, PATH)
    assert error.value.reason == ERROR_REASON_PROGRAM_NOT_FOUND
    assert error.value.metadata["program"]
    return error.value.message


def test_name_is_looked_up_in_the_path() -> None:
    assert find_program(spec("env"), PATH) in ("/usr/bin/env", "/bin/env")


def test_path_of_the_spec_comes_first(tmp_path: Path) -> None:
    program = script(tmp_path / "env")

    assert find_program(spec("env", PATH=str(tmp_path)), PATH) == str(program)


def test_relative_path_counts_from_the_working_directory(tmp_path: Path) -> None:
    script(tmp_path / "run.sh")

    assert find_program(spec("./run.sh", directory=str(tmp_path)), PATH) == str(tmp_path / "run.sh")


def test_a_known_program_that_is_missing_is_told_with_the_command_that_installs_it() -> None:
    with pytest.raises(KapellError) as error:
        find_program(spec("codex"), {"PATH": "/nowhere"})

    assert "Install it: npm install -g @openai/codex" in error.value.message


def test_program_that_depends_on_the_task_is_taken_as_it_stands() -> None:
    assert find_program(spec("{input.program}"), PATH) == "{input.program}"


def test_doubled_brace_is_a_brace(tmp_path: Path) -> None:
    program = script(tmp_path / "a{b}")

    assert find_program(spec(f"{tmp_path}/a{{{{b}}}}"), PATH) == str(program)


def test_each_refusal_says_why_and_what_to_do(tmp_path: Path) -> None:
    locked = script(tmp_path / "locked", mode=0o644)

    assert refusal(spec("no-such-program")) == (
        "Cannot spawn the agent: the program 'no-such-program' is in no directory of PATH (/usr/bin:/bin)."
        " Install it, give its absolute path, or start the server with a PATH that has it."
    )
    assert refusal(spec("bin/tool")) == (
        "Cannot spawn the agent: the program 'bin/tool' is a relative path, and each attempt runs in a fresh"
        " directory. Give an absolute path or set working_directory."
    )
    assert refusal(spec(f"{tmp_path}/none")) == (
        f"Cannot spawn the agent: the program '{tmp_path}/none' is no file at {tmp_path}/none."
        " Correct the first entry of argv or create the file."
    )
    assert refusal(spec(str(locked))) == (
        f"Cannot spawn the agent: the program '{locked}' is not executable at {locked}. Run: chmod +x {locked}."
    )


def test_only_the_allow_list_is_inherited() -> None:
    environ = {"PATH": "/bin", "LC_TIME": "C", "TZ": "UTC", "OPENAI_API_KEY": "secret", "PYTHONPATH": "/x"}

    assert allowed(environ) == {"PATH": "/bin", "LC_TIME": "C", "TZ": "UTC"}


class Starter:
    """Somebody at the gate."""

    def __init__(self) -> None:
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1


def test_gate_lets_in_so_many_in_their_order() -> None:
    gate = StartGate(2)
    starters = [Starter() for _ in range(4)]

    assert [gate.enter(each) for each in starters] == [True, True, False, False]
    gate.leave(starters[0])

    assert [each.woken for each in starters] == [0, 0, 1, 0]
    assert gate.enter(starters[2])
    assert not gate.enter(starters[3])


def test_who_leaves_the_queue_is_not_let_in() -> None:
    gate = StartGate(1)
    first, second, third = Starter(), Starter(), Starter()
    gate.enter(first)
    gate.enter(second)
    gate.enter(third)

    gate.leave(second)
    gate.leave(first)
    gate.leave(first)

    assert (second.woken, third.woken) == (0, 1)
