"""The trial after a storm: what the server says now, held against the log and the clients' journals.

Reads through the public API only and shares no code with the server. Every method is one promise,
named as in server/ARCHITECTURE.md, and returns what is wrong, so that a failing run shows all of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator

from google.protobuf.struct_pb2 import Value
from kapell.v1 import agent_pb2, event_pb2, task_pb2
from kapell.v1.agent_pb2 import Agent
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.event_pb2 import Event
from kapell.v1.task_pb2 import ATTEMPT_STATE_RUNNING, TASK_STATE_SUCCEEDED, Task
from kapell.v1.watch_pb2 import EVENT_KIND_AGENT_DELETED, EVENT_KIND_TASK_COMPLETED, EVENT_KIND_TASK_CREATED

from tests.crash.history import TaskHistory
from tests.crash.journal import Journal
from tests.crash.peer import Peer
from tests.crash.watchers import SdkWatcher, digest
from tests.crash.workers import POACHED, result_of

_PAGE = 1000


class Audit:
    """What the server holds after the storm. Make it with `take`."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.log: list[Event] = []
        self.tasks: dict[str, Task] = {}
        self.agents: dict[str, Agent] = {}
        self.histories: dict[str, TaskHistory] = {}
        self.head = 0
        self._attempts = {
            offer.lease_token: (offer.task.task_id, offer.attempt)
            for entry in journal.of("lease")
            for offer in entry.response.offers
        }

    @classmethod
    async def take(cls, peer: Peer, journal: Journal) -> Audit:
        """Reads the whole log and all resources."""
        audit = cls(journal)
        audit.log = [event async for event in _events(peer)]
        audit.tasks = {task.task_id: task async for task in _tasks(peer)}
        audit.agents = {agent.agent_id: agent async for agent in _agents(peer)}
        audit.head = (await peer.read(peer.events.GetLogInfo, event_pb2.GetLogInfoRequest())).revision
        return audit

    def log_has_no_gap(self) -> Iterator[str]:
        """Every revision once, in order, up to the head."""
        for expected, event in enumerate(self.log, 1):
            if event.revision != expected:
                yield f"the log has revision {event.revision} in the place of {expected}"
                return
        if self.head != len(self.log):
            yield f"the log has {len(self.log)} events, its head is {self.head}"

    def every_task_lived_by_the_rules(self) -> Iterator[str]:
        """T1 to T4, from the log alone. Fills `histories`."""
        for event in self.log:
            if event.HasField("task"):
                history = self.histories.setdefault(event.task.task_id, TaskHistory())
                for fault in history.take(event):
                    yield f"revision {event.revision}, {event.task.task_id}: {fault}"

    def replay_is_the_state(self) -> Iterator[str]:
        """W2 from the very beginning: the last event of each resource is the resource."""
        for task_id, history in self.histories.items():
            now = self.tasks.get(task_id)
            if history.deleted != (now is None) or (now is not None and now != history.task):
                yield f"W2: {task_id} is {now}, the log ends with {history.task}"
        for task_id in self.tasks.keys() - self.histories.keys():
            yield f"W2: {task_id} is not in the log"
        last = {event.agent.agent_id: event for event in self.log if event.HasField("agent")}
        for agent_id, event in last.items():
            now_agent = self.agents.get(agent_id)
            if now_agent is None:
                if event.kind != EVENT_KIND_AGENT_DELETED:
                    yield f"W2: {agent_id} is gone, the log does not say so"
                continue
            now_agent.ClearField("last_heartbeat_time")
            if now_agent != event.agent:
                yield f"W2: {agent_id} is {now_agent}, the log ends with {event.agent}"

    def nothing_acknowledged_is_lost(self) -> Iterator[str]:
        """D1: whatever an answer has shown stands in the log, at the revision that it named."""
        for entry in self.journal.of("create", "batch", "gamble", "update", "cancel", "retry"):
            response = entry.response
            shown = response.tasks if isinstance(response, task_pb2.BatchCreateTasksResponse) else [response.task]
            for task in shown:
                event = self.log[task.revision - 1] if task.revision <= len(self.log) else None
                if event is None or event.task != task:
                    yield f"D1: {entry.kind} was answered with {task}; the log has {event}"
        for entry in self.journal.of("delete"):
            task_id = entry.request.task_id
            if entry.response.deleted and task_id in self.tasks:
                yield f"D1: {task_id} was deleted and is there"
        for entry in self.journal.of("lease"):
            for offer in entry.response.offers:
                event = self.log[offer.task.revision - 1]
                if (event.task.task_id, event.task.lease.agent_id) != (offer.task.task_id, entry.agent_id):
                    yield f"D1: {offer.task.task_id} was leased to {entry.agent_id}; the log has {event}"

    async def acknowledged_completions_stay(self, peer: Peer) -> Iterator[str]:
        """D1, T3: who was told that its attempt succeeded finds its own result, once and for ever."""
        winners: dict[str, int] = {}
        faults = []
        for token in self._completed_tokens():
            task_id, number = self._attempts[token]
            if winners.setdefault(task_id, number) != number:
                faults.append(f"T3: {task_id} was completed by attempts {winners[task_id]} and {number}")
        for event in self.log:
            task = event.task
            if event.kind == EVENT_KIND_TASK_COMPLETED and winners.get(task.task_id, task.attempt) != task.attempt:
                faults.append(f"T3: {task.task_id} records attempt {task.attempt} as the winner")
        for task_id, attempt in winners.items():
            history = self.histories[task_id]
            if history.task is None or history.task.state != TASK_STATE_SUCCEEDED:
                faults.append(f"D1: the completion of {task_id} was acknowledged; it is {history.task}")
            elif not history.deleted:
                answer = await peer.read(peer.tasks.GetTask, task_pb2.GetTaskRequest(task_id=task_id))
                if answer.task.result != result_of(task_id, attempt):
                    faults.append(f"D1: {task_id} lost the result of attempt {attempt}: {answer.task.result}")
        return iter(faults)

    def _completed_tokens(self) -> Iterator[str]:
        for entry in self.journal.of("complete", "complete batch"):
            if entry.kind == "complete":
                pairs = [(entry.request, entry.response)]
            else:
                pairs = list(zip(entry.request.completions, entry.response.outcomes, strict=True))
            for completion, outcome in pairs:
                if outcome.state == TASK_STATE_SUCCEEDED:
                    yield completion.lease_token

    def every_request_had_one_effect(self) -> Iterator[str]:
        """D3: as many tasks as were asked for, as many revivals as retries were asked for."""
        created: dict[str, int] = defaultdict(int)
        for event in self.log:
            if event.kind == EVENT_KIND_TASK_CREATED:
                created[event.task.labels["asked-by"]] += 1
        for entry in self.journal.of("create", "batch"):
            request = entry.request
            wanted = len(request.tasks) if isinstance(request, task_pb2.BatchCreateTasksRequest) else 1
            if created[request.request_id] != wanted:
                yield f"D3: {request.request_id} made {created[request.request_id]} tasks, not {wanted}"
        retries: dict[str, int] = defaultdict(int)
        for entry in self.journal.of("retry"):
            retries[entry.request.task_id] += 1
        for task_id, history in self.histories.items():
            if history.revivals != retries[task_id]:
                yield f"D3: {task_id} was retried {history.revivals} times, asked for {retries[task_id]} times"

    def gambles_are_all_or_nothing(self, gambles: dict[str, int]) -> Iterator[str]:
        """D2: a batch whose answer never came is there or not."""
        answered = {entry.request.tasks[0].labels["asked-by"] for entry in self.journal.of("gamble")}
        for mark, size in gambles.items():
            there = sum(
                event.kind == EVENT_KIND_TASK_CREATED and event.task.labels["asked-by"] == mark for event in self.log
            )
            if there not in ((size,) if mark in answered else (0, size)):
                yield f"D2: {there} of the {size} tasks of {mark} are there; answered: {mark in answered}"

    async def attempts_agree_with_the_log(self, peer: Peer, task_ids: Iterable[str]) -> list[str]:
        """Each attempt once, in order, none left running; the result that of the last; poached nowhere."""
        faults = []
        for task_id in task_ids:
            answer = await peer.read(peer.tasks.ListTaskAttempts, task_pb2.ListTaskAttemptsRequest(task_id=task_id))
            task = self.tasks[task_id]
            if [attempt.attempt for attempt in answer.attempts] != list(range(1, task.attempt + 1)):
                faults.append(f"T2: {task_id} is at attempt {task.attempt} and has {answer.attempts}")
            if any(attempt.state == ATTEMPT_STATE_RUNNING for attempt in answer.attempts):
                faults.append(f"G2: {task_id} has an attempt that runs: {answer.attempts}")
            read = await peer.read(peer.tasks.GetTask, task_pb2.GetTaskRequest(task_id=task_id))
            own = result_of(task_id, task.attempt) if task.state == TASK_STATE_SUCCEEDED else Value()
            if read.task.result != own:
                faults.append(f"T5: {task_id} has a result that is not its own: {read.task}")
            if POACHED in str(answer) or POACHED in str(read):
                faults.append(f"T5: {task_id} was poached")
        return faults

    async def acknowledged_logs_are_there(self, peer: Peer) -> list[str]:
        """D1 for logs: every line that was acknowledged, in its place, and nothing of a dead token."""
        lines: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
        for entry in self.journal.of("logs"):
            for position, line in enumerate(entry.request.entries, entry.request.offset):
                lines[self._attempts[entry.request.lease_token]][position] = line.text
        faults = []
        for (task_id, attempt), wanted in lines.items():
            if task_id not in self.tasks:
                continue
            request = task_pb2.StreamTaskLogsRequest(task_id=task_id, attempt=attempt)
            found: list[str] = []
            async for message in peer.tasks.StreamTaskLogs(request, metadata=peer.metadata, timeout=30):
                found.extend(entry.text for entry in message.entries)
            if found[: len(wanted)] != [wanted[position] for position in sorted(wanted)] or POACHED in found:
                faults.append(f"D1: the log of {task_id}.{attempt} is {found}, acknowledged was {wanted}")
        return faults

    def watcher_saw_the_log(self, seen: dict[int, bytes], first: int) -> Iterator[str]:
        """W1: every event from `first` on, each as the log holds it now."""
        for event in self.log[first - 1 :]:
            if seen.get(event.revision) != digest(event):
                yield f"W1: revision {event.revision} was seen {'otherwise' if event.revision in seen else 'never'}"

    def sdk_watcher_saw_its_part(self, watcher: SdkWatcher) -> Iterator[str]:
        """W1 with a filter: what matches, in order, once."""
        wanted = [event.revision for event in self.log if watcher.wants(event)]
        if watcher.revisions != wanted:
            yield f"W1: {sorted(set(wanted) ^ set(watcher.revisions))[:5]} differ, or came out of order"
        for event in self.log:
            if event.revision in watcher.seen and watcher.seen[event.revision] != digest(event):
                yield f"W1: revision {event.revision} was seen otherwise"


async def _events(peer: Peer) -> AsyncIterator[Event]:
    token = ""
    while True:
        request = event_pb2.ListEventsRequest(order=LIST_ORDER_OLDEST_FIRST, page_size=_PAGE, page_token=token)
        page = await peer.read(peer.events.ListEvents, request)
        for event in page.events:
            yield event
        token = page.next_page_token
        if not token:
            return


async def _tasks(peer: Peer) -> AsyncIterator[Task]:
    token = ""
    while True:
        request = task_pb2.ListTasksRequest(order=LIST_ORDER_OLDEST_FIRST, page_size=_PAGE, page_token=token)
        page = await peer.read(peer.tasks.ListTasks, request)
        for task in page.tasks:
            yield task
        token = page.next_page_token
        if not token:
            return


async def _agents(peer: Peer) -> AsyncIterator[Agent]:
    page = await peer.read(peer.agents.ListAgents, agent_pb2.ListAgentsRequest(page_size=_PAGE))
    for agent in page.agents:
        yield agent
