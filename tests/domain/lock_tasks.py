"""A world in which tasks declare locks, with what must always be true looked at after every batch."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from kapell.v1.lock_pb2 import LOCK_MODE_SHARED, ForceReleaseLocksRequest, Lock
from kapell.v1.task_pb2 import TASK_STATE_QUEUED
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks.paths import touch
from kapell_server.domain.transitions import TASK_LEASED

from tests.domain.lock_world import LockWorld, item


class TaskWorld(LockWorld):
    """A LockWorld whose tasks declare locks as `item` has them: "repo", "docs r"."""

    def do(self, *commands: Any, **options: Any) -> Any:
        try:
            answer = super().do(*commands, **options)
        except KapellError:
            self.check()
            raise
        self.check()
        return answer

    def declare(self, *paths: str, agent_type: str = "shell", **fields: Any) -> str:
        """A new task that needs these locks."""
        return self.create(agent_type, locks=[item(path) for path in paths], **fields)

    def start(self, *paths: str, **fields: Any) -> str:
        """A task that runs with these locks on an agent of its own."""
        return self.running(locks=[item(path) for path in paths], **fields)

    def state_of(self, task_id: str) -> int:
        return self.task(task_id).state

    def holder_of(self, path: str) -> list[str]:
        """Who has a lock on this very path."""
        return [_owner(one) for one in self.locks() if one.path == path]

    def force(self, path: str) -> Any:
        return self.do(ForceReleaseLocksRequest(path=path, reason="test"))

    def parked(self) -> list[str]:
        """The QUEUED tasks that their locks hold back, by id."""
        return sorted(task_id for task_id, (_, name) in self.state.queues.ready._places.items() if name == "lock/")

    def check(self) -> None:
        """L1; locks of tasks live exactly as long as their attempts; who is parked is somewhere to be woken."""
        locks, table, gate = self.locks(), self.state.locks, self.state.queues.locks
        for one, other in combinations(locks, 2):
            both_shared = one.mode == other.mode == LOCK_MODE_SHARED
            assert both_shared or _owner(one) == _owner(other) or not touch(one.path, other.path), (one, other)
        for one in locks:
            if one.owner.task_id:
                task = self.task(one.owner.task_id)
                assert task.state in TASK_LEASED
                assert task.attempt == one.owner.attempt
        for task in self.rows.tasks.values():
            leased = task.state in TASK_LEASED
            assert all(bool(one.lock_id) == bool(one.fencing_token) == leased for one in task.locks), task
        waiting = {key for key, wait in table.waits.items() if wait.is_task and key not in table.offered}
        behind = set(gate.behind())
        assert not waiting & behind
        assert waiting | behind == set(self.parked())
        assert all(self.task(task_id).state == TASK_STATE_QUEUED for task_id in gate._lines)
        assert set(gate._lines) == behind | set(gate._heads.values())
        assert not table.is_stirred


def _owner(lock: Lock) -> str:
    return lock.owner.task_id or lock.owner.session_id or lock.owner.grant_id
