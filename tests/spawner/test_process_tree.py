"""Whose process is it: by mark, by descent, by session, and never by accident."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from kapell_server.spawner.process_tree import Process, ProcessTable, mark_of, open_verified, send

LOG = "log_tree"


def process(pid: int, *, parent: int = 1, session: int | None = None, marked: str = "", host: bool = False) -> Process:
    leader = pid if session is None else session
    return Process(pid=pid, parent=parent, group=leader, session=leader, started=pid, marked=marked, host=host)


def table(*processes: Process) -> ProcessTable:
    return ProcessTable({each.pid: each for each in processes})


def pids(table: ProcessTable, agent_id: str) -> set[int]:
    return {each.pid for each in table.tree(agent_id)}


@contextmanager
def running(mark: str, *, own_session: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import signal; print(flush=True); signal.pause()"],
        env={"KAPELL_MARK": mark},
        stdout=subprocess.PIPE,
        start_new_session=own_session,
    )
    assert child.stdout is not None
    with child.stdout:
        child.stdout.readline()
        yield child
        child.kill()
        child.wait()


def test_descendants_without_a_mark_belong_to_their_ancestors_agent() -> None:
    found = table(
        process(1000, marked="agent_a", host=True),
        process(1001, parent=1000),
        process(1002, parent=1001),
        process(1003),
    )

    assert pids(found, "agent_a") == {1000, 1001, 1002}


def test_orphans_belong_to_the_agent_whose_session_they_live_in() -> None:
    found = table(
        process(1001, session=1000, marked="agent_a"), process(1002, session=1000), process(1003, session=999)
    )

    assert pids(found, "agent_a") == {1001, 1002}


def test_session_of_a_stranger_is_not_taken_over_by_one_marked_process() -> None:
    shell = process(900)
    found = table(shell, process(901, parent=900, session=900, marked="agent_a"), process(902, parent=900, session=900))

    assert pids(found, "agent_a") == {901}


def test_trees_of_several_agents_are_told_apart() -> None:
    found = table(
        process(1000, marked="agent_a", host=True),
        process(1001, parent=1000),
        process(2000, marked="agent_b", host=True),
        process(2001, parent=2000),
    )

    assert (pids(found, "agent_a"), pids(found, "agent_b")) == ({1000, 1001}, {2000, 2001})
    assert found.agent_ids == {"agent_a", "agent_b"}


def test_the_server_itself_is_never_part_of_a_tree() -> None:
    found = table(process(os.getpid(), marked="agent_a"), process(1000, marked="agent_a"))

    assert pids(found, "agent_a") == {1000}


def test_host_is_the_process_that_the_record_names() -> None:
    first, second = process(1000, marked="agent_a", host=True), process(1001, marked="agent_a", host=True)
    found = table(second, first)

    assert found.host("agent_a") == first
    assert found.host("agent_a", 1001) == second
    assert found.host("agent_a", 1002) is None


def test_real_processes_are_found_by_their_mark() -> None:
    with running(f"{LOG}/agent_a") as child, running(f"{LOG}x/agent_a"):
        assert pids(ProcessTable.read(LOG), "agent_a") == {child.pid}


def test_server_inside_an_agent_of_another_finds_its_own_and_is_found() -> None:
    with running(mark_of(LOG, "agent_inner", outer="log_outer/agent_outer")) as child:
        assert pids(ProcessTable.read(LOG), "agent_inner") == {child.pid}
        assert pids(ProcessTable.read("log_outer"), "agent_outer") == {child.pid}


def test_large_environment_is_read_to_its_end() -> None:
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", "import signal; print(flush=True); signal.pause()"],
        env={f"A{number}": "x" * 1000 for number in range(200)} | {"KAPELL_MARK": f"{LOG}/agent_large"},
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    with child.stdout:
        child.stdout.readline()
        assert pids(ProcessTable.read(LOG), "agent_large") == {child.pid}
        child.kill()
        child.wait()


def test_dead_process_that_nobody_has_reaped_is_gone() -> None:
    with running(f"{LOG}/agent_a") as child:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

        assert ProcessTable.read(LOG).agent_ids == set()


def test_later_process_of_the_same_pid_is_not_signalled() -> None:
    with running(f"{LOG}/agent_a") as child:
        (genuine,) = ProcessTable.read(LOG).tree("agent_a")
        earlier = replace(genuine, started=genuine.started - 1)

        assert open_verified(earlier) is None
        assert not send(earlier, signal.SIGKILL)
        assert child.poll() is None
        assert send(genuine, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL


def test_process_that_is_gone_takes_no_signal() -> None:
    with running(f"{LOG}/agent_a") as child:
        (gone,) = ProcessTable.read(LOG).tree("agent_a")
        child.kill()
        child.wait()

        assert not send(gone, signal.SIGKILL)
