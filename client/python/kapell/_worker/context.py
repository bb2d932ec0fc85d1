"""What a handler gets to see of its attempt."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Literal, Unpack

from kapell._guard import fences
from kapell._locks.environment import KnownLock, known
from kapell._locks.holding import HeldLocks, wanted_locks
from kapell._upload import creation, upload
from kapell._worker import approvals, budgets, children
from kapell._worker.approvals import Verdict
from kapell._worker.leases import Lease
from kapell._worker.session import Session
from kapell._worker.values import from_struct, printable
from kapell.errors import LeaseLost
from kapell.locks import Locks
from kapell.messages import Instant, Seconds, new_request_id, struct, timestamp
from kapell.records import UsageFields, raw_usage_record, usage_record
from kapell.rules.redaction import Redactor
from kapell.runtimes.contract import Workspace
from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_QUESTION,
    APPROVAL_KIND_TOOL_PERMISSION,
    ApprovalContent,
    ApprovalKind,
    ApprovalOption,
    RequestApprovalRequest,
)
from kapell.v1.approval_policy_pb2 import ApprovalPolicy
from kapell.v1.artifact_pb2 import Artifact
from kapell.v1.common_pb2 import LOG_STREAM_STDOUT, LogStream
from kapell.v1.lock_pb2 import LockItem
from kapell.v1.task_pb2 import (
    ATTEMPT_WAIT_KIND_APPROVAL,
    ATTEMPT_WAIT_KIND_BUDGET,
    ATTEMPT_WAIT_KIND_LOCK,
    ATTEMPT_WAIT_KIND_PROVIDER,
    AttemptWait,
    AttemptWaitKind,
    Task,
    TaskSpec,
)
from kapell.v1.worker_pb2 import ReportWorkspacesRequest
from kapell.v1.workspace_pb2 import TaskWorkspace

WaitsFor = Literal["approval", "budget", "lock", "provider"]

_WAIT_KINDS: dict[WaitsFor, AttemptWaitKind.ValueType] = {
    "approval": ATTEMPT_WAIT_KIND_APPROVAL,
    "budget": ATTEMPT_WAIT_KIND_BUDGET,
    "lock": ATTEMPT_WAIT_KIND_LOCK,
    "provider": ATTEMPT_WAIT_KIND_PROVIDER,
}

_UPLOAD_TIMEOUT = 60.0
"""Seconds for one step of an upload: the last one reads all of the file on the server."""


class TaskContext:
    """One attempt at one task: who it is, what it may say, and whether it is to stop."""

    def __init__(self, lease: Lease, session: Session) -> None:
        self._lease = lease
        self._session = session
        self.agent_id = session.agent_id
        self.workspace: Workspace | None = None
        """Where the work is to be done, as the profile of a spawned agent says; workers choose by themselves."""
        # What the task declares stays with the attempt, also where the same path is asked for once more.
        self._lock_uses = Counter(lock.lock_id for lock in lease.task.locks if lock.lock_id)

    @property
    def task_id(self) -> str:
        return self._lease.task_id

    @property
    def attempt(self) -> int:
        """The number of the attempt, from 1."""
        return self._lease.attempt

    @property
    def lease_token(self) -> str:
        """Proves the attempt to the server. A secret: keep it out of logs and results."""
        return self._lease.token

    @cached_property
    def input(self) -> dict[str, object]:
        """The task's input as plain Python values; whole numbers are int."""
        return from_struct(self._lease.task.input)

    @property
    def locks(self) -> list[KnownLock]:
        """The locks that the task declares and this attempt has, with the tokens to show at every effect."""
        return known(self._lease.task.locks)

    def lock(
        self,
        *paths: str | LockItem,
        shared: bool = False,
        timeout: Seconds | None = None,
        priority: int | None = None,
        note: str = "",
    ) -> HeldLocks:
        """More locks for the length of an `async with`, owned by the attempt: they end with it at the latest.

        As `Client.lock`. A task that holds one lock and waits for another can run into a Deadlock;
        locks that it declares (`locks` of its spec) are there when it starts and never can.
        """
        wanted = wanted_locks(paths, shared=shared, priority=priority, note=note)
        wanted.lease_token = self._lease.token
        return HeldLocks(
            self._session.connection, wanted, timeout=timeout, owner_lost=self._lease.lost, uses=self._lock_uses
        )

    async def lock_refusal(self, paths: Iterable[str]) -> str:
        """Why what has these lock paths may not be changed now; empty where it may.

        An attempt with locks changes what they cover, all of them in force; one without any, what nobody else has
        locked. Raises KapellError where nobody knows.
        """
        return await fences.refusal(Locks(self._session.connection), paths, self.locks)

    @property
    def secrets(self) -> Mapping[str, str]:
        """Values of the task's secrets, by what they were to be found under. Masked in what the attempt says."""
        return self._lease.secrets

    def program_token(self) -> str:
        """A token for programs that work on this attempt, for their KAPELL_TOKEN; empty where they get none.

        It opens little and ends with the attempt. It is masked in what the attempt says from now on.
        """
        return self._lease.program_token()

    @property
    def redactor(self) -> Redactor:
        """Masks the values of the secrets."""
        return self._lease.redactor

    @property
    def cancelled(self) -> asyncio.Event:
        """Set when the work is to stop: the task was cancelled, the lease was lost, or the worker ends."""
        return self._lease.cancelled

    @property
    def lease_lost(self) -> asyncio.Event:
        """Set when the attempt is no longer ours; whatever it would still do is another's business."""
        return self._lease.lost

    @property
    def log_full(self) -> bool:
        """Whether the log has reached its limit (16 MiB for one attempt); more is dropped."""
        return self._lease.log.is_full

    def progress(self, fraction: float | None, step: str = "", message: str = "") -> None:
        """Says how far the work is, 0 to 1, or None where it cannot tell; never waits.

        Only the latest word is sent, a few times a second. `step` is cut at 200 characters,
        `message` at 1,000.
        """
        self._lease.progress.put(fraction, step, message)

    def usage(self, **fields: Unpack[UsageFields]) -> None:
        """Says what the work has used: `ctx.usage(model="gpt-5", input_tokens=1200, output_tokens=80)`; never waits.

        Takes what `kapell.records.usage_record` takes, but for task and agent, which are this attempt's. Give the
        provider's id of the response as `record_id`, so that it counts once whoever else reports it. It is
        sent at once, and before the attempt ends.
        """
        self._lease.usage.put(usage_record(**fields))

    def usage_from(self, response: Mapping[str, object], *, record_id: str = "", series: str = "") -> None:
        """Says what the work has used, in a provider's own words: its response as a dictionary; never waits.

        Responses of Anthropic, OpenAI (chat and responses) and Gemini are known, and more; see
        `kapell.records.raw_usage_record`. Texts in it are not sent.
        """
        self._lease.usage.put(raw_usage_record(response, record_id=record_id, series=series))

    @property
    def paused(self) -> asyncio.Event:
        """Set while a budget has no room for what the work would use: it should use nothing until there is some."""
        return self._lease.paused

    async def budget_room(self) -> None:
        """Waits until the work may use more; to be called before each call of a model, the usage of the last one said.

        Returns at once where no budget has paused it, and goes on waiting through restarts of the server; who reads
        the task sees what it waits for. What was said by `usage` counts, so it waits until that has arrived. Raises
        CancelledError when the task is cancelled, as where somebody has refused to let it use more.
        """
        await budgets.room(self._lease, self.waiting)

    @contextmanager
    def waiting(self, kind: WaitsFor, detail: str = "", *, until: Instant | None = None) -> Iterator[None]:
        """Says that the work waits, for as long as the block lasts; the next heartbeat tells the server.

        Such time does not count against `stall_timeout`. `detail` is for people and cut at 500 characters.
        """
        before = self._lease.waiting
        self._lease.waiting = AttemptWait(
            kind=_WAIT_KINDS[kind],
            detail=printable(self._lease.redactor.text(detail))[:500],
            until_time=timestamp(until),
        )
        try:
            yield
        finally:
            self._lease.waiting = before

    def program_ended(self) -> None:
        """Says that the program which does the work has ended; its outcome is expected within 60 s."""
        # What is left in a worktree is taken in after that, and may take longer than an outcome may.
        self._lease.program_ended = self.workspace is None or not self.workspace.is_taken_in

    def log(self, text: str, stream: LogStream.ValueType = LOG_STREAM_STDOUT, *, time_ns: int = 0) -> None:
        """Adds lines to the attempt's log; never waits. Lines over 16 KiB are split.

        Who logs faster than the server takes it loses lines, and the log says how many; `await
        log_room()` now and then avoids that. `time_ns` is when it was said, now where it is 0.
        """
        self._lease.log.append(text, stream, time_ns=time_ns)

    async def log_room(self) -> None:
        """Waits until the log takes more without anything being dropped."""
        await self._lease.log.room()

    async def create_children(self, tasks: Iterable[TaskSpec]) -> list[Task]:
        """Creates up to 100 tasks below this one, all or none; see `kapell.tasks.task_spec`.

        They outlive the attempt and are cancelled with the task. A later attempt finds them with
        `wait_children(timeout=0)`, so look there before creating them again.
        """
        return await children.create(self._session, self._lease, tasks)

    async def wait_children(self, timeout: Seconds | None = None) -> list[Task]:
        """Waits until all children have ended, and answers with them, the eldest first, with their results.

        After `timeout` with the children as they are by then, without results. The task keeps its
        slot while it waits: its children need other slots, of this worker or another one.
        """
        return await children.wait(self._session, self._lease, timeout)

    @property
    def resume_data(self) -> dict[str, object] | None:
        """What an earlier attempt has left when it parked; None where this one was not parked before."""
        task = self._lease.task
        return from_struct(task.parked.resume_data) if task.HasField("parked") else None

    async def approve(
        self,
        title: str,
        *,
        details: Mapping[str, object] | str | None = None,
        command: str = "",
        diff: str = "",
        paths: Iterable[str] = (),
        hosts: Iterable[str] = (),
        tool: str = "",
        input: Mapping[str, object] | None = None,
        working_directory: str = "",
        workspace: str = "",
        reversible: bool | None = None,
        policy: ApprovalPolicy | None = None,
        options: Mapping[str, str] | None = None,
        remember: Collection[str] = (),
        key: str = "",
        park: bool = False,
        resume: Mapping[str, object] | None = None,
    ) -> Verdict:
        """Asks a person whether it may go on, and waits for the answer, which is true where it may.

        `options`, labels by ids, are further ways to say yes; `option` of the answer tells which it was. Choosing one
        of `remember` also makes a rule that approves the same for the task and all below it, for 24 h.

        It goes on waiting through restarts of the server; heartbeats say so, and it does not count as stalled.
        A refusal is an answer, with its `comment`, and no exception; so is an expiry. Under a `key` a later
        attempt gets the answer of an earlier one that has asked for the same. With `park` the attempt
        ends until it was decided, and frees its slot: the handler is left by an exception that it must let
        pass, and runs again from its beginning, where the same call returns the answer at once;
        `resume` is what `resume_data` is then. Raises LeaseLost, and CancelledError when the task is cancelled.
        """
        content = ApprovalContent(
            details=approvals.details_text(details),
            tool=tool,
            command=command,
            diff=diff,
            paths=paths,
            hosts=hosts,
            working_directory=working_directory,
            workspace=workspace,
            input=struct(input),
            reversible=reversible,
        )
        return await self._ask(
            title,
            content,
            _choices(options, remember),
            kind=APPROVAL_KIND_TOOL_PERMISSION,
            policy=policy,
            key=key,
            park=park,
            resume=resume,
        )

    async def ask(
        self,
        question: str,
        *,
        options: Mapping[str, str] | None = None,
        details: Mapping[str, object] | str | None = None,
        policy: ApprovalPolicy | None = None,
        key: str = "",
        park: bool = False,
        resume: Mapping[str, object] | None = None,
    ) -> Verdict:
        """Asks a person a question, and waits. With `options`, labels by ids, `option` is the answer, else `comment`.

        Else as `approve`.
        """
        content = ApprovalContent(details=approvals.details_text(details))
        return await self._ask(
            question,
            content,
            _choices(options),
            kind=APPROVAL_KIND_QUESTION,
            policy=policy,
            key=key,
            park=park,
            resume=resume,
        )

    async def _ask(
        self,
        title: str,
        content: ApprovalContent,
        options: list[ApprovalOption],
        *,
        kind: ApprovalKind.ValueType,
        policy: ApprovalPolicy | None,
        key: str,
        park: bool,
        resume: Mapping[str, object] | None,
    ) -> Verdict:
        """A question without options wants a text."""
        request = RequestApprovalRequest(
            lease_token=self._lease.token,
            kind=kind,
            title=printable(title)[:300],
            content=content,
            options=options,
            free_text=kind == APPROVAL_KIND_QUESTION and not options,
            policy=policy,
            request_key=key,
            park=park,
            resume_data=struct(resume),
            request_id=new_request_id(),
        )
        with self.waiting("approval", title):
            return await approvals.ask(self._session, self._lease, request)

    async def upload_artifact(
        self,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        media_type: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Artifact:
        """Uploads a file as an artifact of this attempt; returns when the server has checked and kept all of it.

        Without `name` it is that of the file, without `media_type` what its name tells. It goes on
        through restarts of the server. Raises LeaseLost, Exhausted where a limit or the disk does not
        allow it, and OSError for a file that cannot be read.
        """
        session = self._session
        begin = creation(path, lease_token=self._lease.token, name=name, media_type=media_type, labels=labels)
        insist = partial(session.insist, timeout=_UPLOAD_TIMEOUT, bears_full_disks=False)
        try:
            return await upload(insist, session.artifacts, path, begin)
        except LeaseLost:
            self._lease.lose()
            raise

    async def report_workspaces(self, workspaces: Iterable[TaskWorkspace]) -> None:
        """Says what the attempt has left in its workspace, in the place of what it has said before.

        Nothing of an interrupted attempt is told. Raises LeaseLost, and what else the server refuses.
        """
        if self._lease.interrupted:
            return
        request = ReportWorkspacesRequest(lease_token=self._lease.token, workspaces=workspaces)
        try:
            answer = await self._session.insist(self._session.stub.ReportWorkspaces, lambda: request)
        except LeaseLost:
            self._lease.lose()
            raise
        self._lease.follow(answer.directive)


def _choices(options: Mapping[str, str] | None, remember: Collection[str] = ()) -> list[ApprovalOption]:
    return [
        ApprovalOption(option_id=name, label=label, remember=name in remember)
        for name, label in (options or {}).items()
    ]
