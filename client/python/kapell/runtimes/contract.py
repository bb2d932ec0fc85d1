"""What a runtime is, and what it gets to see of the attempt it carries out."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Unpack

from kapell._locks.environment import KnownLock
from kapell._locks.holding import HeldLocks
from kapell._worker.approvals import Verdict
from kapell.records import UsageFields
from kapell.rules.redaction import Redactor
from kapell.v1.artifact_pb2 import Artifact
from kapell.v1.common_pb2 import LOG_STREAM_STDOUT, LogStream
from kapell.v1.task_pb2 import Task
from kapell.v1.workspace_pb2 import TaskWorkspace


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """Where an attempt works, and what programs are told of it."""

    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    is_taken_in: bool = False
    """Whether what is left in it is committed and kept after the program's end, before the outcome."""


class Attempt(Protocol):
    """One try at one task, as seen by the code that does the work."""

    workspace: Workspace | None
    """Where the work is to be done; None: in a directory of the runtime's own, removed afterwards."""

    @property
    def task_id(self) -> str: ...

    @property
    def attempt(self) -> int:
        """The number of the attempt, from 1."""
        ...

    @property
    def locks(self) -> list[KnownLock]:
        """The locks that the task declares and the attempt has, as a program is to be told."""
        ...

    @property
    def secrets(self) -> Mapping[str, str]:
        """Values of the task's secrets, by what the program finds them under."""
        ...

    def program_token(self) -> str:
        """The token for the program's KAPELL_TOKEN; empty where it gets none. Masked from now on."""
        ...

    @property
    def redactor(self) -> Redactor:
        """Masks the values of the secrets."""
        ...

    @property
    def cancelled(self) -> asyncio.Event:
        """Set when the work is to stop; it is set by a lost lease too."""
        ...

    @property
    def lease_lost(self) -> asyncio.Event:
        """Set when the attempt is no longer ours: whatever still runs must end at once, without grace."""
        ...

    @property
    def log_full(self) -> bool:
        """Whether the attempt's log has reached its limit; what is logged from then on is dropped."""
        ...

    def lock(self, *paths: str, timeout: float | None = None, note: str = "") -> HeldLocks:
        """More locks for the length of an `async with`, exclusive; they end with the attempt at the latest."""
        ...

    def waiting(self, kind: Literal["lock"], detail: str = "") -> AbstractContextManager[None]:
        """Says that the work waits, for as long as the block lasts."""
        ...

    def progress(self, fraction: float | None, step: str = "", message: str = "") -> None:
        """Says how far the work is, 0 to 1; None where it cannot tell. Only the latest word is sent."""
        ...

    def usage(self, **fields: Unpack[UsageFields]) -> None:
        """Says what the work has used; see `kapell.records.usage_record`. Never waits."""
        ...

    def usage_from(self, response: Mapping[str, object], *, record_id: str = "", series: str = "") -> None:
        """Says what the work has used, in a provider's own words. Never waits."""
        ...

    @property
    def paused(self) -> asyncio.Event:
        """Set while a budget has no room for what the work would use: it is to use nothing."""
        ...

    async def budget_room(self) -> None:
        """Waits until the work may use more, and says so meanwhile. Raises CancelledError where it is to stop."""
        ...

    def program_ended(self) -> None:
        """Says that the program which does the work has ended; its outcome is expected within 60 s."""
        ...

    def log(self, text: str, stream: LogStream.ValueType = LOG_STREAM_STDOUT, *, time_ns: int = 0) -> None:
        """Adds lines to the attempt's log. Never waits; `time_ns` is now when it is 0."""
        ...

    async def log_room(self) -> None:
        """Waits until the log takes more without growing beyond its memory."""
        ...

    async def approve(
        self,
        title: str,
        *,
        details: str = "",
        command: str = "",
        diff: str = "",
        paths: Iterable[str] = (),
        hosts: Iterable[str] = (),
        tool: str = "",
        working_directory: str = "",
        workspace: str = "",
        options: Mapping[str, str] | None = None,
        remember: Collection[str] = (),
    ) -> Verdict:
        """Asks a person whether it may go on, and waits for the answer, however long.

        `options` are further ways to say yes, labels by ids; choosing one of `remember` also makes a rule.
        Raises LeaseLost, and CancelledError when the task is cancelled.
        """
        ...

    async def lock_refusal(self, paths: Iterable[str]) -> str:
        """Why what has these lock paths may not be changed now; empty where it may.

        An attempt with locks changes what they cover, all of them in force; one without any, what nobody else has
        locked. Raises KapellError where nobody knows.
        """
        ...

    async def upload_artifact(self, path: Path, *, name: str) -> Artifact:
        """Keeps a file as an artifact of the attempt.

        Raises KapellError where the server does not take it, LeaseLost where the attempt is no
        longer ours, OSError for a file that cannot be read and ValueError for a name that is no text.
        """
        ...

    async def report_workspaces(self, workspaces: Iterable[TaskWorkspace]) -> None:
        """Says what the attempt has left in its workspace. Raises KapellError, of which LeaseLost is one."""
        ...


class Runtime(Protocol):
    """Carries out tasks. One object serves all slots of an agent."""

    async def run(self, attempt: Attempt, task: Task) -> object:
        """Does the work and returns its result, any JSON value.

        Raises `TaskFailed` for a failure. Stops soon after `attempt.cancelled`, at once after
        `attempt.lease_lost` or when cancelled; whichever way it ends, nothing of it runs on.
        """
        ...

    async def close(self) -> None:
        """Lets go of what the runtime holds. Called once, when no attempt runs any more."""
        ...
