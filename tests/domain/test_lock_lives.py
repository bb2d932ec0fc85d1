"""Random lives of tasks, sessions and attempts that want the same paths: L1 at every step, and in the end all is done.

What TaskWorld checks after every batch holds throughout. Then nobody asks for anything more: whoever holds gives back,
and agents go on. If anything were left waiting, it would wait for ever (L4, L5).
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, TASK_STATE_RUNNING
from kapell.v1.worker_pb2 import LeaseTasksRequest
from kapell_server.domain.errors import KapellError
from kapell_server.domain.transitions import TASK_FINAL, TASK_LEASED

from tests.domain.lock_tasks import TaskWorld
from tests.domain.lock_world import Call, Over

PATHS = ("r", "r r", "r/a", "r/a r", "r/a/x", "r/b", "r/b r", "s", "s r", "s/t")
TYPES = ("red", "blue")
EXPECTED = {"LOCK_HELD", "DEADLOCK", "LOCK_LOST", "LEASE_LOST", "TASK_STATE_CONFLICT"}


class Life:
    """One world and what goes on in it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.world = TaskWorld(starving_after=self.random.choice((1e6, 5.0)))
        self.agents = [self.world.register(kind, key=f"{kind}{n}", slots=n) for kind in TYPES for n in (1, 2)]
        self.sessions = [self.world.session(ttl=86_400) for _ in range(3)]
        self.calls: list[Call] = []

    def paths(self) -> list[str]:
        """A few that do not name a path twice."""
        chosen = self.random.sample(PATHS, self.random.choice((1, 1, 2, 3)))
        return list({path.removesuffix(" r"): path for path in chosen}.values())

    def tasks(self, *states: int) -> list[str]:
        return [task_id for task_id, task in self.world.rows.tasks.items() if task.state in states]

    def step(self) -> None:
        draw = self.random
        self.world.now_ns += draw.choice((1000, 10**6, 10**9, 3 * 10**9))
        running, waiting = self.tasks(*TASK_LEASED), self.tasks(TASK_STATE_QUEUED)
        verbs: list[Any] = [self.declare] * 3 + [self.poll] * 4 + [self.acquire]
        verbs += [self.release] * 2 if self.world.locks() else []
        verbs += [lambda: self.end(draw.choice(running))] * 4 if running else []
        verbs += [lambda: self.world.cancel(draw.choice(waiting))] if waiting else []
        try:
            draw.choice(verbs)()
        except KapellError as error:
            assert error.reason_name in EXPECTED, error

    def declare(self) -> None:
        priority = self.random.choice((500, 500, 501, 900))
        self.world.declare(*self.paths(), agent_type=self.random.choice(TYPES), priority=priority)

    def poll(self) -> None:
        self.world.do(LeaseTasksRequest(agent_id=self.random.choice(self.agents), max_tasks=2))

    def acquire(self) -> None:
        owner = self.random.choice([*self.sessions, *self.tasks(TASK_STATE_RUNNING)])
        call = Call(self.world.request(owner, *self.paths(), wait=60, keep_queued=self.random.random() < 0.3))
        self.calls.append(call)
        self.world.do(call)

    def release(self) -> None:
        held = [one for one in self.world.locks() if one.owner.session_id]
        if held:
            self.world.give_back(self.random.choice(held), keep_shared=self.random.random() < 0.3)

    def end(self, task_id: str) -> None:
        verb = self.random.choice(("complete", "complete", "release", "fail"))
        getattr(self.world, verb)(task_id)

    def wind_up(self) -> None:
        """Calls give up, sessions close, attempts end, agents ask: until there is nothing left to do."""
        for call in self.calls:
            if call.wait is not None and call.answer is None:
                self.world.do(Over(call, abandoned=True))
        for session in self.sessions:
            self.world.close(session)
        for _ in range(len(self.world.rows.tasks) * 3 + 10):
            for task_id in self.tasks(*TASK_LEASED):
                self.world.complete(task_id)
            self.world.advance(2)
            for agent_id in self.agents:
                self.world.beat(agent_id)
                self.world.do(LeaseTasksRequest(agent_id=agent_id, max_tasks=2))
            if all(task.state in TASK_FINAL for task in self.world.rows.tasks.values()):
                return


@pytest.mark.parametrize("seed", range(12))
def test_whoever_waits_gets_its_turn_in_the_end(seed: int) -> None:
    life = Life(seed)

    for _ in range(120):
        life.step()
    life.wind_up()

    left = [task for task in life.world.rows.tasks.values() if task.state not in TASK_FINAL]
    assert left == []
    assert life.world.held() == {}
    assert not life.world.state.locks.waits
