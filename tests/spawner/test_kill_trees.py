"""Killing whole trees: every kind of escape, fifty trees at once, a thousand in the slow run.

The judge is a FIFO that all processes of the trees hold open; see tree_watch.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_TERMINATED,
    TERMINATE_MODE_FORCE,
    TERMINATE_MODE_GRACEFUL,
)
from kapell_server.spawner.keeper import Patience

from tests.spawner.conftest import Place

ESCAPES = ("child", "stubborn", "session", "daemon")


@pytest.mark.parametrize("program", [*ESCAPES, "bomb", "runaway"])
async def test_no_way_out_survives_a_forced_termination(place: Place, program: str) -> None:
    watch = place.watch()
    await place.started(watch.command("deaf", program))
    place.records.spawn("agent_a")
    await watch.said("host")
    await watch.said(program)

    place.records.terminate("agent_a")
    await place.records.ended("agent_a")

    assert not watch.alive


async def test_program_without_environment_is_found_by_its_descent(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command("adopting", "bare"))
    place.records.spawn("agent_a")
    await watch.said("bare")

    place.records.terminate("agent_a")
    await place.records.ended("agent_a")

    assert not watch.alive


async def test_host_that_restarts_what_is_killed_is_stopped_first(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command("deaf", "hydra"))
    place.records.spawn("agent_a")
    await watch.said("head")

    place.records.terminate("agent_a")
    await place.records.ended("agent_a")

    assert not watch.alive


async def test_other_agents_and_unmarked_processes_are_not_touched(place: Place) -> None:
    watch, outside = place.watch(), place.watch()
    await place.started(watch.command("daemon"))
    place.records.spawn("agent_a")
    place.records.spawn("agent_b")
    await watch.said("host", times=2)
    await watch.said("daemon", times=2)
    stranger = await asyncio.create_subprocess_exec(*outside.command())
    await outside.said("host")
    neighbours = {process.pid for process in place.table().tree("agent_b")}

    place.records.terminate("agent_a")
    await place.records.ended("agent_a")

    assert {process.pid for process in place.table().tree("agent_b")} == neighbours
    assert len(neighbours) == 2
    assert outside.alive
    stranger.kill()
    await stranger.wait()


async def test_fifty_trees_end_at_once_and_leave_nothing(place: Place) -> None:
    await end_trees(place, 50)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_thousand_trees_end_at_once_and_leave_nothing(place: Place) -> None:
    await end_trees(place, 1000)


async def test_fifty_hosts_die_at_once_and_leave_nothing(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command(*ESCAPES))
    names = [f"agent_{number}" for number in range(50)]
    for name in names:
        place.records.spawn(name)
    await watch.said("host", times=50)

    for name in names:
        os.kill((await place.records.reached(name, AGENT_STATE_ACTIVE)).pid, signal.SIGKILL)
    for name in names:
        await place.records.ended(name)

    assert not watch.alive


async def end_trees(place: Place, count: int) -> None:
    """Half by force, half by a grace that the hosts ignore; prints what an end took."""
    watch = place.watch()
    await place.started(watch.command("deaf", *ESCAPES), patience=Patience(grace_margin=0.0, term=0.1))
    names = [f"agent_{number}" for number in range(count)]
    for name in names:
        place.records.spawn(name)
    await watch.said("host", times=count)
    for name in names:
        await place.records.reached(name, AGENT_STATE_ACTIVE)

    began = time.perf_counter()
    for number, name in enumerate(names):
        mode = TERMINATE_MODE_FORCE if number % 2 else TERMINATE_MODE_GRACEFUL
        place.records.terminate(name, mode=mode, grace_seconds=0.0)
    for name in names:
        assert (await place.records.ended(name)).state == AGENT_STATE_TERMINATED
    took = time.perf_counter() - began

    assert not watch.alive
    assert place.table().agent_ids == set()
    print(f"{count} trees of {len(ESCAPES) + 1} processes gone in {took:.2f} s")
