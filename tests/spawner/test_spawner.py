"""The life of a spawned agent: started, watched, ended, and never more than the record says."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_FAILED,
    AGENT_STATE_TERMINATED,
    TERMINATE_MODE_FORCE,
    TERMINATE_MODE_GRACEFUL,
)
from kapell.v1.error_pb2 import ERROR_REASON_QUEUE_FULL, ERROR_REASON_STORAGE_FULL
from kapell_server.domain.errors import KapellError
from kapell_server.engine.facts import AgentProcessExited, AgentProcessStarted
from kapell_server.spawner.keeper import Patience

from tests.spawner.agent_records import AgentRecords
from tests.spawner.conftest import ADDRESS, Place

LONG = 30.0


async def test_pending_agent_is_started_and_reported(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command())

    place.records.spawn("agent_a")

    agent = await place.records.reached("agent_a", AGENT_STATE_ACTIVE)
    await watch.said("host")
    host = place.table().host("agent_a")
    assert host is not None
    assert agent.pid == host.pid
    assert host.session == host.pid, "the host leads a session of its own"


async def test_agent_that_was_pending_before_the_start_is_started(place: Place) -> None:
    watch = place.watch()
    place.records.spawn("agent_a")

    await place.started(watch.command())

    await place.records.reached("agent_a", AGENT_STATE_ACTIVE)


async def test_host_gets_its_files_and_only_the_allowed_environment(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command(), LC_ALL="C", HOME="/nowhere", AWS_SECRET_ACCESS_KEY="secret")

    place.records.spawn("agent_a")
    agent = await place.records.reached("agent_a", AGENT_STATE_ACTIVE)
    await watch.said("host")

    directory = place.data_dir / "agents" / "agent_a"
    proc = Path("/proc") / str(agent.pid)
    environment = dict(line.split("=", 1) for line in (proc / "environ").read_text().split("\0") if line)
    ticket = environment.pop("KAPELL_TICKET")
    assert environment == {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C",
        "HOME": "/nowhere",
        "KAPELL_ADDRESS": ADDRESS,
        "KAPELL_AGENT_ID": "agent_a",
        "KAPELL_MARK": f"{place.log_id}/agent_a",
        "KAPELL_WORKSPACES_DIR": str(place.data_dir / "workspaces"),
        "KAPELL_SPEC_FILE": str(directory / "spec.json"),
    }
    assert (proc / "cwd").readlink() == directory
    assert ticket not in (proc / "cmdline").read_text()
    spec_file = directory / "spec.json"
    assert json.loads(spec_file.read_text())["agent_types"] == ["shell"]
    assert spec_file.stat().st_mode & 0o077 == 0
    assert directory.stat().st_mode & 0o077 == 0


async def test_external_agents_are_left_alone(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command())

    place.records.spawn("agent_elsewhere", runtime="external")
    place.records.spawn("agent_a")
    await place.records.reached("agent_a", AGENT_STATE_ACTIVE)

    assert place.table().agent_ids == {"agent_a"}


async def test_forced_termination_reports_only_when_the_tree_is_gone(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command("deaf", "stubborn", "daemon", "session"))
    place.records.spawn("agent_a")
    await watch.said("host")

    place.records.terminate("agent_a", mode=TERMINATE_MODE_FORCE)
    agent = await place.records.ended("agent_a")

    assert not watch.alive
    assert agent.state == AGENT_STATE_TERMINATED
    assert agent.exit.signal == signal.SIGKILL
    assert agent.exit.message == "killed by SIGKILL"
    assert agent.state_reason == "asked by a test"


async def test_host_that_leaves_when_told_is_not_killed(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command())
    place.records.spawn("agent_a")
    await watch.said("host")

    place.records.terminate("agent_a", mode=TERMINATE_MODE_GRACEFUL, grace_seconds=LONG)
    agent = await place.records.ended("agent_a")

    assert agent.state == AGENT_STATE_TERMINATED
    assert (agent.exit.code, agent.exit.signal, agent.exit.message) == (0, 0, "exited with code 0")


async def test_what_a_leaving_host_leaves_behind_is_killed(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command("daemon", "session", "stubborn"))
    place.records.spawn("agent_a")
    await watch.said("host")

    place.records.terminate("agent_a", mode=TERMINATE_MODE_GRACEFUL, grace_seconds=LONG)
    agent = await place.records.ended("agent_a")

    assert not watch.alive
    assert agent.exit.message == "exited with code 0"


async def test_host_that_misses_the_directive_is_asked_by_sigterm(place: Place) -> None:
    watch = place.watch()
    place.records.directives = False
    await place.started(watch.command(), patience=Patience(grace_margin=0.0, term=LONG))
    place.records.spawn("agent_a")
    await watch.said("host")

    place.records.terminate("agent_a", mode=TERMINATE_MODE_GRACEFUL, grace_seconds=0.1)
    agent = await place.records.ended("agent_a")

    assert agent.state == AGENT_STATE_TERMINATED
    assert agent.exit.message == "killed by SIGTERM"


async def test_host_that_ignores_everything_is_killed_after_its_grace(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command("deaf", "stubborn"))
    place.records.spawn("agent_a")
    await watch.said("host")

    place.records.terminate("agent_a", mode=TERMINATE_MODE_GRACEFUL, grace_seconds=0.1)
    agent = await place.records.ended("agent_a")

    assert not watch.alive
    assert agent.state == AGENT_STATE_TERMINATED
    assert agent.exit.message == "killed by SIGKILL"


async def test_force_cuts_a_grace_period_short(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command("deaf"))
    place.records.spawn("agent_a")
    await watch.said("host")

    place.records.terminate("agent_a", mode=TERMINATE_MODE_GRACEFUL, grace_seconds=3600)
    place.records.terminate("agent_a", mode=TERMINATE_MODE_FORCE)

    agent = await place.records.ended("agent_a")
    assert agent.exit.message == "killed by SIGKILL"


async def test_agent_terminated_before_its_start_is_never_started(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command())

    place.records.spawn("agent_a")
    place.records.terminate("agent_a")
    agent = await place.records.ended("agent_a")

    assert agent.state == AGENT_STATE_TERMINATED
    assert agent.exit.message == "was never started"
    assert watch.lines == []


async def test_death_of_a_host_fails_the_agent_after_its_tree_is_swept(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command("daemon", "session", "stubborn"))
    place.records.spawn("agent_a")
    agent = await place.records.reached("agent_a", AGENT_STATE_ACTIVE)
    await watch.said("host")

    os.kill(agent.pid, signal.SIGKILL)
    agent = await place.records.ended("agent_a")

    assert not watch.alive
    assert agent.state == AGENT_STATE_FAILED
    assert agent.exit.signal == signal.SIGKILL
    assert agent.state_reason == "its host killed by SIGKILL; see: kapell agent logs agent_a"


async def test_host_that_exits_before_it_registers_fails_with_a_hint(place: Place) -> None:
    place.records = AgentRecords(log_id=place.log_id, registers=False)
    watch = place.watch()
    await place.started(watch.command("exit=3"))

    place.records.spawn("agent_a")
    agent = await place.records.ended("agent_a")

    assert agent.state == AGENT_STATE_FAILED
    assert agent.exit.code == 3
    assert agent.state_reason == ("its host exited with code 3 before it registered; see: kapell agent logs agent_a")


async def test_the_last_words_of_a_host_that_failed_are_part_of_the_reason(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command("say=the spec is broken", "exit=3"))

    place.records.spawn("agent_a")
    agent = await place.records.ended("agent_a")

    assert "exited with code 3" in agent.state_reason
    assert "saying: the spec is broken; see: kapell agent logs agent_a" in agent.state_reason


async def test_host_that_says_goodbye_may_leave_by_itself(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command(), patience=Patience(term=LONG))
    place.records.spawn("agent_a")
    await watch.said("host")

    pid = place.records.leave("agent_a")
    os.kill(pid, signal.SIGUSR1)
    agent = await place.records.ended("agent_a")

    assert agent.state == AGENT_STATE_TERMINATED
    assert agent.exit.message == "exited with code 0"


async def test_host_that_says_goodbye_and_stays_is_ended(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command("deaf", "daemon"))
    place.records.spawn("agent_a")
    await watch.said("host")

    place.records.leave("agent_a")
    agent = await place.records.ended("agent_a")

    assert not watch.alive
    assert agent.state == AGENT_STATE_TERMINATED


async def test_host_that_cannot_be_started_fails_the_agent(place: Place) -> None:
    await place.started([str(place.data_dir / "no-such-host")])

    place.records.spawn("agent_a")
    agent = await place.records.ended("agent_a")

    assert agent.state == AGENT_STATE_FAILED
    assert agent.state_reason == "its host could not be started: No such file or directory"


async def test_fact_that_is_refused_is_told_again(place: Place) -> None:
    watch = place.watch()
    place.records.refusals = [KapellError(ERROR_REASON_QUEUE_FULL, "Too many writes are waiting.")] * 2
    await place.started(watch.command())

    place.records.spawn("agent_a")
    await place.records.reached("agent_a", AGENT_STATE_ACTIVE)
    place.records.refusals = [KapellError(ERROR_REASON_QUEUE_FULL, "Too many writes are waiting.")] * 2
    place.records.terminate("agent_a")
    await place.records.ended("agent_a")

    assert [type(fact) for fact in place.records.facts] == [AgentProcessStarted, AgentProcessExited]


async def test_many_agents_start_a_few_at_a_time(place: Place) -> None:
    place.records = AgentRecords(log_id=place.log_id, ring_capacity=8)
    watch = place.watch()
    await place.started(watch.command())
    names = [f"agent_{number}" for number in range(40)]

    for name in names:
        place.records.spawn(name)
    for name in names:
        await place.records.reached(name, AGENT_STATE_ACTIVE)

    await watch.said("host", times=40)
    assert place.table().agent_ids == set(names)


async def test_deleted_agent_loses_its_directory(place: Place) -> None:
    watch = place.watch()
    spawner = await place.started(watch.command())
    place.records.spawn("agent_a")
    await place.records.reached("agent_a", AGENT_STATE_ACTIVE)
    place.records.terminate("agent_a")
    await place.records.ended("agent_a")
    directory = spawner.log_path("agent_a").parent
    assert directory.exists()

    place.records.delete("agent_a")
    # Starting another agent takes longer than removing a directory.
    place.records.spawn("agent_b")
    await place.records.reached("agent_b", AGENT_STATE_ACTIVE)
    await spawner.stop(terminate_agents=True)

    assert not directory.exists()


async def test_stop_of_the_server_ends_all_agents_when_asked_to(place: Place) -> None:
    watch = place.watch()
    spawner = await place.started(watch.command("daemon"))
    for name in ("agent_a", "agent_b", "agent_c"):
        place.records.spawn(name)
    await watch.said("host", times=3)

    await spawner.stop(terminate_agents=True)

    assert not watch.alive
    for name in ("agent_a", "agent_b", "agent_c"):
        assert place.records.agent(name).state == AGENT_STATE_TERMINATED
        assert place.records.agent(name).state_reason == "the server was stopped"


async def test_stop_of_the_server_ends_all_agents_though_nothing_can_be_recorded(place: Place) -> None:
    watch = place.watch()
    spawner = await place.started(watch.command("daemon"))
    for name in ("agent_a", "agent_b"):
        place.records.spawn(name)
        await place.records.reached(name, AGENT_STATE_ACTIVE)
    await watch.said("host", times=2)
    place.records.refusals = [KapellError(ERROR_REASON_STORAGE_FULL, "The disk is full.")] * 1000

    await spawner.stop(terminate_agents=True)

    assert not watch.alive
