"""A server that comes back: hosts are taken over, what is half done is finished, orphans are swept.

A dead server is a spawner that was dropped in the middle: its tasks are cancelled and nothing is
tidied up. Real servers are killed in test_agents_end_to_end.py.
"""

from __future__ import annotations

import asyncio
import os
import signal

from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_FAILED,
    AGENT_STATE_PENDING,
    AGENT_STATE_STARTING,
    AGENT_STATE_TERMINATED,
    TERMINATE_MODE_GRACEFUL,
)
from kapell_server.domain.access import Caller
from kapell_server.spawner.keeper import Patience
from kapell_server.spawner.ports import Submission

from tests.spawner.agent_records import AgentRecords
from tests.spawner.conftest import Place

NEVER = 600.0


class DeafRecords(AgentRecords):
    """Takes no fact: it is never committed, and the spawner waits for it until it dies."""

    asked: asyncio.Event

    def hear_nothing(self) -> None:
        self.asked = asyncio.Event()

    def hear_again(self) -> None:
        del self.asked

    async def submit(self, request: Submission, caller: Caller) -> bytes:
        if hasattr(self, "asked"):
            self.asked.set()
            await asyncio.Event().wait()
        return await super().submit(request, caller)


async def test_running_host_is_adopted_and_its_exit_seen(place: Place) -> None:
    watch = place.watch()
    first = await place.started(watch.command("daemon"))
    place.records.spawn("agent_a")
    agent = await place.records.reached("agent_a", AGENT_STATE_ACTIVE)
    await watch.said("host")

    await first.stop(terminate_agents=False)
    assert watch.alive
    await place.started(watch.command("daemon"))
    os.kill(agent.pid, signal.SIGKILL)
    agent = await place.records.ended("agent_a")

    assert not watch.alive
    assert agent.state == AGENT_STATE_FAILED
    assert watch.lines.count("host") == 1, "no second host was started"


async def test_lost_agent_whose_host_still_runs_is_adopted(place: Place) -> None:
    watch = place.watch()
    first = await place.started(watch.command())
    place.records.spawn("agent_a")
    await watch.said("host")
    await first.stop(terminate_agents=False)
    place.records.lose("agent_a")

    await place.started(watch.command())
    place.records.terminate("agent_a")
    await place.records.ended("agent_a")

    assert not watch.alive
    assert watch.lines.count("host") == 1


async def test_exit_of_a_host_that_is_not_our_child_has_an_unknown_status(place: Place) -> None:
    await place.started(["/bin/true"])
    place.records.spawn("agent_a", state=AGENT_STATE_ACTIVE)

    agent = await place.records.ended("agent_a")

    assert agent.state == AGENT_STATE_FAILED
    assert (agent.exit.code, agent.exit.signal) == (0, 0)
    assert agent.exit.message == "ended while no server was watching; its exit status is unknown"


async def test_host_that_died_while_the_server_was_away_is_reported_after_a_sweep(place: Place) -> None:
    watch = place.watch()
    first = await place.started(watch.command("daemon", "session"))
    place.records.spawn("agent_a")
    agent = await place.records.reached("agent_a", AGENT_STATE_ACTIVE)
    await watch.said("host")
    await first.stop(terminate_agents=False)
    os.kill(agent.pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitpid, agent.pid, 0)
    assert watch.alive, "the daemon outlives its host"

    await place.started(watch.command())
    agent = await place.records.ended("agent_a")

    assert not watch.alive
    assert agent.state == AGENT_STATE_FAILED


async def test_host_started_just_before_the_server_died_is_not_started_twice(place: Place) -> None:
    records = place.records = DeafRecords(log_id=place.log_id)
    watch = place.watch()
    records.hear_nothing()
    first = await place.started(watch.command())
    records.spawn("agent_a")
    await records.asked.wait()
    await watch.said("host")
    await first.stop(terminate_agents=False)
    assert records.agent("agent_a").state == AGENT_STATE_PENDING, "the start was never committed"

    records.hear_again()
    await place.started(watch.command())
    agent = await records.reached("agent_a", AGENT_STATE_ACTIVE)

    host = place.table().host("agent_a")
    assert host is not None
    assert agent.pid == host.pid
    assert watch.lines.count("host") == 1


