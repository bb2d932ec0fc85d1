"""The death of agent hosts, alone and together with the server, under load with real programs (G2, G3).

Times are those of events against the moment of the kill, by the same clock; nothing here waits
for time to pass. That no program outlives its attempt is judged by locks that programs hold, and
at the end by the mark in every process's environment.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE, AGENT_STATE_LOST, Agent
from kapell.v1.event_pb2 import Event, GetLogInfoRequest
from kapell.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_RUNNING, TASK_STATE_SUCCEEDED, Task
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_STARTED

from tests.crash.crew import ARGUMENTS, LEASE_SECONDS, Crew, crew_of, kill, marked
from tests.support.server_process import ServerProcess

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock of util-linux"),
    pytest.mark.parametrize("server_process", [ARGUMENTS], indirect=True, ids=["short leases"]),
]

NS = 1_000_000_000
# A lease, and the second that G2 allows on top.
ALLOWED_NS = (LEASE_SECONDS + 1) * NS
# A daemon that has left its session, and a child; the first attempt never ends by itself.
TREE = """
(setsid sleep 1000 &)
sleep 1001 &
echo "::progress 10% begun"
test "$KAPELL_ATTEMPT" -gt 1 || sleep 1002
echo "attempt $KAPELL_ATTEMPT"
"""
# Takes a moment, so that kills find it running; a child takes part of it.
SHORT = 'sleep 0.0{moment} & wait; echo "attempt $KAPELL_ATTEMPT"'


@pytest.fixture
async def crew(server_process: ServerProcess, tmp_path: Path) -> AsyncIterator[Crew]:
    async with crew_of(server_process, tmp_path / "traces") as crew:
        yield crew


async def begun(crew: Crew, task: Task) -> Task:
    """The task once its program runs and its agent has spoken of it."""

    def has_begun() -> bool:
        now = crew.standing.tasks.get(task.task_id)
        return now is not None and now.state == TASK_STATE_RUNNING and now.progress.message == "begun"

    await crew.until(has_begun)
    return crew.standing.tasks[task.task_id]


def event_ns(event: Event) -> int:
    return event.event_time.ToNanoseconds()


async def test_a_killed_host_gives_its_task_back_and_leaves_nothing(crew: Crew) -> None:
    agent = await crew.spawn()
    task = await crew.create(TREE)
    held = await begun(crew, task)

    killed_ns = kill(agent.pid)
    await crew.until(lambda: crew.has_ended(agent.agent_id))

    assert marked(f"{await log_id(crew)}/{agent.agent_id}") == []
    assert event_ns(crew.end_of(held)) - killed_ns < ALLOWED_NS
    await crew.spawn()
    await crew.until(lambda: task.task_id not in crew.standing.open)
    assert await crew.result_of(task.task_id) == "attempt 2"
    assert await crew.faults() == []


async def test_a_frozen_host_loses_its_task_in_time_and_cannot_harm_when_it_wakes(crew: Crew) -> None:
    agent = await crew.spawn()
    task = await crew.create(TREE)
    held = await begun(crew, task)

    frozen_ns = kill(agent.pid, signal.SIGSTOP)
    await crew.until(lambda: crew.state_of(agent.agent_id) == AGENT_STATE_LOST and not crew.held_by(agent.agent_id))

    assert event_ns(crew.end_of(held)) - frozen_ns < ALLOWED_NS
    kill(agent.pid, signal.SIGCONT)
    await crew.until(lambda: crew.state_of(agent.agent_id) == AGENT_STATE_ACTIVE)
    await crew.until(lambda: task.task_id not in crew.standing.open)
    done = crew.standing.tasks[task.task_id]
    # An offer that reached it while it was getting up may have gone back; that costs no attempt.
    assert (done.state, done.attempts_used) == (TASK_STATE_SUCCEEDED, 2)
    assert await crew.result_of(task.task_id) == f"attempt {done.attempt}"
    assert await crew.faults() == []


async def test_a_task_that_kills_its_hosts_at_once_is_given_up(crew: Crew) -> None:
    task = await crew.create("kill -9 $PPID; sleep 1000", max_attempts=2)

    for _ in range(2):
        agent_id = await crew.ask_for_agent()
        await crew.until(partial(crew.has_ended, agent_id))
    await crew.until(lambda: task.task_id not in crew.standing.open)

    done = crew.standing.tasks[task.task_id]
    assert (done.state, done.attempts_used, done.failure.reason) == (TASK_STATE_FAILED, 2, "AGENT_LOST")
    assert marked(f"{await log_id(crew)}/") == []
    assert await crew.faults() == []


async def log_id(crew: Crew) -> str:
    return str((await crew.peer.read(crew.peer.events.GetLogInfo, GetLogInfoRequest())).log_id)


async def survive(crew: Crew, *, agents: int, tasks: int, kills: int) -> None:
    """Hosts die while programs run, every third time together with the server; every task is done all the same."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    await asyncio.gather(*(crew.spawn() for _ in range(agents)))
    wanted = [await crew.create(SHORT.replace("{moment}", str(rng.randint(10, 99)))) for _ in range(tasks)]
    for number in range(kills):
        await a_moment(crew, rng)
        victims = rng.sample(crew.living(), rng.randint(1, min(2, len(crew.living()))))
        held = [task for victim in victims for task in crew.held_by(victim.agent_id)]
        ended_ns = await kill_all(crew, victims, with_server=number % 3 == 2, rng=rng)
        for victim in victims:
            await crew.until(partial(crew.has_ended, victim.agent_id))
        for task in held:
            assert event_ns(crew.end_of(task)) - ended_ns < ALLOWED_NS
        await asyncio.gather(*(crew.spawn() for _ in victims))
        if not crew.standing.open:
            wanted += [await crew.create(SHORT.replace("{moment}", "50")) for _ in range(tasks)]
    await crew.until(lambda: not crew.standing.open)

    for task in wanted:
        done = crew.standing.tasks[task.task_id]
        assert done.state == TASK_STATE_SUCCEEDED, done
        assert await crew.result_of(task.task_id) == f"attempt {done.attempt}"
    assert await crew.faults() == []
    mark = f"{await log_id(crew)}/"
    hosts = {str(agent.pid) for agent in crew.living()}
    assert {line.split()[0] for line in marked(mark)} == hosts, "only the hosts are left"
    await asyncio.to_thread(crew.server.stop, signal.SIGINT)
    assert marked(mark) == []


async def a_moment(crew: Crew, rng: random.Random) -> None:
    """Some more attempts have begun, or there is nothing left to begin."""

    def started() -> int:
        return sum(event.kind == EVENT_KIND_TASK_STARTED for event in crew.standing.events)

    enough = started() + rng.randint(1, 6)
    await crew.until(lambda: started() >= enough or not crew.standing.open)


async def kill_all(crew: Crew, victims: list[Agent], *, with_server: bool, rng: random.Random) -> int:
    """Kills hosts, and the server before or after them; when somebody could take the tasks back, ns."""
    if not with_server:
        return max(kill(victim.pid) for victim in victims)
    server_first = rng.random() < 0.5
    if server_first:
        crew.server.kill()
    for victim in victims:
        kill(victim.pid)
    if not server_first:
        crew.server.kill()
    await asyncio.to_thread(crew.server.start)
    return time.time_ns()


async def test_hosts_and_server_die_again_and_again_and_every_task_is_done_once(crew: Crew) -> None:
    await survive(crew, agents=3, tasks=20, kills=6)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_hosts_and_server_die_forty_times_and_every_task_is_done_once(crew: Crew) -> None:
    await survive(crew, agents=4, tasks=40, kills=40)
