"""Random lives under several budgets that pause: no pause without a reason, none that nobody can end, books that agree.

The auditor reads the committed rows after every step, and asks the tallies only where it compares them with those.
"""

from __future__ import annotations

from random import Random

from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE
from kapell.v1.approval_pb2 import CancelApprovalRequest
from kapell.v1.budget_pb2 import (
    BUDGET_ACTION_CANCEL,
    BUDGET_ACTION_REQUIRE_APPROVAL,
    BUDGET_ACTION_STOP_ADMISSION,
    Budget,
    BudgetScope,
    BudgetWindow,
    DeleteBudgetRequest,
)
from kapell.v1.task_pb2 import (
    ATTEMPT_STATE_RUNNING,
    ATTEMPT_WAIT_KIND_BUDGET,
    TASK_STATE_CANCELLING,
    TASK_STATE_RUNNING,
    AttemptWait,
    Task,
)
from kapell.v1.worker_pb2 import HeartbeatRequest, LeaseBeat
from kapell_server.domain.budgets.amounts import units_of

from tests.domain.asking import decide
from tests.domain.spending import CENT, Purse, cents, costing, thresholds

ACTIONS = (BUDGET_ACTION_REQUIRE_APPROVAL, BUDGET_ACTION_STOP_ADMISSION, BUDGET_ACTION_CANCEL)
DAY = 86_400


