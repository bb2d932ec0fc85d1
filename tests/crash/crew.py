"""Spawned agents with real programs, to be killed: what they run leaves traces that tell of every breach.

Each program holds a lock on a file of its task for as long as any process of it lives. A second
attempt that finds the lock taken has begun too early, and writes that down.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from kapell.v1 import agent_pb2, task_pb2
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE, AGENT_STATE_FAILED, AGENT_STATE_TERMINATED, Agent
from kapell.v1.event_pb2 import Event
from kapell.v1.task_pb2 import ATTEMPT_STATE_RUNNING, Task, TaskSpec

from tests.crash.audit import Audit
from tests.crash.journal import Journal
from tests.crash.peer import Peer, connected
from tests.crash.watchers import LogWatcher, Standing
from tests.support.server_process import ServerProcess

LEASE_SECONDS = 5
ARGUMENTS = ("--lease-duration", f"{LEASE_SECONDS}s", "--heartbeat-interval", "1s")
AGENT_TYPE = "crew"
SLOTS = 4
_ENDED = (AGENT_STATE_FAILED, AGENT_STATE_TERMINATED)

# What every program does first: take the lock of its task, which its descendants inherit.
_PROLOGUE = (
    'exec 9>"{place}/$KAPELL_TASK_ID"; flock -n 9 || echo "$KAPELL_TASK_ID $KAPELL_ATTEMPT" >> "{place}/breaches"\n'
)


class Crew:
    """Agents on one server. Belongs to one event loop; the server is killed and started from it too."""

    def __init__(self, server: ServerProcess, peer: Peer, place: Path, watcher: LogWatcher, standing: Standing) -> None:
        self.server = server
        self.peer = peer
        self.journal = Journal()
        self.standing = standing
        self.place = place
        self._watching = asyncio.ensure_future(watcher.run())

    async def close(self) -> None:
        """Stops watching."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)

    async def ask_for_agent(self) -> str:
        """The id of a new agent, which is about to be started."""
        spec = agent_pb2.AgentSpec(
            agent_types=[AGENT_TYPE], slots=SLOTS, command=agent_pb2.CommandRuntime(argv=["sh", "-c", "{prompt}"])
        )
        answer = await self.peer.ask("spawn", self.peer.agents.SpawnAgent, agent_pb2.SpawnAgentRequest(spec=spec))
        return str(answer.agent.agent_id)

    async def spawn(self) -> Agent:
        """A new agent, ACTIVE."""
        agent_id = await self.ask_for_agent()
        await self.until(lambda: self.state_of(agent_id) in (AGENT_STATE_ACTIVE, *_ENDED))
        agent = self.standing.agents[agent_id]
        assert agent.state == AGENT_STATE_ACTIVE, agent
        return agent

    async def create(self, script: str, *, max_attempts: int = 100) -> Task:
        """A task whose program is the script, run by `sh` under the task's lock."""
        prompt = _PROLOGUE.replace("{place}", str(self.place)) + script
        spec = TaskSpec(agent_type=AGENT_TYPE, prompt=prompt)
        spec.retry_policy.max_attempts = max_attempts
        spec.retry_policy.initial_backoff.FromMilliseconds(1)
        answer = await self.peer.ask("create", self.peer.tasks.CreateTask, task_pb2.CreateTaskRequest(task=spec))
        task: Task = answer.task
        return task

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds; fails where the watcher has died."""
        waiting = asyncio.ensure_future(self.standing.until(condition))
        await asyncio.wait([waiting, self._watching], return_when=asyncio.FIRST_COMPLETED)
        if self._watching.done():
            waiting.cancel()
            self._watching.result()
        await waiting

    async def result_of(self, task_id: str) -> str:
        """What the program of an ended task printed."""
        answer = await self.peer.read(self.peer.tasks.GetTask, task_pb2.GetTaskRequest(task_id=task_id))
        return str(answer.task.result.string_value).strip()

    def state_of(self, agent_id: str) -> int:
        """The state of an agent, as far as was heard; 0 before."""
        agent = self.standing.agents.get(agent_id)
        return agent.state if agent is not None else 0

    def has_ended(self, agent_id: str) -> bool:
        """Whether the agent is over, as far as was heard."""
        return self.state_of(agent_id) in _ENDED

    def held_by(self, agent_id: str) -> list[Task]:
        """The tasks that an agent has a lease on."""
        return [task for task in self.standing.tasks.values() if task.lease.agent_id == agent_id]

    def living(self) -> list[Agent]:
        """The ACTIVE agents."""
        return [agent for agent in self.standing.agents.values() if agent.state == AGENT_STATE_ACTIVE]

    def end_of(self, task: Task) -> Event:
        """The event that took the task's attempt away from its agent."""
        return next(
            event
            for event in self.standing.events
            if event.task.task_id == task.task_id
            and event.revision > task.revision
            and (event.task.attempt > task.attempt or not event.task.HasField("lease"))
        )

    def breaches(self) -> list[str]:
        """Attempts that began while a process of an earlier one lived."""
        record = self.place / "breaches"
        return record.read_text().splitlines() if record.exists() else []

    async def faults(self) -> list[str]:
        """What is wrong with the log, the resources and the traces of the programs."""
        audit = await Audit.take(self.peer, self.journal)
        return [
            *(f"an attempt began too early: {breach}" for breach in self.breaches()),
            *audit.log_has_no_gap(),
            *audit.every_task_lived_by_the_rules(),
            *audit.replay_is_the_state(),
            *await self._attempts_left_running(audit),
        ]

    async def _attempts_left_running(self, audit: Audit) -> list[str]:
        faults = []
        for task_id in audit.tasks:
            request = task_pb2.ListTaskAttemptsRequest(task_id=task_id)
            answer = await self.peer.read(self.peer.tasks.ListTaskAttempts, request)
            states = [attempt.state for attempt in answer.attempts]
            if ATTEMPT_STATE_RUNNING in states or len(states) != audit.tasks[task_id].attempt:
                faults.append(f"{task_id} has the attempts {answer.attempts}")
        return faults


@asynccontextmanager
async def crew_of(server: ServerProcess, place: Path) -> AsyncIterator[Crew]:
    """A crew without agents, and a watcher that tells it what happens."""
    place.mkdir()
    async with AsyncExitStack() as held:
        journal, standing = Journal(), Standing()
        peer = await held.enter_async_context(connected(server.address, server.admin_token, journal))
        other = await held.enter_async_context(connected(server.address, server.admin_token, journal))
        watcher = LogWatcher(other, standing)
        crew = Crew(server, peer, place, watcher, standing)
        held.push_async_callback(crew.close)
        await watcher.begun.wait()
        yield crew


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> int:
    """Signals a process that may be gone; the time, ns since the epoch."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
    return time.time_ns()


def marked(mark: str) -> list[str]:
    """Every process whose environment carries the mark of a log, or of one agent of it."""
    wanted = f"KAPELL_MARK={mark}".encode()
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):
            if wanted in (process / "environ").read_bytes():
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{process.name} {command[:80]}")
    return found