async def test_end_that_was_never_committed_is_reported_by_the_next_server(place: Place) -> None:
    records = place.records = DeafRecords(log_id=place.log_id)
    watch = place.watch()
    first = await place.started(watch.command("deaf", "daemon"))
    records.spawn("agent_a")
    await records.reached("agent_a", AGENT_STATE_ACTIVE)
    await watch.said("host")
    records.hear_nothing()
    records.terminate("agent_a")
    await records.asked.wait()
    await first.stop(terminate_agents=False)

    records.hear_again()
    records.forget_terminations()
    await place.started(watch.command())
    agent = await records.ended("agent_a")

    assert not watch.alive
    assert agent.state == AGENT_STATE_TERMINATED


async def test_termination_that_was_waiting_for_its_grace_is_finished(place: Place) -> None:
    watch = place.watch()
    first = await place.started(watch.command("deaf", "daemon"))
    place.records.spawn("agent_a")
    await watch.said("host")
    place.records.terminate("agent_a", mode=TERMINATE_MODE_GRACEFUL, grace_seconds=NEVER)
    await first.stop(terminate_agents=False)
    assert watch.alive

    place.records.forget_terminations()
    await place.started(watch.command())
    agent = await place.records.ended("agent_a")

    assert not watch.alive
    assert agent.state == AGENT_STATE_TERMINATED


async def test_host_that_was_stopped_for_its_killing_is_killed_by_the_next_server(place: Place) -> None:
    watch = place.watch()
    first = await place.started(watch.command("daemon"))
    place.records.spawn("agent_a")
    agent = await place.records.reached("agent_a", AGENT_STATE_ACTIVE)
    await watch.said("host")
    await first.stop(terminate_agents=False)
    os.kill(agent.pid, signal.SIGSTOP)
    place.records.terminate("agent_a")
    place.records.forget_terminations()

    await place.started(watch.command(), patience=Patience(term=0.1))
    await place.records.ended("agent_a")

    assert not watch.alive


async def test_processes_of_agents_that_have_ended_are_swept_at_the_start(place: Place) -> None:
    watch = place.watch()
    first = await place.started(watch.command("daemon", "stubborn"))
    place.records.spawn("agent_a")
    await watch.said("host")
    await first.stop(terminate_agents=False)
    place.records.end("agent_a")

    await place.started(watch.command())

    await watch.gone()


async def test_directory_of_an_agent_deleted_in_a_crash_is_removed(place: Place) -> None:
    watch = place.watch()
    directory = place.data_dir / "agents" / "agent_a"
    directory.mkdir(parents=True)
    (directory / "host.log").write_text("left over\n")
    kept = place.data_dir / "agents" / "agent_b"
    kept.mkdir()
    place.records.spawn("agent_b", state=AGENT_STATE_FAILED)
    looked = place.records.will_look_for("agent_b")

    await place.started(watch.command())
    await looked.wait()

    assert not directory.exists()
    assert kept.exists()


async def test_host_that_cannot_know_the_new_address_is_ended(place: Place) -> None:
    watch = place.watch()
    first = await place.started(watch.command("daemon"))
    place.records.spawn("agent_a")
    await watch.said("host")
    await first.stop(terminate_agents=False)

    place.address = "127.0.0.1:50052"
    await place.started(watch.command())
    agent = await place.records.ended("agent_a")

    assert not watch.alive
    assert agent.state == AGENT_STATE_FAILED
    assert agent.state_reason == (
        "the server has moved from 127.0.0.1:50051 to 127.0.0.1:50052, which its host cannot know;"
        " see: kapell agent logs agent_a"
    )


async def test_agent_that_the_ring_never_told_of_is_found_in_the_list(place: Place) -> None:
    place.records = AgentRecords(log_id=place.log_id, ring_capacity=4)
    watch = place.watch()
    await place.started(watch.command())
    for number in range(10):
        place.records.spawn(f"agent_x{number}", runtime="external")
    place.records.spawn("agent_a")
    for number in range(10, 20):
        place.records.spawn(f"agent_x{number}", runtime="external")
    place.records.compact()

    await place.records.reached("agent_a", AGENT_STATE_ACTIVE)

    await watch.said("host")


async def test_states_before_registration_are_adopted_too(place: Place) -> None:
    place.records = AgentRecords(log_id=place.log_id, registers=False)
    watch = place.watch()
    first = await place.started(watch.command())
    place.records.spawn("agent_a")
    await place.records.reached("agent_a", AGENT_STATE_STARTING)
    await watch.said("host")
    await first.stop(terminate_agents=False)

    second = await place.started(watch.command())
    await second.stop(terminate_agents=True)

    assert place.records.agent("agent_a").state == AGENT_STATE_TERMINATED
    assert watch.lines.count("host") == 1
