"""The worktrees of one task while an attempt at it runs: prepared before, taken in afterwards.

Both under the lock of the task's worktrees, which ends with the host however that ends. What git does blocks, so
it is done in threads. A lost lease leaves all as it is: the next attempt takes it from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from kapell._worker.outcome import TaskFailed
from kapell._workspace import commands, merging, results, worktrees
from kapell._workspace.git import GitFailed, in_thread
from kapell._workspace.registry import Damaged, Record, Registry
from kapell._workspace.worktrees import Refused, Wanted
from kapell.errors import KapellError, LeaseLost, LockLost
from kapell.runtimes._setup import inherited
from kapell.runtimes.contract import Attempt, Workspace
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM
from kapell.v1.task_pb2 import Task
from kapell.v1.workspace_pb2 import (
    MERGE_OUTCOME_MERGED,
    MERGE_OUTCOME_REFUSED,
    GitWorktree,
    TaskWorkspace,
    WorkspaceMerge,
)

DEFAULT_BRANCH = "kapell/{task_id}"
_SETUP_SECONDS = 600.0
_LOCK_SECONDS = 30.0
_PAUSE = 0.1
_MOST_SHOWN_BYTES = 1024

_T = TypeVar("_T")


class TaskWorktrees:
    """Makes and finds the worktrees that a profile asks for."""

    def __init__(self, spec: GitWorktree, root: Path, *, agent_id: str) -> None:
        self._spec = spec
        self._registry = Registry(root)
        self._agent_id = agent_id

    @contextlib.asynccontextmanager
    async def of(self, attempt: Attempt, task: Task) -> AsyncIterator[Worktrees]:
        """The worktrees of a task, ready to be worked in. Raises TaskFailed with SETUP_FAILED, and what to do."""
        async with _held(self._registry, attempt) as is_held:
            if not is_held:
                text = f"another process works in the worktrees of {task.task_id} - end it, or wait for it"
                raise TaskFailed("SETUP_FAILED", text, retry_delay=10)
            try:
                records = await in_thread(self._prepare, attempt, task)
                ready = Worktrees(self._spec, self._registry, records, attempt)
                await ready.set_up()
            except (Refused, Damaged) as error:
                raise TaskFailed("SETUP_FAILED", str(error), retryable=False) from error
            except GitFailed as error:
                retryable = None if error.is_passing else False
                raise TaskFailed("SETUP_FAILED", str(error), retryable=retryable) from error
            except OSError as error:
                raise TaskFailed("SETUP_FAILED", f"the workspace could not be made: {error}") from error
            yield ready

    def _prepare(self, attempt: Attempt, task: Task) -> list[Record]:
        records = []
        for repository in self._spec.repositories:
            record = self._registry.find(task.task_id, repository.name)
            if record is not None and record.state == "creating":
                worktrees.unmake(self._registry, record)
                record = None
            if record is None:
                wanted = Wanted(
                    name=repository.name,
                    repository=repository.path,
                    base_ref=repository.base_ref,
                    branch=_branch(self._spec, task),
                    directory=self._place(task.task_id, repository.name),
                )
                record = worktrees.made(self._registry, task.task_id, wanted)
                attempt.log(f"made {record.directory} on {record.branch} from {record.base[:12]}", LOG_STREAM_SYSTEM)
            else:
                self._go_on(attempt, record)
            record.state, record.attempt, record.agent_id = "working", attempt.attempt, self._agent_id
            policy = self._spec.merge
            record.check, record.rebase = list(policy.check), policy.rebase
            record.check_seconds = policy.check_timeout.ToMilliseconds() / 1000
            self._registry.put(record)
            records.append(record)
        return records

    def _go_on(self, attempt: Attempt, record: Record) -> None:
        worktrees.verify(self._registry, record, brings_home=record.state == "working")
        worktrees.clear_locks(record)
        if not self._spec.restart_on_retry or record.attempt == attempt.attempt:
            attempt.log(f"goes on in {record.directory} on {record.branch}", LOG_STREAM_SYSTEM)
            return
        kept = results.begin_anew(self._registry, record, attempt=attempt.attempt)
        after = f"; what was there is kept as {kept}" if kept else ""
        attempt.log(f"begins anew in {record.directory} on {record.branch}{after}", LOG_STREAM_SYSTEM)

    def _place(self, task_id: str, name: str) -> Path:
        if self._spec.directory:
            return Path(self._spec.directory) / task_id / name
        return self._registry.place(task_id, name)


class Worktrees:
    """The worktrees of one attempt."""

    def __init__(self, spec: GitWorktree, registry: Registry, records: list[Record], attempt: Attempt) -> None:
        self._spec = spec
        self._registry = registry
        self._records = records
        self._attempt = attempt

    @property
    def workspace(self) -> Workspace:
        """Where the attempt works, and what it is told of that."""
        first = self._records[0]
        directory = Path(first.directory) if len(self._records) == 1 else Path(first.directory).parent
        return Workspace(
            directory=directory,
            environment={
                "KAPELL_WORKSPACE": str(directory),
                "KAPELL_BRANCH": first.branch,
                "KAPELL_BASE": first.base,
                **results.who(first.agent_id),
            },
            is_taken_in=True,
        )

    async def set_up(self) -> None:
        """Runs the set-up command where its inputs have changed. Raises TaskFailed."""
        setup = self._spec.setup
        if not setup.argv:
            return
        place, record = self.workspace, self._records[0]
        key = await in_thread(commands.key, setup.argv, setup.inputs, place.directory)
        if setup.inputs and record.setup == key:
            return
        seconds = setup.timeout.ToMilliseconds() / 1000 if setup.HasField("timeout") else _SETUP_SECONDS
        environment = {**inherited(os.environ), **place.environment}
        self._attempt.log(f"sets up: {setup.argv[0]}", LOG_STREAM_SYSTEM)
        try:
            ended = await self._unless_stopped(commands.run(setup.argv, place.directory, environment, seconds))
        except OSError as error:
            text = f"the set-up {setup.argv[0]} could not be started: {error} - install it, or correct the profile"
            raise TaskFailed("SETUP_FAILED", text, retryable=False) from error
        if not ended.is_good:
            raise TaskFailed("SETUP_FAILED", "the set-up failed: " + ended.why(setup.argv[0], seconds))
        record.setup = await in_thread(commands.key, setup.argv, setup.inputs, place.directory)
        await in_thread(self._registry.put, record)

    async def keep_work(self, work: Awaitable[object]) -> object:
        """The outcome of the attempt, after what it has left was committed and kept."""
        try:
            result = await work
        except Exception:
            await self._take_in(has_failed=True)
            raise
        told = await self._take_in(has_failed=False)
        if self._spec.merge.on_success and told:
            await self._merge(told)
        return result

    async def _take_in(self, *, has_failed: bool) -> list[TaskWorkspace]:
        """What it has told of the repositories; nothing where the attempt is not ours any more."""
        if self._attempt.lease_lost.is_set():
            return []
        try:
            told = [await self._settle(record) for record in self._records]
            await self._report(told)
            if not self._attempt.cancelled.is_set():
                await self._keep_diffs()
        except (Refused, GitFailed, OSError) as error:
            text = f"the work could not be committed: {error}"
            self._attempt.log(text, LOG_STREAM_SYSTEM)
            if not has_failed:
                # A branch that has not all of the work must not pass for the work.
                raise TaskFailed("WORKSPACE_FAILED", text) from error
            return []
        return told

    async def _merge(self, told: list[TaskWorkspace]) -> None:
        """Brings each branch into its base. Raises TaskFailed with MERGE_FAILED for the first that cannot be."""
        for record, left in zip(self._records, told, strict=True):
            try:
                left.merge.CopyFrom(await self._unless_stopped(self._merged(record, told)))
            except (Refused, GitFailed, OSError, KapellError) as error:
                text = str(error)[:2000]
                left.merge.CopyFrom(WorkspaceMerge(outcome=MERGE_OUTCOME_REFUSED, message=text))
            await self._report(told)
            if left.merge.outcome != MERGE_OUTCOME_MERGED:
                text = f"{left.branch} was not merged: {left.merge.message}"
                if left.merge.paths:
                    text += ": " + ", ".join(left.merge.paths)
                raise TaskFailed("MERGE_FAILED", text, retryable=False)

    async def _merged(self, record: Record, told: list[TaskWorkspace]) -> WorkspaceMerge:
        plan = await in_thread(merging.planned, record)
        held = self._attempt.lock(*await in_thread(merging.lock_paths, plan), note=f"merge of {record.task_id}")

        async def confirm() -> None:
            await held.verify()
            # Taken by the server only as long as the attempt is ours.
            await self._attempt.report_workspaces(told)

        ended = None
        try:
            async with contextlib.AsyncExitStack() as holding:
                with self._attempt.waiting("lock", f"to merge {record.branch}"):
                    await holding.enter_async_context(held)
                ended = await merging.merge_held(self._registry, plan, confirm)
        except LockLost:
            # Lost after the base has moved, it has done its duty.
            if ended is None:
                raise
        return ended

    async def _report(self, told: list[TaskWorkspace]) -> None:
        try:
            await self._attempt.report_workspaces(told)
        except LeaseLost:
            return
        except KapellError as error:
            self._attempt.log(f"the server does not take what was done in the repositories: {error}", LOG_STREAM_SYSTEM)

    async def _settle(self, record: Record) -> TaskWorkspace:
        remarks, told = await in_thread(self._taken_in, record)
        for remark in remarks:
            self._attempt.log(remark, LOG_STREAM_SYSTEM)
        return told

    def _taken_in(self, record: Record) -> tuple[list[str], TaskWorkspace]:
        message = f"Work of {record.task_id}, attempt {record.attempt}\n\nNot committed by the agent itself.\n"
        remarks = results.take_in(self._registry, record, message=message, commits=not self._spec.keep_uncommitted)
        record.state = "idle"
        self._registry.put(record)
        counted = results.figures(record)
        return remarks, TaskWorkspace(
            name=record.name,
            branch=record.branch,
            base_ref=record.base_ref,
            base_commit=record.base,
            head_commit=record.head,
            files_changed=counted.files,
            insertions=counted.insertions,
            deletions=counted.deletions,
            dirty=record.dirty,
            directory=_shown(record.directory),
        )

    async def _keep_diffs(self) -> None:
        for record in self._records:
            with tempfile.TemporaryDirectory(prefix="kapell-diff-") as directory:
                files, remarks = await in_thread(results.write_down, record, Path(directory))
                for remark in remarks:
                    self._attempt.log(remark, LOG_STREAM_SYSTEM)
                for file in files:
                    await self._upload(file, f"{record.name}/{file.name}" if len(self._records) > 1 else file.name)

    async def _upload(self, file: Path, name: str) -> None:
        try:
            await self._unless_stopped(self._attempt.upload_artifact(file, name=name))
        except LeaseLost:
            return
        except (KapellError, OSError, ValueError) as error:
            self._attempt.log(f"{name} was not kept as an artifact: {error}", LOG_STREAM_SYSTEM)

    async def _unless_stopped(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The outcome of `work`; TaskFailed with CANCELLED where the attempt is to stop first."""
        working = asyncio.create_task(work, name=f"workspace of {self._attempt.task_id}")
        stop = asyncio.create_task(self._attempt.cancelled.wait(), name=f"cancel of {self._attempt.task_id}")
        try:
            await asyncio.wait((working, stop), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
        finally:
            stop.cancel()
            working.cancel()
            await asyncio.wait((working,))
        if not working.cancelled() and working.exception() is None:
            return working.result()  # It was too far to be stopped.
        raise TaskFailed("CANCELLED", "the work was stopped because the task was cancelled")


@contextlib.asynccontextmanager
async def _held(registry: Registry, attempt: Attempt) -> AsyncIterator[bool]:
    """The lock of the task's worktrees; False where somebody keeps it. Its holder may be a host that is just ending."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _LOCK_SECONDS
    with contextlib.ExitStack() as holding:
        # A lock of the system's has no event to wait for.
        while not (is_held := holding.enter_context(registry.held(attempt.task_id))):
            if loop.time() >= deadline or attempt.cancelled.is_set():
                break
            holding.pop_all().close()
            await asyncio.sleep(_PAUSE)
        yield is_held


def _shown(directory: str) -> str:
    """A path as it can be told; empty where it is too long for that."""
    text = os.fsencode(directory).decode(errors="replace")
    return text if len(text.encode()) <= _MOST_SHOWN_BYTES else ""


def _branch(spec: GitWorktree, task: Task) -> str:
    pattern = spec.branch or DEFAULT_BRANCH
    return pattern.replace("{task_id}", task.task_id).replace("{agent_type}", task.agent_type)
