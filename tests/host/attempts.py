"""An attempt that keeps what it is told: what a runtime needs, without any server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from kapell._locks.environment import KnownLock
from kapell.records import UsageFields
from kapell.rules.redaction import Redactor
from kapell.runtimes.contract import Workspace
from kapell.v1.artifact_pb2 import Artifact
from kapell.v1.common_pb2 import LOG_STREAM_STDERR, LOG_STREAM_STDOUT, LOG_STREAM_SYSTEM, LogStream
from kapell.v1.workspace_pb2 import TaskWorkspace


@dataclass
class RecordedAttempt:
    """Fulfils kapell.runtimes.Attempt. `capacity` is how many characters of log fit until it is full."""

    task_id: str = "task_one"
    attempt: int = 1
    capacity: int = 16 * 1024 * 1024
    lines: list[tuple[LogStream.ValueType, str]] = field(default_factory=list)
    progress_seen: list[tuple[float | None, str, str]] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    lease_lost: asyncio.Event = field(default_factory=asyncio.Event)
    paused: asyncio.Event = field(default_factory=asyncio.Event)
    continued: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    refused: dict[str, Exception] = field(default_factory=dict)
    uploads_may_end: asyncio.Event = field(default_factory=asyncio.Event)
    locks: list[KnownLock] = field(default_factory=list)
    used: list[dict[str, object]] = field(default_factory=list)
    record_ids: list[str] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    workspace: Workspace | None = None
    workspaces: list[TaskWorkspace] = field(default_factory=list)
    token: str = ""
    has_ended: bool = False
    logged: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.room.set()
        self.uploads_may_end.set()

    @property
    def redactor(self) -> Redactor:
        return Redactor((*self.secrets.values(), self.token))

    def program_token(self) -> str:
        return self.token

    @property
    def log_full(self) -> bool:
        return self.logged >= self.capacity

    def progress(self, fraction: float | None, step: str = "", message: str = "") -> None:
        self.progress_seen.append((fraction, step, message))
        self._changed.set()

    def usage(self, **fields: Unpack[UsageFields]) -> None:
        self.used.append(dict(fields))

    def usage_from(self, response: Mapping[str, object], *, record_id: str = "", series: str = "") -> None:
        self.used.append(dict(response))
        self.record_ids.append(record_id)

    async def budget_room(self) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self.continued, self.cancelled)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.cancelled.is_set():
            raise asyncio.CancelledError
        self.paused.clear()
        self.continued.clear()

    def program_ended(self) -> None:
        self.has_ended = True

    def log(self, text: str, stream: LogStream.ValueType = LOG_STREAM_STDOUT, *, time_ns: int = 0) -> None:
        assert time_ns <= time.time_ns()
        if not self.log_full:
            self.lines.append((stream, text))
        self.logged += len(text)
        self._changed.set()

    async def log_room(self) -> None:
        await self.room.wait()

    async def upload_artifact(self, path: Path, *, name: str) -> Artifact:
        name.encode()
        await self.uploads_may_end.wait()
        if name in self.refused:
            raise self.refused[name]
        self.artifacts[name] = path.read_bytes()
        return Artifact(artifact_id=f"artifact_{len(self.artifacts)}", name=name)

    async def report_workspaces(self, workspaces: Iterable[TaskWorkspace]) -> None:
        self.workspaces = list(workspaces)

    def cancel(self) -> None:
        """What the worker does when the task is cancelled."""
        self.cancelled.set()

    def lose(self) -> None:
        """What the worker does when the lease is lost."""
        self.lease_lost.set()
        self.cancelled.set()

    @property
    def stdout(self) -> list[str]:
        return [text for stream, text in self.lines if stream == LOG_STREAM_STDOUT]

    @property
    def stderr(self) -> list[str]:
        return [text for stream, text in self.lines if stream == LOG_STREAM_STDERR]

    @property
    def remarks(self) -> list[str]:
        return [text for stream, text in self.lines if stream == LOG_STREAM_SYSTEM]

    async def until_remark(self, text: str) -> None:
        """Waits until the runtime has remarked something with this text."""
        async with asyncio.timeout(20):
            while not any(text in remark for remark in self.remarks):
                self._changed.clear()
                await self._changed.wait()

    async def until_stdout(self, count: int) -> list[str]:
        """Waits until the program has written `count` lines."""
        async with asyncio.timeout(20):
            while len(self.stdout) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.stdout
