"""What decisions look at and write to: the loaded part of the database, and an undo journal.

Owned by the engine's writer; nobody else touches it. Messages in it are never altered: a change
copies, edits and puts. Every write can be undone, so a refused command leaves no trace and a
failed transaction leaves memory as it was. The surprise: `task()` may load from the database in
the middle of a decision; prefetching makes that rare.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from kapell.v1.agent_pb2 import Agent, AgentSpec
from kapell.v1.task_pb2 import (
    TASK_STATE_QUEUED,
    Task,
    TaskAttempt,
    TaskEdit,
)
from kapell.v1.watch_pb2 import EventKind

from kapell_server.domain.access import Caller, Keyring, system
from kapell_server.domain.alerts.alerts import Alerts
from kapell_server.domain.approvals.shelf import ApprovalShelf
from kapell_server.domain.budgets import from_ledger
from kapell_server.domain.budgets.budgets import Budgets
from kapell_server.domain.due import DueTable
from kapell_server.domain.ids import IdMinter
from kapell_server.domain.locks import grants
from kapell_server.domain.locks.table import LockTable
from kapell_server.domain.not_found import agent_not_found, task_not_found
from kapell_server.domain.pending import Change, Loader, Pending, Resource
from kapell_server.domain.queueing.arrivals import is_new
from kapell_server.domain.queueing.polls import PollBoard
from kapell_server.domain.queueing.queues import Queues
from kapell_server.domain.schedules.schedule_lives import ScheduleLives
from kapell_server.domain.schedules.schedule_tasks import ScheduleTasks
from kapell_server.domain.secrets.vault import NoVault, Vault
from kapell_server.domain.settings import Settings
from kapell_server.domain.standing import StandingShelf
from kapell_server.domain.tasks.bulk_job import BulkJob
from kapell_server.domain.tasks.deadlines import next_deadline_ns
from kapell_server.domain.tasks.edges import Edges
from kapell_server.domain.tasks.family import Families
from kapell_server.domain.templates.template_shelf import TemplateShelf
from kapell_server.domain.transitions import AGENT_FINAL, TASK_FINAL, TASK_LEASED
from kapell_server.domain.usage.shelf import UsageShelf
from kapell_server.domain.workers.leases import Lease, LeaseTable
from kapell_server.domain.workers.pool import Pools
from kapell_server.domain.workers.specs import secrets_of

_TASK_CACHE = 20_000
_CONTENT_CACHE_BYTES = 32 * 1024 * 1024


class State:
    """The working set of the writer. `revision` is that of the latest put, `now_ns` the batch's time.

    The log holds what came after `oldest_revision`. `passing_tasks` are forgotten after the batch.
    """

    def __init__(self, *, settings: Settings, keyring: Keyring, random: Random, log_id: str) -> None:
        self.settings = settings
        self.keyring = keyring
        self.random = random
        self.log_id = log_id
        self.loader: Loader
        self.caller: Caller = system("server")
        self.revision = 0
        self.oldest_revision = 0
        self.now_ns = 0
        self.pending = Pending()
        self.leases = LeaseTable()
        self.polls = PollBoard()
        self.agents: dict[str, Agent] = {}
        self.agent_seen_ns: dict[str, int] = {}
        self.agent_polled_ns: dict[str, int] = {}
        self.instance_keys: dict[str, str] = {}
        self.busy_agents: set[str] = set()
        self._passing_agents: set[str] = set()
        self.due = DueTable()
        self._ids = IdMinter(random)
        self._ticks = 0
        self._tasks: dict[str, Task | None] = {}
        self.passing_tasks: list[str] = []
        self._contents: dict[str, bytes] = {}
        self._content_bytes = 0
        self.templates = TemplateShelf(self)
        self.edges = Edges(self)
        self.families = Families(self)
        self.bulk_jobs: dict[str, BulkJob] = {}
        self.standing = StandingShelf(self)
        self.schedule_tasks = ScheduleTasks(self)
        self.usage = UsageShelf(self)
        self.approvals = ApprovalShelf(self)
        self.locks = LockTable(self)
        self.token_digests: dict[str, bytes] = {}
        """What proves each token, by its id."""
        self.audit_number = 0
        self.schedule_lives = ScheduleLives(self)
        self._undo: list[tuple[Any, ...]] = []
        self.alerts = Alerts(self)
        self.budgets = Budgets(self)
        self.usage.settlers.append(from_ledger.settle)
        self.queues = Queues(self)
        self.vault: Vault = NoVault()
        self.secret_values: dict[str, bytes] = {}  # by name, sealed
        self.agent_secrets: dict[str, dict[str, str]] = {}
        """What spawned agents are given besides the secrets of their tasks: the variable, and the secret."""
        self.turns: dict[str, int] = {}
        self.pools = Pools(self)

    # -- the batch ---------------------------------------------------------------------------

    def begin(self, now_ns: int, loader: Loader) -> None:
        """Opens a batch at `now_ns`."""
        self.now_ns = now_ns
        self.loader = loader
        self.pending = Pending()
        self._undo.clear()
        self.passing_tasks.clear()
        self.queues.begin()
        self.usage.begin()
        self.locks.begin()
        self._ticks = 0

    def mark(self) -> int:
        """A point to roll back to."""
        return len(self._undo)

    def rollback(self, mark: int) -> None:
        """Undoes every write since the mark, the last one first."""
        while len(self._undo) > mark:
            step, *arguments = self._undo.pop()
            step(*arguments)

    def settle(self) -> None:
        """The batch is committed: it cannot be undone any more, even if the next one fails before it begins."""
        self._undo.clear()
        self.queues.trim()
        self.budgets.trim()
        self.due.trim()
        self._trim()
        self._forget_ended_agents()

    def _forget_ended_agents(self) -> None:
        """Agents come and go for as long as the server runs; those that have ended are the database's."""
        for agent_id in self._passing_agents:
            agent = self.agents.get(agent_id)
            if agent is None or agent.state in AGENT_FINAL:
                seen, asked = self.agent_seen_ns, self.agent_polled_ns
                for table in (self.agents, seen, asked, self.instance_keys, self.turns, self.agent_secrets):
                    table.pop(agent_id, None)
        self._passing_agents.clear()

    def _trim(self) -> None:
        """Forgets the oldest cached tasks and contents beyond the cap, and all that was only passing."""
        for task_id in self.passing_tasks:
            self._tasks.pop(task_id, None)
        self.passing_tasks.clear()
        for task_id in list(itertools.islice(self._tasks, max(0, len(self._tasks) - _TASK_CACHE))):
            del self._tasks[task_id]
        self.templates.trim()
        self.families.trim()
        self.schedule_tasks.trim()
        self.approvals.trim()
        while self._content_bytes > _CONTENT_CACHE_BYTES:
            first = next(iter(self._contents))
            self._content_bytes -= len(self._contents.pop(first))

    def tick_ns(self) -> int:
        """The batch's time, one nanosecond later at each call, so that order within a batch is kept."""
        self._ticks += 1
        return self.now_ns + self._ticks

    def new_id(self, prefix: str) -> str:
        """A fresh id as "task_01j…"."""
        return self._ids.mint(prefix, self.now_ns)

    # -- tasks -------------------------------------------------------------------------------

    def prefetch_tasks(self, task_ids: Iterable[str]) -> None:
        """Loads in one query what is not in memory; what does not exist is remembered as absent."""
        tasks = self._tasks
        missing = {task_id for task_id in task_ids if task_id not in tasks}
        if missing:
            for task in self.loader.load_tasks(missing):
                tasks[task.task_id] = task
                missing.discard(task.task_id)
            for task_id in missing:
                tasks[task_id] = None

    def cached_task(self, task_id: str) -> Task | None:
        """The task where it is in memory; never loads. For readers outside the writer."""
        return self._tasks.get(task_id)

    def find_task(self, task_id: str) -> Task | None:
        """The task, or None. Not to be altered."""
        if task_id not in self._tasks:
            self.prefetch_tasks((task_id,))
        return self._tasks[task_id]

    def task(self, task_id: str) -> Task:
        """The task; TASK_NOT_FOUND where there is none."""
        task = self.find_task(task_id)
        if task is None:
            raise task_not_found(task_id)
        return task

    def put_task(
        self,
        task: Task,
        kind: EventKind.ValueType,
        changed: tuple[str, ...],
        *,
        created: bool = False,
        deleted: bool = False,
    ) -> Task:
        """Records `task` as the new form, with one event. Takes ownership of the message."""
        task_id = task.task_id
        previous = None if created else self._tasks.get(task_id)
        wish = None if deleted else self.approvals.before_put(task, previous)
        state = task.state
        kind = self.approvals.event_of(task, kind)
        self._number(task)
        since = previous_state = 0
        if previous is not None:
            since = previous.revision
            previous_state = previous.state if previous.state != state else 0
        due_ns = 0 if deleted else next_deadline_ns(task, self.settings)
        self.pending.changes.append(
            Change(task, kind, since, previous_state, changed, self.caller, created, deleted, due_ns)
        )
        self._tasks[task_id] = None if deleted else task
        self._undo.append((self._unput_task, task_id, previous))
        if self.edges.concern(task_id):
            self.edges.notice(task, previous, deleted)
        if task.root_task_id and (created or deleted):
            self.families.notice(task, deleted)
        if previous is None or previous_state or previous.priority != task.priority or _is_elsewhere(previous, task):
            self._queue(previous, task)
            self.schedule_lives.notice(task, previous)
        if self.due.is_within_horizon(due_ns):
            self.schedule(due_ns, task_id)
        elif deleted or state in TASK_FINAL:
            self.forget_due(task_id)
        self.approvals.after_put(task, wish, deleted=deleted)
        return task if wish is None else self._tasks[task_id] or task

    def _queue(self, previous: Task | None, task: Task) -> None:
        """Tells the queues of a task that has joined or left one, or an agent."""
        before = previous.state if previous is not None else 0
        after = task.state
        if task.concurrency_keys and before != after:
            self.queues.keys.note_rest(previous, task)
        if previous is not None and before == TASK_STATE_QUEUED:
            self.queues.leave(previous, starts=after in TASK_LEASED)
        if (before in TASK_LEASED) != (after in TASK_LEASED):
            self.queues.occupy(task, 1 if after in TASK_LEASED else -1)
        if after == TASK_STATE_QUEUED:
            self.queues.join(task, arrives=before != after and is_new(previous, task))

    def _unput_task(self, task_id: str, previous: Task | None) -> None:
        self.revision -= 1
        self.pending.changes.pop()
        self._tasks[task_id] = previous

    # -- time --------------------------------------------------------------------------------

    def schedule(self, due_ns: int, subject_id: str) -> None:
        """Asks for a look at a task, an agent or whatever else at `due_ns`; 0 asks for none. See DueTable."""
        self.due.schedule(due_ns, subject_id)

    def forget_due(self, subject_id: str) -> None:
        """What has ended needs no look."""
        due_ns = self.due.forget(subject_id)
        if due_ns:
            self._undo.append((self.schedule, due_ns, subject_id))

    def next_due_ns(self) -> int:
        """When the writer has to be at work next, without being told to; 0 for never."""
        return self.now_ns if self.edges.stirred or self.queues.unsettled else self.due.next_ns()

    # -- content -----------------------------------------------------------------------------

    def content(self, task_id: str) -> bytes:
        """The encoded prompt, input and result: a Task with only these fields."""
        content = self._contents.get(task_id)
        if content is None:
            content = self.pending.contents.get(task_id)
        if content is None:
            self.prefetch_contents((task_id,))
            content = self._contents.get(task_id, b"")
        return content

    def prefetch_contents(self, task_ids: Iterable[str]) -> None:
        """Loads in one query what is not in memory. What this batch has put is not in the database yet."""
        put = self.pending.contents
        missing = [task_id for task_id in task_ids if task_id not in self._contents and task_id not in put]
        if missing:
            for task_id, content in self.loader.load_contents(missing).items():
                self._cache_content(task_id, content)

    def put_content(self, task_id: str, content: bytes) -> None:
        """Records the content of a task."""
        self.assign(self.pending.contents, task_id, content)
        self._undo.append((self._cache_content, task_id, self._contents.get(task_id)))
        self._cache_content(task_id, content)

    def keep_edit(self, task: Task, edit: TaskEdit) -> None:
        """Records what the content was before the change that `task` has just been put with."""
        edit.revision = task.revision
        self.assign(self.pending.edits, (task.task_id, task.revision), edit)

    def drop_content(self, task_id: str) -> None:
        """Frees the memory of a finished task's content; the database keeps it."""
        self._cache_content(task_id, None)

    def _cache_content(self, task_id: str, content: bytes | None) -> None:
        """Sets or forgets one content, and keeps count."""
        self._content_bytes -= len(self._contents.pop(task_id, b""))
        if content is not None:
            self._contents[task_id] = content
            self._content_bytes += len(content)

    # -- leases and attempts -----------------------------------------------------------------

    def open_lease(self, lease: Lease) -> None:
        """Grants a lease with its attempt."""
        self.leases.add(lease)
        self._undo.append((self.leases.remove, lease))
        self.budgets.attach(lease)
        self.put_attempt(lease.record, lease.poll_id, new=True)
        self.busy_agents.add(lease.agent_id)
        self.schedule(lease.expire_ns, lease.task_id)

    def close_lease(self, lease: Lease, record: TaskAttempt, *, worked: bool = False) -> None:
        """Ends a lease and whatever it holds; `record` is the attempt as it ended, worked on even if RELEASED."""
        self.leases.remove(lease)
        self._undo.append((self.leases.restore, lease))
        grants.end_attempt(self, record)
        self.budgets.finish(lease, record, worked=worked)
        self.put_attempt(record, lease.poll_id)
        self.busy_agents.add(lease.agent_id)
        self.polls.touch_agent(lease.agent_id)

    def put_attempt(self, record: TaskAttempt, poll_id: str, *, new: bool = False) -> None:
        """Records an attempt; `new` where it has no row yet."""
        key = (record.task_id, record.attempt)
        self.assign(self.pending.attempts, key, (record, poll_id))
        if new:
            self.pending.new_attempts.add(key)

    def find_attempt(self, task_id: str, number: int) -> TaskAttempt | None:
        """The attempt, which may have ended; None where there is none."""
        put = self.pending.attempts.get((task_id, number))
        if self.find_task(task_id) is None:
            return None
        return put[0] if put is not None else self.loader.load_attempt(task_id, number)

    # -- agents ------------------------------------------------------------------------------

    def find_agent(self, agent_id: str) -> Agent | None:
        """The agent, or None. Live agents are always in memory; ended ones are loaded."""
        agent = self.agents.get(agent_id)
        if agent is None and agent_id not in self.pending.deleted_agents:
            agent = self.loader.load_agent(agent_id)
            if agent is not None:
                self.agents[agent_id] = agent
                self._passing_agents.add(agent_id)
        return agent

    def agent(self, agent_id: str) -> Agent:
        """The agent; AGENT_NOT_FOUND where there is none."""
        agent = self.find_agent(agent_id)
        if agent is None:
            raise agent_not_found(agent_id)
        return agent

    def put_agent(
        self,
        agent: Agent,
        kind: EventKind.ValueType,
        changed: tuple[str, ...],
        *,
        created: bool = False,
        deleted: bool = False,
    ) -> Agent:
        """Records `agent` as the new form, with one event. Takes ownership of the message."""
        previous = None if created else self.agents.get(agent.agent_id)
        self._number(agent)
        previous_state = previous.state if previous is not None and previous.state != agent.state else 0
        since = previous.revision if previous is not None else 0
        self.pending.changes.append(Change(agent, kind, since, previous_state, changed, self.caller, created, deleted))
        self._undo.append((self._unput,))
        if agent.state in AGENT_FINAL:
            self._passing_agents.add(agent.agent_id)
        if deleted:
            self.remove(self.agents, agent.agent_id)
            self.assign(self.pending.deleted_agents, agent.agent_id, True)
        else:
            self.assign(self.agents, agent.agent_id, agent)
        self.alerts.agent_changed(agent, deleted=deleted)
        self.pools.note(agent, previous)
        return agent

    def set_instance_key(self, agent_id: str, instance_key: str) -> None:
        """Remembers which process the agent is."""
        self.assign(self.instance_keys, agent_id, instance_key)
        self.assign(self.pending.instance_keys, agent_id, instance_key)

    def keep_spec(self, agent_id: str, spec: AgentSpec) -> None:
        """Stores what a new agent is made of, secrets included, beside its record."""
        self.assign(self.pending.specs, agent_id, spec.SerializeToString())
        if secrets := secrets_of(spec):
            self.assign(self.agent_secrets, agent_id, secrets)

    def see_agent(self, agent_id: str) -> None:
        """Notes a sign of life: kept in memory and, with the next commit, in its narrow row."""
        self.agent_seen_ns[agent_id] = self.now_ns
        self.pending.heartbeats[agent_id] = self.now_ns

    # -- the journal -------------------------------------------------------------------------

    def on_rollback(self, undo: Callable[..., Any], *arguments: Any) -> None:
        """Registers how to undo a write that State does not know of."""
        self._undo.append((undo, *arguments))

    def record(
        self,
        resource: Resource,
        kind: EventKind.ValueType,
        since: int,
        changed: tuple[str, ...],
        *,
        created: bool,
        deleted: bool,
    ) -> None:
        """Gives the resource the next revision and notes the change; the caller assigns the resource."""
        self._number(resource)
        self.pending.changes.append(Change(resource, kind, since, 0, changed, self.caller, created, deleted))
        self._undo.append((self._unput,))

    def _number(self, resource: Resource) -> None:
        """Gives the resource the next revision."""
        self.revision += 1
        resource.revision = self.revision
        resource.etag = str(self.revision)

    def _unput(self) -> None:
        """Takes back the latest change; its resource is for the caller to restore."""
        self.revision -= 1
        self.pending.changes.pop()

    def assign(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        """Sets an entry so that it can be undone."""
        self._undo.append((_restore, mapping, key, mapping.get(key, _ABSENT)))
        mapping[key] = value

    def remove(self, mapping: dict[Any, Any], key: Any) -> None:
        """Drops an entry, if it is there, so that it can be undone."""
        if key in mapping:
            self._undo.append((_restore, mapping, key, mapping.pop(key)))


_ABSENT = object()


def _is_elsewhere(previous: Task, task: Task) -> bool:
    """Whether a task that stays QUEUED is to wait for other locks."""
    return task.state == TASK_STATE_QUEUED and bool(previous.locks or task.locks) and previous.locks != task.locks


def _restore(mapping: dict[Any, Any], key: Any, old: Any) -> None:
    if old is _ABSENT:
        mapping.pop(key, None)
    else:
        mapping[key] = old
