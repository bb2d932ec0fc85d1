"""Hints from the server, so that a cancel need not wait for the next heartbeat.

Every hint comes again with the heartbeat, so this may fail in any way and costs latency only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from kapell._worker.heartbeat import Obey
from kapell._worker.leases import LeaseTable
from kapell._worker.session import Session
from kapell.connection import backoff
from kapell.errors import KapellError, Unsupported
from kapell.v1.worker_pb2 import AGENT_DIRECTIVE_REREGISTER, AGENT_DIRECTIVE_UNSPECIFIED, WatchDirectivesResponse

_log = logging.getLogger("kapell.worker")


async def listen(session: Session, table: LeaseTable, obey: Obey, beat_now: Callable[[], None]) -> None:
    """Follows the stream of hints until cancelled, opening it again whenever it ends.

    Whether an attempt is paused, and why, is for the heartbeat to say: `beat_now` has it ask.
    """
    failures = 0
    while True:
        stream = session.directives()
        try:
            async for hint in stream:
                failures = 0
                _follow(hint, table, obey)
                if any(table.of_task(task_id) for task_id in (*hint.paused_task_ids, *hint.continued_task_ids)):
                    beat_now()
        except Unsupported:
            return
        except KapellError as error:
            _log.debug("no hints for now: %s", error)
        finally:
            stream.cancel()
        failures += 1
        await asyncio.sleep(backoff(failures))


def _follow(hint: WatchDirectivesResponse, table: LeaseTable, obey: Obey) -> None:
    for task_id in hint.cancel_task_ids:
        lease = table.of_task(task_id)
        if lease is not None:
            lease.cancel()
    # To be registered again is the heartbeat's business.
    if hint.directive not in (AGENT_DIRECTIVE_UNSPECIFIED, AGENT_DIRECTIVE_REREGISTER):
        obey(hint.directive)
