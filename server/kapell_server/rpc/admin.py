"""AdminService: what the server is, and how it feels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1 import admin_pb2

from kapell_server.domain.access import Caller
from kapell_server.domain.tasks.prepared import MOST_TASKS
from kapell_server.rpc.pipeline import MAX_MESSAGE_BYTES
from kapell_server.watch.follow import Watches

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """What does not change while the process lives."""

    version: str
    database: str
    """"sqlite" or "postgresql"."""
    max_watches: int
    max_agents: int
    max_attempt_log_bytes: int


class AdminServicer:
    """The methods of AdminService."""

    def __init__(self, engine: Engine, *, watches: Watches, facts: ServerFacts) -> None:
        self._engine = engine
        self._watches = watches
        self._facts = facts
        self.CompactEvents = engine.submit
        self._start_time = Timestamp()
        self._start_time.FromNanoseconds(time.time_ns())

    async def GetServerInfo(
        self, request: admin_pb2.GetServerInfoRequest, caller: Caller
    ) -> admin_pb2.GetServerInfoResponse:
        facts = self._facts
        return admin_pb2.GetServerInfoResponse(
            version=facts.version,
            log_id=self._engine.log_id,
            revision=self._engine.revision,
            database=facts.database,
            start_time=self._start_time,
            capabilities={
                "tasks": True,
                "agents": True,
                "templates": True,
                "queues": True,
                "artifacts": True,
                "schedules": True,
                "locks": True,
                "watch": True,
                "reflection": True,
            },
            limits=admin_pb2.ServerLimits(
                max_message_bytes=MAX_MESSAGE_BYTES,
                max_batch_tasks=MOST_TASKS,
                max_page_size=1000,
                max_watches=facts.max_watches,
                max_agents=facts.max_agents,
                max_wait=Duration(seconds=60),
                max_attempt_log_bytes=facts.max_attempt_log_bytes,
            ),
            principal=caller.name,
        )

    async def GetDiagnostics(
        self, request: admin_pb2.GetDiagnosticsRequest, caller: Caller
    ) -> admin_pb2.GetDiagnosticsResponse:
        now = self._engine.diagnostics()
        return admin_pb2.GetDiagnosticsResponse(
            open_watches=self._watches.open,
            open_polls=now.open_polls,
            mailbox_depth=now.mailbox_depth,
            mailbox_capacity=now.mailbox_capacity,
            commits=now.commits,
            commands=now.commands,
            commit_p50_duration=_duration(now.commit_p50),
            commit_p99_duration=_duration(now.commit_p99),
            ready_tasks=now.ready_tasks,
            resident_bytes=_resident_bytes(),
            revision=self._engine.revision,
        )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration


def _resident_bytes() -> int:
    import psutil  # takes longer to import than the rest of this module, and few ask

    return int(psutil.Process().memory_info().rss)
