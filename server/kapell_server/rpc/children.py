"""WaitChildTasks: waits for the children of a leased task, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kapell.v1.task_pb2 import Task
from kapell.v1.worker_pb2 import LEASE_DIRECTIVE_CANCEL, LeaseDirective, WaitChildTasksResponse

from kapell_server.domain.access import Caller
from kapell_server.domain.transitions import TASK_FINAL

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine

_RECHECK = 2.0
"""So often the lease is looked at, and a hint that was lost made good, seconds."""
_MOST_BYTES = 1024 * 1024
"""About what the children in one answer may have, results included."""


class ChildWaits:
    """Waits of agents for children."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def wait(self, token: str, caller: Caller, seconds: float) -> WaitChildTasksResponse:
        """Answers when all children have ended, when the task is to be cancelled, or after `seconds`."""
        engine = self._engine
        now = asyncio.get_running_loop().time
        until = now() + seconds
        # The call is one sign of life: an agent that dies while it waits must not keep its lease by that.
        task_id, _, _ = engine.check_lease(token, caller)
        with engine.awaiting_children(task_id):
            return await self._wait(token, caller, until)

    async def _wait(self, token: str, caller: Caller, until: float) -> WaitChildTasksResponse:
        engine = self._engine
        now = asyncio.get_running_loop().time
        while True:
            task_id, _, directive = engine.check_lease(token, caller, renew=False)
            children, revision = await engine.reads.families.children(task_id)
            waiting = [child for child in children if child.state not in TASK_FINAL]
            if not waiting or directive == LEASE_DIRECTIVE_CANCEL or now() >= until:
                break
            await engine.check_children_awaited(task_id, caller)
            await self._until_ended(waiting, token, caller, lambda: until - now())
        left_out, room = _shorten(children, _MOST_BYTES)
        if not waiting and not left_out:
            left_out = await engine.reads.families.add_results(children, room)
        return WaitChildTasksResponse(
            tasks=children,
            revision=revision,
            ended=not waiting,
            directive=LeaseDirective.ValueType(directive),
            left_out_task_ids=left_out,
        )

    async def _until_ended(
        self, children: Sequence[Task], token: str, caller: Caller, left: Callable[[], float]
    ) -> None:
        """Returns when these have ended, when the time is over, or when it is better to look at all anew."""
        for child in children:
            task = child
            while task.state not in TASK_FINAL:
                remaining = left()
                if remaining <= 0:
                    return
                pause = min(remaining, _RECHECK)
                record = await self._engine.ring.wait_resource(task.task_id, task.revision, pause)
                _, _, directive = self._engine.check_lease(token, caller, renew=False)
                if record is None or directive == LEASE_DIRECTIVE_CANCEL:
                    return
                assert isinstance(record.resource, Task)
                task = record.resource


def _shorten(children: list[Task], room: int) -> tuple[list[str], int]:
    """Leaves id and state alone of those that have no room; their ids, and the bytes that are left."""
    for index, child in enumerate(children):
        size = child.ByteSize()
        if size > room:
            rest = children[index:]
            children[index:] = [Task(task_id=left_out.task_id, state=left_out.state) for left_out in rest]
            return [left_out.task_id for left_out in rest], 0
        room -= size
    return [], room
