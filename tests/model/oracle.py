"""What tasks and agents must be after each command, told in its own words: shares no code with the engine.

Every method is a command; it returns the reason of its refusal, or None where it is obeyed.
Times are seconds. Which of several equally good tasks an agent gets is left to the engine, and so is
the order in which tasks of one batch join their queues: it says so by ranks and revisions (`rank`, `came`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.model.limits import NEVER, Limit, Limits, Reason, Shares, check_turn
from tests.model.lives import GRACE, HELD, LEASE, OBLIVION, OVER, Agent, Task
from tests.model.locks import clash, comes_before


@dataclass
class Oracle:
    """All of it. `arrivals` are the tasks of a batch to which the strategies of keys apply."""

    now: float = 0.0
    tasks: dict[str, Task] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    shares: Shares = field(default_factory=Shares)
    arrivals: list[Task] = field(default_factory=list)

    def begin(self) -> None:
        """A batch begins by looking at everything whose time has come."""
        self.arrivals.clear()
        self.shares.begin(self.queued())
        for task in self.tasks.values():
            self._look(task)
        for agent_id, agent in self.agents.items():
            silence = self.now - agent.seen
            if agent.state == "TERMINATING" and agent.external and silence >= LEASE:
                self._end_agent(agent_id)
            elif agent.state == "ACTIVE" and silence >= LEASE:
                agent.state = "LOST"
            if agent.state in ("LOST", "DRAINING") and agent.external and silence >= OBLIVION:
                self._end_agent(agent_id, failed=True)

    def overdue(self) -> bool:
        """Whether a task or agent came back into play after its time, which the next look will see."""
        for agent in self.agents.values():
            is_watched = agent.state == "ACTIVE" or (agent.state == "TERMINATING" and agent.external)
            if is_watched and self.now - agent.seen >= LEASE:
                return True
        alive = [task for task in self.tasks.values() if task.state in ("PENDING", "QUEUED", "RUNNING")]
        return any(self.now - task.born >= task.limits["total"] for task in alive)

    def _look(self, task: Task) -> None:
        waited = self.now - task.since
        if task.state in HELD and task.expires <= self.now:
            self._give_up(task)
        elif task.state not in (*OVER, "CANCELLING") and self.now - task.born >= task.limits["total"]:
            self._time_out(task, "TOTAL")
        elif task.state == "PENDING" and task.wakes <= self.now:
            self._queue(task, new=not task.number)
        elif task.state == "QUEUED" and waited >= task.limits["queue"]:
            self._time_out(task, "QUEUE")
        elif task.state == "RUNNING" and waited >= task.limits["run"]:
            self._time_out(task, "RUN")
        elif task.state == "CANCELLING" and waited >= GRACE:
            self._fail(task, "LOST", pause=0)

    def _time_out(self, task: Task, why: str) -> None:
        task.why, task.since = why, self.now
        task.state = "CANCELLING" if task.state == "RUNNING" else "FAILED"

    def _queue(self, task: Task, *, new: bool = False) -> None:
        task.state, task.since, task.holder, task.provider = "QUEUED", self.now, "", ""
        self.shares.join(task)
        if new:
            task.arrived = 0
            self.arrivals.append(task)

    def _fail(self, task: Task, why: str, pause: float | None = None, again: bool = True) -> None:
        """The attempt is over without a result. A wish to cancel wins, then the timeout that stopped it."""
        if task.state == "CANCELLING":
            if not task.why:
                task.state, task.holder = "CANCELLED", ""
                return
            why, again = task.why, task.why != "TOTAL"
        task.why, task.holder, task.since = why, "", self.now
        pause = task.pause * 2 ** (task.tries - 1) if pause is None else pause
        if not again or task.tries >= task.most:
            task.state = "FAILED"
        else:
            self._go_back(task, pause)

    def _go_back(self, task: Task, pause: float = 0) -> None:
        """What an agent no longer has is tried again, unless its total time is over."""
        if self.now - task.born >= task.limits["total"]:
            task.why, task.state, task.holder = "TOTAL", "FAILED", ""
        elif pause:
            task.state, task.wakes = "PENDING", self.now + pause
        else:
            self._queue(task)

    def _give_up(self, task: Task) -> None:
        """Its agent is silent or gone: costs an attempt only if it has ever spoken of it."""
        if task.heard:
            self._fail(task, "LOST", pause=0)
        else:
            self._hand_back(task)

    def _hand_back(self, task: Task) -> None:
        if task.state == "CANCELLING":
            self._fail(task, "LOST")
        else:
            task.tries -= 1
            self._go_back(task)

    def _end_agent(self, agent_id: str, failed: bool = False) -> None:
        """What it held is given up. A death of its own counts as an attempt at all that it was offered."""
        self.agents[agent_id].state = "ENDED"
        for task in self.tasks.values():
            if task.holder == agent_id and task.state in HELD:
                task.heard = task.heard or failed
                self._give_up(task)

    # -- clients -----------------------------------------------------------------------------

    def create(self, task_id: str, **spec: Any) -> str | None:
        if task_id in self.tasks:
            return "ID_TAKEN"
        if self.limits.refuses(spec["kind"]):
            return "QUEUE_DRAINING"
        wakes = spec.pop("wakes")
        task = self.tasks[task_id] = Task(**spec, born=self.now, wakes=wakes, earliest=wakes)
        if wakes <= self.now:
            self._queue(task, new=True)
        return None

    def update(self, task_id: str, priority: int) -> str | None:
        task = self.tasks.get(task_id)
        if task is None:
            return "TASK_NOT_FOUND"
        if task.state in OVER:
            return "TASK_STATE_CONFLICT"
        if task.priority != priority:
            task.priority = priority
            if task.state == "QUEUED":
                self.shares.join(task)
        return None

    def cancel(self, task_id: str) -> str | None:
        task = self.tasks.get(task_id)
        if task is None:
            return "TASK_NOT_FOUND"
        if task.state in ("SUCCEEDED", "FAILED"):
            return "TASK_STATE_CONFLICT"
        if task.state in HELD and not (task.state == "CANCELLING" and not task.why):
            task.state, task.since, task.why = "CANCELLING", self.now, ""
        elif task.state in ("PENDING", "QUEUED"):
            task.state, task.why = "CANCELLED", ""
        return None

    def retry(self, task_id: str) -> str | None:
        task = self.tasks.get(task_id)
        if task is None:
            return "TASK_NOT_FOUND"
        if task.state not in ("FAILED", "CANCELLED"):
            return "TASK_STATE_CONFLICT"
        task.tries, task.why, task.born, task.skipped, task.provider = 0, "", self.now, False, ""
        if task.earliest > self.now:
            task.state, task.wakes = "PENDING", task.earliest
        else:
            self._queue(task, new=True)
        return None

    def delete(self, task_id: str) -> str | None:
        task = self.tasks.get(task_id)
        if task is not None and task.state in OVER:
            del self.tasks[task_id]
            return None
        return self.cancel(task_id)

    # -- limits ------------------------------------------------------------------------------

    def settle_arrivals(self) -> None:
        """The commands of a batch are done: what shall not wait under its keys goes, in the order of its coming."""
        came = list({id(task): task for task in sorted(self.arrivals, key=lambda task: task.came)}.values())
        for number, task in enumerate(came):
            later = came[number + 1 :]
            for key in task.keys:
                there = [one for one in self.tasks.values() if one is not task and key in one.keys]
                there = [one for one in there if one.state != "PENDING" or one.number]
                there = [one for one in there if not any(one is other for other in later)]
                if task.state == "QUEUED":
                    self._settle(task, self.limits.keys.get(key, Limit()), there)
        self.arrivals.clear()

    def _settle(self, task: Task, limit: Limit, there: list[Task]) -> None:
        alive = [one for one in there if one.state in ("RUNNING", "PENDING", "QUEUED")]
        alive.sort(key=lambda one: one.arrived)
        excess = len(alive) + 1 - limit.room
        if excess <= 0:
            return
        if limit.strategy in ("CANCEL_NEWEST", "SKIP"):
            task.state, task.why, task.skipped = "CANCELLED", "", limit.strategy == "SKIP"
        elif limit.strategy == "CANCEL_IN_PROGRESS":
            for one in alive[:excess]:
                one.why, one.since = "", self.now
                one.state = "CANCELLING" if one.state == "RUNNING" else "CANCELLED"

    def held(self) -> dict[str, Task]:
        """The tasks that agents have."""
        return {task_id: task for task_id, task in self.tasks.items() if task.state in HELD}

    def queued(self) -> list[Task]:
        return [task for task in self.tasks.values() if task.state == "QUEUED"]

    def reasons(self, task: Task) -> list[Reason]:
        """The limits that hold a task back; none where it could run."""
        held = self.held()
        of_queue = self.limits.reasons_of_queue(task.kind, list(held.values()), self.now)
        return of_queue + self.limits.reasons_of_keys(task.keys, held, self.now)

    def lock_holders(self, task: Task) -> dict[str, Task]:
        """The tasks whose locks are in the way."""
        return {task_id: one for task_id, one in self.held().items() if one is not task and clash(one, task)}

    def lock_rivals(self, task: Task) -> dict[str, Task]:
        """The tasks that may be due before it at its locks. Whether they are is left to the engine.

        One that wants just the same and was offered it keeps its turn, whoever comes within that second.
        """
        rivals = {name: one for name, one in self.tasks.items() if one.state == "QUEUED" and one is not task}
        return {
            name: one
            for name, one in rivals.items()
            if clash(one, task) and (comes_before(one, task) or (one.kind, one.locks) == (task.kind, task.locks))
        }

    def check_locks(self, task: Task, said: set[str]) -> None:
        """What ExplainTask says of locks: all that hold them, and besides only such as may come before."""
        holders = self.lock_holders(task) if task.state == "QUEUED" else {}
        assert holders.keys() <= said, f"{task} is told of {said}, and not of {holders.keys() - said}"
        more = said - holders.keys()
        assert not more or (task.state == "QUEUED" and more <= self.lock_rivals(task).keys()), f"{task} told of {more}"

    def explain(self, task: Task, asking: set[str], *, locked: bool, position: int) -> tuple[list[Reason], range]:
        """Why a task does not run, and its place. `asking` are agents with an open poll; `locked` and `position` are
        what the engine says."""
        match task.state:
            case "PENDING":
                if task.provider:
                    return [("PROVIDER_RATE_LIMIT", frozenset({task.provider}), task.wakes)], range(1)
                return [("RETRY_BACKOFF" if task.number else "NOT_BEFORE", frozenset(), task.wakes)], range(1)
            case "CANCELLING":
                return [("AGENT_LETTING_GO", frozenset({task.holder}), NEVER)], range(1)
            case "QUEUED":
                agents, reasons = self._without_agents(task.kind, asking), self.reasons(task)
            case _:
                return [], range(1)
        if reasons or locked:
            return agents + reasons, range(1)
        rank = -task.priority, task.rank, task.came
        rivals = [one for one in self.queued() if one.kind == task.kind and not self.reasons(one)]
        ahead = [one for one in rivals if (-one.priority, one.rank, one.came) < rank and not self.lock_holders(one)]
        least = sum(not self.lock_rivals(one) for one in ahead)
        if position > 1 and not any(kind == "NO_AGENT" for kind, _, _ in agents):
            agents.append(("TURN", frozenset(), NEVER))
        return agents, range(least + 1, len(ahead) + 2)

    def _without_agents(self, kind: str, asking: set[str]) -> list[Reason]:
        serving = {name for name, agent in self.agents.items() if agent.state == "ACTIVE" and kind in agent.kinds}
        free = {name for name in serving if self.free(name)}
        if not serving:
            return [("NO_AGENT", frozenset(), NEVER)]
        if not free:
            return [("AGENTS_BUSY", frozenset(serving), NEVER)]
        return [] if free & asking else [("AGENT_NOT_ASKING", frozenset(free), NEVER)]

    # -- workers -----------------------------------------------------------------------------

    def _by_token(self, token: str) -> Task | None:
        return next((task for task in self.tasks.values() if task.token == token), None)

    def _heard(self, token: str) -> Task | None:
        """The task whose live attempt the token proves, which renews it."""
        task = self._by_token(token)
        if task is None or task.state not in HELD:
            return None
        task.heard, task.expires = True, self.now + LEASE
        return task

    def progress(self, token: str) -> str | None:
        return None if self._heard(token) else "LEASE_LOST"

    def complete(self, token: str) -> str | None:
        task = self._heard(token)
        if task is not None:
            cancelled = task.state == "CANCELLING" and not task.why
            task.state, task.holder, task.why = ("CANCELLED" if cancelled else "SUCCEEDED"), "", ""
            return None
        known = self._by_token(token)
        return None if known is not None and known.state in ("SUCCEEDED", "CANCELLED") else "LEASE_LOST"

    def fail(self, token: str, why: str) -> str | None:
        task = self._heard(token)
        if task is not None:
            self._fail(task, why, again=why != "FATAL")
            return None
        known = self._by_token(token)
        return None if known is not None and known.why == why else "LEASE_LOST"

    def limited(self, token: str, seconds: float) -> str | None:
        """The provider of its model takes no calls: it waits, and no attempt is lost."""
        task = self._by_token(token)
        if task is None or task.state != "RUNNING":
            return self.fail(token, "LIMITED")
        self._heard(token)
        task.tries -= 1
        task.why, task.holder, task.since = "LIMITED", "", self.now
        task.state, task.wakes, task.provider = "PENDING", self.now + seconds, "model"
        return None

    def release(self, token: str) -> str | None:
        task = self._heard(token)
        if task is None:
            return "LEASE_LOST"
        self._hand_back(task)
        return None

    def beat(self, agent_id: str, tokens: list[str]) -> list[str] | str:
        """What is to be done about each lease: CONTINUE, CANCEL or LOST."""
        agent = self.agents.get(agent_id)
        if agent is None:
            return "AGENT_NOT_FOUND"
        if agent.state != "ENDED":
            self._see(agent)
        told = []
        for token in tokens:
            task = self._by_token(token)
            live = task is not None and task.state in HELD and task.holder == agent_id
            if live:
                self._heard(token)
            told.append("LOST" if not live or task is None else "CANCEL" if task.state == "CANCELLING" else "CONTINUE")
        return told

    def _see(self, agent: Agent) -> None:
        agent.seen = self.now
        agent.state = "ACTIVE" if agent.state == "LOST" else agent.state

    def poll(self, agent_id: str) -> str | None:
        agent = self.agents.get(agent_id)
        if agent is None:
            return "AGENT_NOT_FOUND"
        if agent.state not in ("ACTIVE", "DRAINING", "LOST"):
            return "AGENT_STATE_CONFLICT"
        self._see(agent)
        return None

    def free(self, agent_id: str) -> int:
        """Tasks that may be given to the agent now."""
        agent = self.agents.get(agent_id)
        if agent is None or agent.state != "ACTIVE":
            return 0
        return agent.slots - sum(task.holder == agent_id and task.state in HELD for task in self.tasks.values())

    def fitting(self, agent_id: str) -> list[Task]:
        """The tasks that could run on an agent like this one, and do not wait for others at their locks."""
        kinds = self.agents[agent_id].kinds
        fitting = [task for task in self.queued() if task.kind in kinds and not self.reasons(task)]
        return [task for task in fitting if not self.lock_holders(task) and not self.lock_rivals(task)]

    def surely_fitting(self, agent_id: str, given: Task) -> list[Task]:
        """Those that fit, without such as may stand behind one of their kind that perhaps waits for locks."""
        fitting = self.fitting(agent_id)
        perhaps = [one for one in self.queued() if one.locks and not self.reasons(one) and not self.lock_holders(one)]
        perhaps = [one for one in perhaps if not any(one is other for other in (*fitting, given))]
        sure = [one for one in fitting if not any(may.kind == one.kind and not one.is_ahead_of(may) for may in perhaps)]
        return sure if any(one is given for one in sure) else [*sure, given]

    def give(self, task_id: str, agent_id: str, token: str) -> None:
        """The engine has given the task away."""
        task = self.tasks[task_id]
        assert task.state == "QUEUED", f"{task_id} was given away while {task.state}"
        assert self.free(agent_id) > 0, f"{agent_id} was given more than it has slots"
        agent = self.agents[agent_id]
        assert task.kind in agent.kinds
        assert not self.reasons(task), f"{task_id} was given away against {self.reasons(task)} (T6)"
        assert not self.lock_holders(task), f"{task_id} was given away beside {self.lock_holders(task)} (L1)"
        ready = self.surely_fitting(agent_id, task)
        agent.turns += 1
        check_turn(task, ready, agent.turns, self.now)
        self.shares.serve(task, ready)
        self.limits.note_start(task, self.now)
        task.state, task.holder, task.token, task.since = "RUNNING", agent_id, token, self.now
        task.tries, task.number = task.tries + 1, task.number + 1
        task.expires, task.heard = self.now + LEASE, False

    # -- agents ------------------------------------------------------------------------------

    def arrive(self, agent_id: str, kinds: tuple[str, ...], slots: int, external: bool) -> None:
        self.agents[agent_id] = Agent(kinds, slots, external, self.now)

    def drain(self, agent_id: str, to: str = "DRAINING") -> str | None:
        agent = self.agents.get(agent_id)
        if agent is None:
            return "AGENT_NOT_FOUND"
        if agent.state not in ("ACTIVE", "DRAINING"):
            return "AGENT_STATE_CONFLICT"
        agent.state = to
        return None

    def resume(self, agent_id: str) -> str | None:
        return self.drain(agent_id, "ACTIVE")

    def terminate(self, agent_id: str) -> str | None:
        agent = self.agents.get(agent_id)
        if agent is None:
            return "AGENT_NOT_FOUND"
        if agent.external and agent.state == "LOST":
            self._end_agent(agent_id)
        elif agent.state != "ENDED":
            agent.state = "TERMINATING"
        return None

    def deregister(self, agent_id: str) -> str | None:
        agent = self.agents.get(agent_id)
        if agent is None:
            return "AGENT_NOT_FOUND"
        if agent.external and agent.state != "ENDED":
            self._end_agent(agent_id)
        elif agent.state != "ENDED":
            agent.state = "TERMINATING"
        return None

    def die(self, agent_id: str) -> str | None:
        if agent_id in self.agents and self.agents[agent_id].state != "ENDED":
            self._end_agent(agent_id, failed=self.agents[agent_id].state != "TERMINATING")
        return None

    def delete_agent(self, agent_id: str) -> str | None:
        if agent_id not in self.agents:
            return "AGENT_NOT_FOUND"
        if self.agents[agent_id].state != "ENDED":
            return "AGENT_STATE_CONFLICT"
        del self.agents[agent_id]
        return None

    def restart(self) -> None:
        """Every lease and every agent gets one full duration of grace."""
        for task in self.tasks.values():
            task.heard, task.expires = True, self.now + LEASE
        for agent in self.agents.values():
            agent.seen, agent.turns = self.now, 0
        self.shares.restart(self.queued())
