"""An attempt that keeps what it is told: what a runtime needs, without any server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from kapell._locks.environment import KnownLock
from kapell._worker.approvals import Verdict
from kapell.records import UsageFields
from kapell.rules.redaction import Redactor
from kapell.runtimes.contract import Workspace
from kapell.v1.approval_pb2 import Approval, ApprovalDecision
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_APPROVED, APPROVAL_STATE_REJECTED
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
    asked: list[dict[str, object]] = field(default_factory=list)
    verdicts: asyncio.Queue[Verdict] = field(default_factory=asyncio.Queue)
    foreign_locks: dict[str, str] = field(default_factory=dict)
    lost_locks: str = ""
    checked: list[set[str]] = field(default_factory=list)
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

    async def approve(self, title: str, **shown: object) -> Verdict:
        """Answers with the next of the verdicts; as the worker does, it ends with the task."""
        self.asked.append({"title": title, **shown})
        self._changed.set()
        answer = asyncio.ensure_future(self.verdicts.get())
        stop = asyncio.ensure_future(self.cancelled.wait())
        try:
            await asyncio.wait((answer, stop), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise asyncio.CancelledError("the task was cancelled while it waited for an approval")
            return answer.result()
        finally:
            answer.cancel()
            stop.cancel()

    async def lock_refusal(self, paths: Iterable[str]) -> str:
        """What is locked by others, as `foreign_locks` has it: the holder by path; `lost_locks` refuses all."""
        asked = set(paths)
        if self.lost_locks:
            return self.lost_locks
        self.checked.append(asked)
        return "; ".join(f"{path} is locked by {self.foreign_locks[path]}" for path in asked & {*self.foreign_locks})

    def decide(self, option: str = "approve", comment: str = "") -> None:
        """What a person does."""
        state = APPROVAL_STATE_REJECTED if option == "deny" else APPROVAL_STATE_APPROVED
        decision = ApprovalDecision(option=option, approves=option != "deny", comment=comment)
        self.verdicts.put_nowait(Verdict(Approval(state=state, decisions=[decision])))

    async def until_asked(self, count: int = 1) -> dict[str, object]:
        """Waits until so many approvals were asked for; the last of them."""
        async with asyncio.timeout(20):
            while len(self.asked) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.asked[-1]

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
