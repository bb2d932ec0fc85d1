"""Asks for work whenever a slot is free: one long poll at a time, for all free slots."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

from google.protobuf.duration_pb2 import Duration

from kapell._worker.leases import Lease, LeaseTable
from kapell._worker.session import Session
from kapell.errors import KapellError
from kapell.v1.worker_pb2 import LeaseTasksRequest

WAIT = 30
"""Seconds a poll waits for a task."""

MOST = 64
_MARGIN = 10.0
_PAUSE = 0.5


async def poll(session: Session, table: LeaseTable, begin: Callable[[Lease], None]) -> None:
    """Leases tasks and hands each to `begin`, until cancelled.

    An answer that was lost on the way is asked for again under the same poll_id, so no offer is lost.
    """
    loop = asyncio.get_running_loop()
    while True:
        await table.wait_open()
        asked = loop.time()
        try:
            answer = await session.insist(
                session.stub.LeaseTasks, _asking(session, table.free), timeout=WAIT + _MARGIN, bears_defects=True
            )
        except KapellError as error:
            # The agent is on its way out; the heartbeat says what is to be done.
            if error.reason != "AGENT_STATE_CONFLICT":
                raise
            await asyncio.sleep(_PAUSE)
            continue
        for offer in answer.offers:
            lease = Lease(offer, log_room_bytes=table.log_room_bytes)
            if table.add(lease):
                begin(lease)
        if not answer.offers and loop.time() - asked < _PAUSE:
            await asyncio.sleep(_PAUSE)


def _asking(session: Session, free: int) -> Callable[[], LeaseTasksRequest]:
    poll_id = uuid.uuid4().hex
    wait = Duration(seconds=WAIT)
    return lambda: LeaseTasksRequest(agent_id=session.agent_id, max_tasks=min(free, MOST), poll_id=poll_id, wait=wait)