class Life:
    """Tasks, usage, answers, limits and time, drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.world = world = Purse(lease_duration=3.0 * DAY)
        self.used = 0
        """Cents that the latest step has recorded: what was under way is never refused."""
        self.before: dict[str, tuple[int, int]] = {}
        """What a budget allowed after the step before, and by how much more was spent and reserved (B1)."""
        self.agents = [world.register(key=f"process-{number}", slots=2) for number in range(3)]
        scopes = [BudgetScope(all=True), BudgetScope(label="team=red"), BudgetScope(agent_id=self.agents[0])]
        for number, scope in enumerate(scopes):
            window = {"window": BudgetWindow(rolling=Duration(seconds=3600))} if random.random() < 0.4 else {}
            said = thresholds(at_80=BUDGET_ACTION_STOP_ADMISSION) if random.random() < 0.2 else []
            said += thresholds(at_100=random.choice(ACTIONS))
            limit = cents(random.randint(10, 60))
            world.budget(limit, budget_id=f"budget_{number}", scope=scope, thresholds=said, **window)

    def live(self, steps: int) -> None:
        does = {
            self.create: 5,
            self.poll: 5,
            self.use: 8,
            self.wait: 5,
            self.end: 3,
            self.answer: 3,
            self.withdraw: 1,
            self.limit: 1,
            self.pass_time: 1,
            self.delete: 0.1,
        }
        for _ in range(steps):
            [step] = self.random.choices(list(does), list(does.values()))
            self.used = 0
            step()
            self.audit()

    def tasks(self, *states: int) -> list[Task]:
        return [task for task in self.world.rows.tasks.values() if task.state in states]

    def one(self, *states: int) -> Task | None:
        found = self.tasks(*states)
        return self.random.choice(found) if found else None

    def create(self) -> None:
        random = self.random
        named = random.choice(["", "", *self.world.state.budgets.tallies])
        labels = random.choice([{}, {"team": "red"}])
        self.world.create(estimate=costing(random.randint(1, 8)), budget_id=named, labels=labels)

    def poll(self) -> None:
        agent_id = self.random.choice(self.agents)
        if self.world.agent(agent_id).state == AGENT_STATE_ACTIVE:  # Who is silent for too long has failed.
            self.world.poll(agent_id)

    def use(self) -> None:
        if (task := self.one(TASK_STATE_RUNNING)) is not None:
            self.used = self.random.randint(1, 4)
            self.world.use(task.task_id, self.used, attempt=task.attempt)

    def wait(self) -> None:
        """An agent that heeds what it is told says that it waits; or that it does not any more."""
        if (task := self.one(TASK_STATE_RUNNING)) is not None:
            beat = LeaseBeat(lease_token=self.world.token(task.task_id))
            if task.HasField("pause"):
                beat.waiting.CopyFrom(AttemptWait(kind=ATTEMPT_WAIT_KIND_BUDGET))
            self.world.do(HeartbeatRequest(agent_id=task.lease.agent_id, leases=[beat]))

    def end(self) -> None:
        task = self.one(TASK_STATE_RUNNING, TASK_STATE_CANCELLING)
        if task is not None:
            end = self.random.choice([self.world.complete, self.world.fail, self.world.release, self.world.cancel])
            end(task.task_id)

    def answer(self) -> None:
        if waiting := list(self.world.state.approvals.pending()):
            decide(self.world, self.random.choice(waiting), self.random.choice(["approve", "deny"]))

    def withdraw(self) -> None:
        if waiting := list(self.world.state.approvals.pending()):
            self.world.do(CancelApprovalRequest(approval_id=self.random.choice(waiting).approval_id))

    def limit(self) -> None:
        if budgets := list(self.world.state.budgets.tallies):
            budget_id = self.random.choice(budgets)
            if self.random.random() < 0.5:
                self.world.set_limit(cents(self.random.randint(10, 80)), budget_id)
            else:
                self.world.resume_budget(budget_id)

    def pass_time(self) -> None:
        self.world.advance(self.random.choice([5, 600, 3700, DAY + 1]))

    def delete(self) -> None:
        if budgets := list(self.world.state.budgets.tallies):
            self.world.do(DeleteBudgetRequest(budget_id=self.random.choice(budgets)))

    def audit(self) -> None:
        rows, tallies = self.world.rows, self.world.state.budgets.tallies
        holds: dict[str, int] = dict.fromkeys(tallies, 0)
        for attempt in rows.attempts.values():
            for hold in attempt.budget_holds:
                if attempt.state == ATTEMPT_STATE_RUNNING and hold.budget_id in holds:
                    holds[hold.budget_id] += units_of(hold.reserved)
        for budget_id, tally in tallies.items():
            spent = sum(units for (of, _), units in rows.budgets.spend.items() if of == budget_id)
            assert (spent, holds[budget_id]) == (tally.spent, tally.reserved), "memory and rows tell the same"
            most = tally.limit + tally.extended
            excess = spent + holds[budget_id] - most
            most_before, excess_before = self.before.get(budget_id, (most, 0))
            lowered = max(0, most_before - most)
            assert excess <= max(0, excess_before + self.used * CENT + lowered), f"{budget_id} gave what it had not"
            self.before[budget_id] = most, excess
        for task in self.tasks(TASK_STATE_RUNNING):
            if task.HasField("pause"):
                self.audit_pause(task)
        asked = [one for one in self.world.state.approvals.pending() if one.task_id]
        paused = {task.task_id: task for task in self.tasks(TASK_STATE_RUNNING) if task.HasField("pause")}
        for approval in asked:
            assert paused[approval.task_id].pause.budget_id == approval.budget_id, "who is asked about is paused by it"

    def audit_pause(self, task: Task) -> None:
        budgets = self.world.state.budgets
        tally = budgets.tallies[task.pause.budget_id]
        budget = self.world.state.standing.find(Budget, tally.budget_id)
        assert budget is not None
        [hold] = [
            one
            for one in self.world.attempt(task.task_id, task.attempt).budget_holds
            if one.budget_id == tally.budget_id
        ]
        assert not units_of(hold.reserved), "who has something left is not paused"
        assert tally.blocks(max(units_of(budget.spec.default_estimate), 1)), "there is no room"
        assert task.task_id in tally.paused, "whatever makes room finds it"
        if tally.asks and task.waiting.kind == ATTEMPT_WAIT_KIND_BUDGET:
            [asked] = [one for one in self.world.state.approvals.pending() if one.task_id == task.task_id]
            assert asked.approval_id == task.pause.approval_id, "somebody is asked"


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=15)
def test_no_pause_is_without_a_reason_nor_without_an_end(seed: int) -> None:
    Life(seed).live(150)
