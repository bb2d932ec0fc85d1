"""Random lives of tasks and agents on the real engine and database, held against the oracle at every step.

A step is one batch: one command, or several that one batch decides. After each, every answer and
every task and agent is what the oracle says (T3 to T7), and the log is gapless, holds only
published transitions and replays to the state (W1, W2, T1, T2).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from kapell.v1 import agent_pb2, task_pb2, worker_pb2
from kapell.v1.agent_pb2 import AgentState, CommandRuntime, ListAgentsRequest, SpawnAgentRequest
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.event_pb2 import Event
from kapell.v1.task_pb2 import TaskState
from kapell.v1.watch_pb2 import EVENT_KIND_AGENT_DELETED, EVENT_KIND_TASK_DELETED
from kapell.v1.worker_pb2 import LeaseDirective, LeaseTasksRequest, RegisterWorkerRequest
from kapell_server.domain.errors import KapellError
from kapell_server.engine.facts import AgentProcessExited, SpawnCommand

from tests.model.oracle import HELD, NEVER, OVER, Oracle, Task
from tests.support.live_engine import LiveEngine, settled

KINDS = ("red", "blue")
FAILURES = {
    "EXIT": task_pb2.TaskFailure(reason="EXIT_CODE", message="it broke"),
    "FATAL": task_pb2.TaskFailure(reason="EXIT_CODE", message="hopeless", retryable=False),
}
# A millisecond more than whole seconds, so that no sum of jumps meets a deadline to the nanosecond.
JUMPS = (0.001, 1.001, 3.001, 6.001, 9.001, 11.001, 40.001, 95.001, 650.001)
ENDS = ("complete", "EXIT", "FATAL", "release", "progress", "cancel", "die")
TRANSITIONS = {
    "PENDING": "QUEUED FAILED CANCELLED",
    "QUEUED": "RUNNING FAILED CANCELLED",
    "RUNNING": "PENDING QUEUED CANCELLING SUCCEEDED FAILED CANCELLED",
    "CANCELLING": "PENDING QUEUED SUCCEEDED FAILED CANCELLED",
    "SUCCEEDED": "",
    "FAILED": "QUEUED",
    "CANCELLED": "QUEUED",
}

new_ids = st.sampled_from([f"task_{letter}" for letter in "abcdefghijklmnop"])
places = st.integers(0, 15)
"""A place among the tasks, agents or tokens there are."""
specs = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "priority": st.sampled_from((1, 500, 500, 900)),
        "most": st.integers(1, 3),
        "pause": st.sampled_from((0, 2)),
        "wakes": st.sampled_from((0, 0, 5)),
        "queue": st.sampled_from((NEVER, NEVER, NEVER, NEVER, 8, 60)),
        "run": st.sampled_from((NEVER, NEVER, 5, 30)),
        "total": st.sampled_from((NEVER, NEVER, NEVER, NEVER, 12, 100)),
    }
)


class Commands:
    """The commands a batch may consist of, as (what to ask, what the oracle says)."""

    create = st.tuples(st.just("create"), new_ids, specs)
    update = st.tuples(st.just("update"), places, st.sampled_from((1, 500, 900)))
    by_task = st.tuples(st.sampled_from(("cancel", "retry", "delete")), places)
    by_token = st.tuples(st.sampled_from(("complete", "EXIT", "EXIT", "FATAL", "release", "progress")), places)
    beat = st.tuples(st.just("beat"), places, st.lists(places, max_size=4))
    by_agent = st.tuples(st.sampled_from(("drain", "resume", "terminate", "deregister", "die", "delete_agent")), places)
    repeat = st.tuples(st.just("repeat"), places)
    any = st.one_of(create, create, create, by_task, by_token, by_token, beat, update, by_agent, repeat)


class Machine(RuleBasedStateMachine):
    """One server's life. `url` and `prepare` say on which database."""

    url = ""
    prepare: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.prepare()
        self.runner = asyncio.Runner()
        self.live = LiveEngine(self.url, Path(self.directory.name))
        self.runner.run(self.live.start())
        self.oracle = Oracle()
        self.tokens: list[str] = []
        self.given: list[tuple[Any, Any]] = []
        self.polls: list[tuple[str, asyncio.Task[Any]]] = []
        self.requests = 0
        self.cursor = 0
        self.replayed: dict[str, Any] = {}

    @initialize(specs=st.lists(specs, min_size=2, max_size=5), slots=st.integers(1, 3))
    def begin_with_work(self, specs: list[dict[str, Any]], slots: int) -> None:
        self.arrive(list(KINDS), slots, True)
        self.batch([("create", f"task_{letter}", spec) for letter, spec in zip("abcde", specs, strict=False)])
        self.poll(0, 2, False)

    # -- steps -------------------------------------------------------------------------------

    @rule(command=Commands.any)
    def one_command(self, command: tuple[Any, ...]) -> None:
        self.batch([command])

    @rule(commands=st.lists(Commands.any, min_size=2, max_size=6))
    def several_commands_in_one_batch(self, commands: list[tuple[Any, ...]]) -> None:
        self.batch(commands)

    @rule(specs=st.lists(st.tuples(new_ids, specs), min_size=2, max_size=4))
    def create_together(self, specs: list[tuple[str, dict[str, Any]]]) -> None:
        self.batch([("create_all", specs)])

    @rule(seconds=st.sampled_from(JUMPS))
    def time_passes(self, seconds: float) -> None:
        self.pass_time(seconds)
        self.batch([])

    @rule(rounds=st.integers(1, 5))
    def agents_keep_working(self, rounds: int) -> None:
        """Time passes while every agent sends its heartbeats for all that it holds."""
        for _ in range(rounds):
            self.pass_time(3.001)
            held = [task for task in self.oracle.tasks.values() if task.state in HELD]
            self.batch(
                [
                    ("keep", name, [task.token for task in held if task.holder == name])
                    for name, agent in self.oracle.agents.items()
                    if agent.state != "ENDED"
                ]
            )

    @rule(kinds=st.sampled_from((["red"], ["blue"], ["red", "blue"])), slots=st.integers(1, 3), external=st.booleans())
    def arrive(self, kinds: list[str], slots: int, external: bool) -> None:
        """An agent registers, by itself or after it was spawned."""
        if sum(agent.state != "ENDED" for agent in self.oracle.agents.values()) < 4:
            self.runner.run(self.let_arrive(kinds, slots, external))

    @rule(agent=places, most=st.integers(1, 3), patient=st.booleans())
    def poll(self, agent: int, most: int, patient: bool) -> None:
        self.runner.run(self.take(self.agent_at(agent), most, patient))

    @rule(agent=places, most=st.integers(1, 3))
    def poll_now(self, agent: int, most: int) -> None:
        self.runner.run(self.take(self.agent_at(agent), most, False))

    @rule(verbs=st.lists(st.sampled_from(ENDS), max_size=6))
    def a_round_of_work(self, verbs: list[str]) -> None:
        """Every agent takes what it can, and then, in one batch, something becomes of what is held."""
        for name in [name for name in self.oracle.agents if self.oracle.free(name)]:
            self.runner.run(self.take(name, 3, False))
        held = [task_id for task_id, task in self.oracle.tasks.items() if task.state in HELD]
        self.batch([("end", verb, task_id) for verb, task_id in zip(verbs, held, strict=False)])

    @precondition(lambda self: self.cursor > 10)
    @rule(orderly=st.booleans())
    def restart(self, orderly: bool) -> None:
        self.runner.run(self.begin_again(orderly))

    # -- doing -------------------------------------------------------------------------------

    def task_at(self, place: int) -> str:
        """A task there is; now and then one there is not."""
        known = [*self.oracle.tasks, "task_unknown"]
        return known[place % len(known)]

    def agent_at(self, place: int) -> str:
        """The same for agents, those that live first."""
        ranked = sorted(self.oracle.agents, key=lambda name: self.oracle.agents[name].state == "ENDED")
        known = [*ranked[:6], "agent_unknown"]
        return known[place % len(known)]

    def pass_time(self, seconds: float) -> None:
        self.live.clock.advance(seconds)
        self.oracle.now += seconds

    def batch(self, commands: list[tuple[Any, ...]]) -> None:
        self.runner.run(self.decide(commands))

    async def decide(self, commands: list[tuple[Any, ...]]) -> None:
        """One batch on engine and oracle, their answers compared."""
        self.pass_time(1e-6)
        asked = [self.ask(command) for command in commands]
        answers = await self.live.together(*[request for request, _ in asked])
        if not asked:
            await self.live.pulse()
        self.oracle.begin()
        for command, (request, expected), answer in zip(commands, asked, answers, strict=True):
            self.compare(command, request, expected(), answer)
        await self.settle()

    def ask(self, command: tuple[Any, ...]) -> tuple[Any, Callable[[], Any]]:
        """The request of a command, and how to hear the oracle on it."""
        oracle = self.oracle
        request: Any
        match command:
            case ("create", task_id, spec):
                request = task_pb2.CreateTaskRequest(task=self.spec(task_id, spec), request_id=self.request_id())
                return request, lambda: oracle.create(task_id, **self.told(spec))
            case ("create_all", specs):
                request = task_pb2.BatchCreateTasksRequest(request_id=self.request_id())
                request.tasks.extend(self.spec(task_id, spec) for task_id, spec in specs)
                return request, lambda: self.create_all(specs)
            case ("update", place, priority):
                task_id = self.task_at(place)
                request = task_pb2.UpdateTaskRequest(
                    task=task_pb2.Task(task_id=task_id, priority=priority),
                    update_mask=FieldMask(paths=["priority"]),
                    request_id=self.request_id(),
                )
                return request, lambda: oracle.update(task_id, priority)
            case (("cancel" | "retry" | "delete") as verb, place):
                task_id = self.task_at(place)
                kind = getattr(task_pb2, f"{verb.title()}TaskRequest")
                return kind(task_id=task_id, request_id=self.request_id()), lambda: getattr(oracle, verb)(task_id)
            case ("beat", place, chosen):
                return self.ask(("keep", self.agent_at(place), list(dict.fromkeys(map(self.token, chosen)))))
            case ("keep", name, named):
                beats = [worker_pb2.LeaseBeat(lease_token=token) for token in named]
                return worker_pb2.HeartbeatRequest(agent_id=name, leases=beats), lambda: oracle.beat(name, named)
            case ("repeat", index):
                if not self.given:
                    return self.ask(("cancel", 0))
                request, first = self.given[index % len(self.given)]
                return request, lambda: first
            case (("complete" | "EXIT" | "FATAL" | "release" | "progress") as verb, place):
                return self.ask_by_token(verb, self.token(place))
            case ("end", "cancel", task_id):
                return self.ask(("cancel", list(oracle.tasks).index(task_id)))
            case ("end", "die", task_id):
                return self.ask_of_agent("die", oracle.tasks[task_id].holder)
            case ("end", verb, task_id):
                return self.ask_by_token(verb, oracle.tasks[task_id].token)
            case (verb, place):
                return self.ask_of_agent(verb, self.agent_at(place))
        raise AssertionError(command)

    def ask_by_token(self, verb: str, token: str) -> tuple[Any, Callable[[], Any]]:
        oracle = self.oracle
        match verb:
            case "complete":
                return worker_pb2.CompleteTaskRequest(lease_token=token), lambda: oracle.complete(token)
            case "release":
                return worker_pb2.ReleaseTaskRequest(lease_token=token), lambda: oracle.release(token)
            case "progress":
                self.requests += 1
                progress = task_pb2.TaskProgress(step=str(self.requests))
                report = worker_pb2.ReportProgressRequest(lease_token=token, progress=progress)
                return report, lambda: oracle.progress(token)
            case _:
                failure = worker_pb2.FailTaskRequest(lease_token=token, failure=FAILURES[verb])
                return failure, lambda: oracle.fail(token, verb)

    def ask_of_agent(self, verb: str, name: str) -> tuple[Any, Callable[[], Any]]:
        known = self.oracle.agents.get(name)
        if verb == "die" and (known is None or known.external):
            verb = "deregister"
        said = getattr(self.oracle, verb)
        match verb:
            case "die":
                return AgentProcessExited(name, ProcessExit(code=1), "died"), lambda: said(name)
            case "deregister":
                return worker_pb2.DeregisterRequest(agent_id=name), lambda: said(name)
            case "delete_agent":
                return agent_pb2.DeleteAgentRequest(agent_id=name), lambda: said(name)
            case _:
                return getattr(agent_pb2, f"{verb.title()}AgentRequest")(agent_id=name), lambda: said(name)

    def compare(self, command: tuple[Any, ...], request: Any, expected: Any, answer: Any) -> None:
        """The engine's answer is the oracle's, in reason, state or directive."""
        refused = answer.reason_name if isinstance(answer, KapellError) else None
        if isinstance(answer, Exception) and refused is None:
            raise answer
        if command[0] == "repeat" and self.given:
            assert answer.replayed, f"{command} was done again"
            answer.ClearField("replayed")
            assert answer == expected
            return
        if isinstance(expected, list):
            assert [LeaseDirective.Name(one.directive)[16:] for one in answer.leases] == expected, command
            return
        assert refused == expected, f"{command}: {refused} and not {expected}"
        if refused is None and getattr(request, "request_id", None):
            self.given.append((request, answer))

    # -- what commands are made of -----------------------------------------------------------

    def request_id(self) -> str:
        self.requests += 1
        return f"request-{self.requests}"

    def token(self, place: int) -> str:
        """A token of a lease that lives; or, for the later places, of an attempt long gone."""
        live = [task.token for task in self.oracle.tasks.values() if task.state in HELD]
        known = live if live and place < 10 else [*self.tokens[-6:], "damaged"]
        return known[place % len(known)]

    def spec(self, task_id: str, drawn: dict[str, Any]) -> task_pb2.TaskSpec:
        """The spec drawn, as a client writes it."""
        spec = task_pb2.TaskSpec(task_id=task_id, agent_type=drawn["kind"], priority=drawn["priority"])
        spec.retry_policy.max_attempts = drawn["most"]
        spec.retry_policy.initial_backoff.CopyFrom(Duration(seconds=drawn["pause"]))
        spec.retry_policy.jitter = 0
        for limit in ("queue", "run", "total"):
            if drawn[limit] != NEVER:
                getattr(spec.timeouts, f"{limit}_timeout").seconds = drawn[limit]
        if drawn["wakes"]:
            spec.not_before_time.CopyFrom(Timestamp())
            spec.not_before_time.FromNanoseconds(self.live.clock.now_ns() + drawn["wakes"] * 1_000_000_000)
        return spec

    def told(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """The spec drawn, as the oracle takes it."""
        limits = {limit: drawn[limit] for limit in ("queue", "run", "total")}
        rest = {name: drawn[name] for name in ("kind", "priority", "most", "pause")}
        return rest | {"limits": limits, "wakes": self.oracle.now + drawn["wakes"]}

    def create_all(self, specs: list[tuple[str, dict[str, Any]]]) -> str | None:
        """All or none."""
        ids = [task_id for task_id, _ in specs]
        if len(set(ids)) < len(ids) or any(task_id in self.oracle.tasks for task_id in ids):
            return "ID_TAKEN"
        for task_id, drawn in specs:
            self.oracle.create(task_id, **self.told(drawn))
        return None

    async def let_arrive(self, kinds: list[str], slots: int, external: bool) -> None:
        await self.decide([])
        self.requests += 1
        key = f"process-{self.requests}"
        if external:
            request = RegisterWorkerRequest(instance_key=key, agent_types=kinds, slots=slots)
            name = (await self.live.call(request)).agent.agent_id
        else:
            spec = agent_pb2.AgentSpec(agent_types=kinds, slots=slots, command=CommandRuntime(argv=["true"]))
            name = (await self.live.call(SpawnCommand(SpawnAgentRequest(spec=spec), "", spec))).agent.agent_id
            ticket = self.live.keyring.authenticate(self.live.keyring.ticket(name))
            assert ticket is not None
            await self.live.call(RegisterWorkerRequest(instance_key=key), ticket)
        self.oracle.arrive(name, tuple(kinds), slots, external)
        await self.settle()

    async def take(self, name: str, most: int, patient: bool) -> None:
        """A LeaseTasks call, which waits on if it is patient and there is nothing."""
        self.pass_time(1e-6)
        wait = Duration(seconds=60 if patient else 0)
        call = self.live.call(LeaseTasksRequest(agent_id=name, max_tasks=most, wait=wait))
        poll = await settled(call)
        if patient:
            await self.live.pulse()
        else:
            await asyncio.wait([poll])
        self.oracle.begin()
        expected = self.oracle.poll(name)
        if expected is not None:
            await asyncio.wait([poll])
            error = poll.exception()
            assert isinstance(error, KapellError)
            assert error.reason_name == expected
        else:
            self.polls.append((name, poll))
        await self.settle()

    async def begin_again(self, orderly: bool) -> None:
        for _, poll in self.polls:
            poll.cancel()
        if self.polls:
            await asyncio.wait([poll for _, poll in self.polls])
        self.polls.clear()
        await self.decide([])
        await (self.live.restart() if orderly else self.live.crash())
        self.oracle.restart()
        await self.settle()

    # -- checking ----------------------------------------------------------------------------

    async def settle(self) -> None:
        """What dispatch has given away, and then that everything is as it should be."""
        await self.collect_offers()
        if self.oracle.overdue():
            await self.live.pulse()
            self.oracle.begin()
            await self.collect_offers()
        await self.check_log()
        await self.check_state()

    async def collect_offers(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)  # callers that were answered with this batch take their answers
        waiting, given = [], []
        for name, poll in self.polls:
            if not poll.done():
                waiting.append((name, poll))
                continue
            for offer in poll.result().offers:
                task = self.oracle.tasks[offer.task.task_id]
                given.append((name, (-task.priority, task.step)))
                self.oracle.give(offer.task.task_id, name, offer.lease_token)
                assert offer.attempt == task.number
                self.tokens.append(offer.lease_token)
        for name, rank in given:
            for other in self.oracle.fitting(name):
                assert rank <= (-other.priority, other.step), f"{name} was given a task before a better one (T7)"
        for name, _ in waiting:
            idle = self.oracle.free(name) and self.oracle.fitting(name)
            assert not idle, f"{name} waits while {idle} waits for it (T6)"
        self.polls = waiting

    async def check_log(self) -> None:
        """W1: no gap, and the ring says the same. T1: published transitions. Replays into `replayed`."""
        records = await self.live.engine.reads.events_after(self.cursor, 10_000)
        assert [record.revision for record in records] == [*range(self.cursor + 1, self.live.engine.revision + 1)]
        recent = self.live.engine.ring.after(self.cursor, 10_000)
        assert recent is None or [one.data for one in recent] == [record.data for record in records]
        for record in records:
            event = Event.FromString(record.data)
            resource = event.task if event.HasField("task") else event.agent
            before = self.replayed.get(record.resource_id)
            if event.HasField("task") and before is not None and before.state != resource.state:
                assert event.previous_task_state == before.state
                assert state_of(resource) in TRANSITIONS[state_of(before)].split(), "T1"
            if record.kind in (EVENT_KIND_TASK_DELETED, EVENT_KIND_AGENT_DELETED):
                assert before is not None
                del self.replayed[record.resource_id]
            else:
                self.replayed[record.resource_id] = resource
            self.cursor = record.revision

    async def check_state(self) -> None:
        """W2: the events are the state. And the state is the oracle's."""
        listed = task_pb2.ListTasksResponse.FromString(
            await self.live.engine.reads.list_tasks(task_pb2.ListTasksRequest(page_size=1000))
        )
        found = {task.task_id: task for task in listed.tasks}
        assert found == {key: one for key, one in self.replayed.items() if key.startswith("task_")}, "W2"
        for key in {*found, *self.oracle.tasks}:
            seen = seen_task(found[key]) if key in found else None
            expected = expected_task(self.oracle.tasks[key]) if key in self.oracle.tasks else None
            assert seen == expected, f"{key}: {seen} and not {expected}"
        answer = await self.live.engine.reads.list_agents(ListAgentsRequest(page_size=1000))
        agents = {agent.agent_id: agent for agent in answer.agents}
        assert {key: ended(AgentState.Name(one.state)[12:]) for key, one in agents.items()} == {
            key: one.state for key, one in self.oracle.agents.items()
        }
        for key, agent in agents.items():
            held = [task.task_id for task in found.values() if task.lease.agent_id == key]
            assert sorted(agent.current_task_ids) == sorted(held)
            assert agent.slots_used == len(held) <= agent.slots_total
            agent.ClearField("last_heartbeat_time")
            assert agent == self.replayed[key], "W2"

    def teardown(self) -> None:
        self.runner.run(self.finish())
        self.runner.close()
        self.directory.cleanup()

    async def finish(self) -> None:
        """Ends what waits, and looks at all attempts (T2, T4)."""
        for _, poll in self.polls:
            poll.cancel()
        if self.polls:
            await asyncio.wait([poll for _, poll in self.polls])
        for task_id, task in self.oracle.tasks.items():
            attempts = (await self.live.engine.reads.list_attempts(task_id)).attempts
            assert [one.attempt for one in attempts] == [*range(1, task.number + 1)]
            running = [one.attempt for one in attempts if one.state == task_pb2.ATTEMPT_STATE_RUNNING]
            assert running == ([task.number] if task.holder and task.state not in OVER else []), "T2"
        assert self.live.crashes == []
        await self.live.stop()


def state_of(task: Any) -> str:
    return TaskState.Name(task.state)[11:]


def ended(state: str) -> str:
    return "ENDED" if state in ("TERMINATED", "FAILED") else state


def seen_task(task: Any) -> tuple[Any, ...]:
    """What the engine and the oracle must agree on."""
    return state_of(task), task.priority, task.attempts_used, task.attempt, task.lease.agent_id


def expected_task(task: Task) -> tuple[Any, ...]:
    assert task.tries <= task.most, "T4"
    holder = task.holder if task.state in ("RUNNING", "CANCELLING") else ""
    return task.state, task.priority, task.tries, task.number, holder
