"""The commands of the model: how they are drawn, what the engine is asked, and what the oracle is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st
from kapell.v1 import agent_pb2, queue_pb2, task_pb2, worker_pb2
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.lock_pb2 import LOCK_MODE_EXCLUSIVE, LOCK_MODE_SHARED
from kapell.v1.queue_pb2 import ConcurrencyLimit, ConcurrencyStrategy, Queue, StartRate, UpdateQueueRequest
from kapell_server.engine.facts import AgentProcessExited

from tests.model.limits import NEVER, Limit, Rate
from tests.model.lives import HELD
from tests.model.locks import SETS
from tests.model.oracle import Oracle
from tests.support.live_engine import LiveEngine

KINDS = ("red", "blue")
FAILURES = {
    "EXIT": task_pb2.TaskFailure(reason="EXIT_CODE", message="it broke"),
    "FATAL": task_pb2.TaskFailure(reason="EXIT_CODE", message="hopeless", retryable=False),
    "LIMITED": task_pb2.TaskFailure(reason="RATE_LIMITED", message="later"),
}
# A millisecond more than whole seconds, so that no sum of jumps meets a deadline to the nanosecond.
JUMPS = (0.001, 1.001, 3.001, 6.001, 9.001, 11.001, 40.001, 95.001, 650.001)
QUEUES = (*KINDS, "*")
CONCURRENCY_KEYS = ("x", "y")

new_ids = st.sampled_from([f"task_{letter}" for letter in "abcdefghijklmnop"])
places = st.integers(0, 15)
"""A place among the tasks, agents or tokens there are."""
rates = st.sampled_from((None, None, None, (2, 5.0), (1, 3.0)))
strategies = st.sampled_from(("WAIT", "WAIT", "CANCEL_IN_PROGRESS", "CANCEL_NEWEST", "SKIP"))
specs = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "share": st.sampled_from(("", "", "a", "b")),
        "locks": st.sampled_from(SETS),
        "keys": st.lists(st.sampled_from(CONCURRENCY_KEYS), max_size=2, unique=True).map(tuple),
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
    by_token = st.tuples(
        st.sampled_from(("complete", "EXIT", "EXIT", "FATAL", "LIMITED", "release", "progress")), places
    )
    beat = st.tuples(st.just("beat"), places, st.lists(places, max_size=4))
    by_agent = st.tuples(st.sampled_from(("drain", "resume", "terminate", "deregister", "die", "delete_agent")), places)
    repeat = st.tuples(st.just("repeat"), places)
    steer = st.tuples(
        st.just("steer"), st.sampled_from(("pause", "resume", "resume", "drain")), st.sampled_from(QUEUES)
    )
    update_queue = st.tuples(
        st.just("update_queue"),
        st.sampled_from(QUEUES),
        st.fixed_dictionaries({}, optional={"most": st.sampled_from((None, None, 1, 2, 0)), "rate": rates}).filter(
            bool
        ),
    )
    set_limit = st.tuples(
        st.just("set_limit"),
        st.sampled_from(CONCURRENCY_KEYS),
        st.builds(Limit, most=st.sampled_from((None, 0, 1, 2, 2)), strategy=strategies, rate=rates),
    )
    delete_limit = st.tuples(st.just("delete_limit"), st.sampled_from(CONCURRENCY_KEYS))
    by_limit = st.one_of(steer, steer, update_queue, set_limit, set_limit, delete_limit)
    any = st.one_of(
        *(
            create,
            create,
            create,
            create,
            by_task,
            by_token,
            by_token,
            beat,
            update,
            by_agent,
            repeat,
            by_limit,
            by_limit,
        )
    )


class Asking:
    """Turns a command drawn into a request to the engine and a question to the oracle."""

    live: LiveEngine
    oracle: Oracle
    tokens: list[str]
    given: list[tuple[Any, Any]]
    requests: int

    def task_at(self, place: int) -> str:
        """A task there is; now and then one there is not."""
        known = [*self.oracle.tasks, "task_unknown"]
        return known[place % len(known)]

    def agent_at(self, place: int) -> str:
        """The same for agents, those that live first."""
        ranked = sorted(self.oracle.agents, key=lambda name: self.oracle.agents[name].state == "ENDED")
        known = [*ranked[:6], "agent_unknown"]
        return known[place % len(known)]

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
            case (("steer" | "update_queue" | "set_limit" | "delete_limit"), *_):
                return self.ask_of_limits(command)
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
            case (("complete" | "EXIT" | "FATAL" | "LIMITED" | "release" | "progress") as verb, place):
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

    def ask_of_limits(self, command: tuple[Any, ...]) -> tuple[Any, Callable[[], Any]]:
        limits, request_id = self.oracle.limits, self.request_id()
        match command:
            case ("update_queue", name, changes):
                queue = Queue(agent_type=name, max_running=changes.get("most"), start_rate=rate(changes.get("rate")))
                fields = [{"most": "max_running", "rate": "start_rate"}[what] for what in changes]
                mask = FieldMask(paths=fields)
                update = UpdateQueueRequest(queue=queue, update_mask=mask, request_id=request_id)
                return update, lambda: limits.update_queue(name, changes)
            case ("set_limit", key, limit):
                wanted = ConcurrencyLimit(key=key, max_running=limit.most, start_rate=rate(limit.rate))
                wanted.strategy = ConcurrencyStrategy.Value(f"CONCURRENCY_STRATEGY_{limit.strategy}")
                request = queue_pb2.SetConcurrencyLimitRequest(limit=wanted, request_id=request_id)
                return request, lambda: limits.set_limit(key, limit)
            case ("delete_limit", key):
                delete = queue_pb2.DeleteConcurrencyLimitRequest(key=key, request_id=request_id)
                return delete, lambda: limits.delete_limit(key)
            case ("steer", verb, name):
                state = {"pause": "PAUSED", "resume": "OPEN", "drain": "DRAINING"}[verb]
                kind = getattr(queue_pb2, f"{verb.title()}QueueRequest")
                return kind(agent_type=name, request_id=request_id), lambda: limits.steer(name, state)
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
            case "LIMITED":
                limit = worker_pb2.ProviderRateLimit(provider="model", reset_after=Duration(seconds=5))
                limited = worker_pb2.FailTaskRequest(lease_token=token, failure=FAILURES[verb], rate_limited=limit)
                return limited, lambda: oracle.limited(token, 5.0)
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
        spec.fairness_key = drawn["share"]
        spec.concurrency_keys.extend(drawn["keys"])
        for path, alone in drawn["locks"]:
            spec.locks.add(path=path, mode=LOCK_MODE_EXCLUSIVE if alone else LOCK_MODE_SHARED)
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
        rest = {name: drawn[name] for name in ("kind", "share", "keys", "locks", "priority", "most", "pause")}
        return rest | {"limits": limits, "wakes": self.oracle.now + drawn["wakes"]}

    def create_all(self, specs: list[tuple[str, dict[str, Any]]]) -> str | None:
        """All or none: the first that is refused speaks for all."""
        seen = set(self.oracle.tasks)
        for task_id, drawn in specs:
            if task_id in seen:
                return "ID_TAKEN"
            if self.oracle.limits.refuses(drawn["kind"]):
                return "QUEUE_DRAINING"
            seen.add(task_id)
        for task_id, drawn in specs:
            self.oracle.create(task_id, **self.told(drawn))
        return None


def rate(drawn: Rate | None) -> StartRate | None:
    """A rate, as a client writes it."""
    return StartRate(count=drawn[0], period=Duration(seconds=int(drawn[1]))) if drawn is not None else None
