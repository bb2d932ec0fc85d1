"""The approval machine against an oracle of a few lines: whatever happens, in whatever order.

The oracle knows states, votes and times, and shares no code with the rules. After every step each
approval stands as it says (A2, A3, A4), no task runs before its approval (A1), and memory is what the rows say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kapell.v1.approval_policy_pb2 import (
    EXPIRY_ACTION_DENY,
    EXPIRY_ACTION_ESCALATE,
    EXPIRY_ACTION_HOLD,
    ApprovalPolicy,
    ApprovalState,
)
from kapell.v1.task_pb2 import Task, UpdateTaskRequest
from kapell_server.domain.access import user
from kapell_server.domain.errors import KapellError

from tests.domain.asking import ask_whole, decide, lasting, state_of
from tests.domain.world import World

USERS = {name: user(name) for name in ("admin", "alice", "bob", "carol")}
ACTIONS = {"deny": EXPIRY_ACTION_DENY, "hold": EXPIRY_ACTION_HOLD, "escalate": EXPIRY_ACTION_ESCALATE}
LONGEST = 60


@dataclass
class Expected:
    """An approval as it should stand."""

    kind: str
    task_id: str
    approvers: frozenset[str]
    quorum: int
    action: str
    ends: float
    asker: str
    state: str = "PENDING"
    votes: set[str] = field(default_factory=set)
    overdue: bool = False
    escalated: bool = False

    def may(self, name: str) -> bool:
        if self.asker == name:
            return False
        return not self.approvers or name in self.approvers or self.escalated

    def pass_time(self, now: float) -> None:
        while self.state == "PENDING" and not self.overdue and self.ends <= now:
            if self.action == "hold":
                self.overdue = True
            elif self.action == "escalate" and not self.escalated:
                self.escalated = True
                self.ends = now + LONGEST
            else:
                self.state = "EXPIRED"


class ApprovalMachine(RuleBasedStateMachine):
    """Tasks that ask for their start and in mid-run, deciders, edits, cancels and time."""

    @initialize()
    def begin(self) -> None:
        self.world = World()
        self.now = 0.0
        self.expected: dict[str, Expected] = {}
        self.agent_id = self.world.register("shell")

    # -- what happens -----------------------------------------------------------------------------

    @rule(
        approvers=st.sets(st.sampled_from(["alice", "bob", "carol"]), max_size=3),
        quorum=st.integers(1, 2),
        action=st.sampled_from(sorted(ACTIONS)),
        own=st.booleans(),
    )
    def start(self, approvers: set[str], quorum: int, action: str, own: bool) -> None:
        policy = self._policy(approvers, quorum, action)
        policy.allow_requester = own
        task_id = self.world.create("shell", prompt="one", approval=policy)
        self._expect(self.world.task(task_id).approval.approval_id, "start", task_id, policy, "" if own else "admin")

    @precondition(lambda self: self._running())
    @rule(quorum=st.integers(1, 2), action=st.sampled_from(sorted(ACTIONS)), park=st.booleans(), data=st.data())
    def request(self, quorum: int, action: str, park: bool, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(self._running()))
        policy = self._policy(set(), quorum, action)
        title = f"Request {len(self.expected)}"
        answer = ask_whole(self.world, task_id, title=title, policy=policy, park=park)
        assert answer.parked == park
        self._expect(answer.approval.approval_id, "parked" if park else "asked", task_id, policy, "admin")

    @precondition(lambda self: self.expected)
    @rule(
        option=st.sampled_from(["approve", "deny"]),
        name=st.sampled_from(sorted(USERS)),
        changed=st.booleans(),
        data=st.data(),
    )
    def decide(self, option: str, name: str, changed: bool, data: st.DataObject) -> None:
        approval_id = data.draw(st.sampled_from(sorted(self.expected)))
        expected = self.expected[approval_id]
        shown = "f" * 64 if changed else ""
        try:
            decide(self.world, self.world.rows.approvals[approval_id], option, by=USERS[name], shown=shown)
            reason = ""
        except KapellError as error:
            reason = error.reason_name
        assert reason == self._refusal(expected, name, changed)
        if reason:
            return
        if option == "deny":
            expected.state = "REJECTED"
        else:
            expected.votes.add(name)
            if len(expected.votes) >= expected.quorum:
                expected.state = "APPROVED"
        if expected.kind == "start" and expected.state == "REJECTED":
            self._end(expected.task_id)

    @precondition(lambda self: self.world.rows.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.world.rows.tasks)))
        if state_of(self.world, task_id) not in ("SUCCEEDED", "FAILED", "CANCELLED"):
            self.world.cancel(task_id)
            self._end(task_id)

    @precondition(lambda self: self._awaiting())
    @rule(data=st.data(), prompt=st.sampled_from(["one", "two"]))
    def edit(self, data: st.DataObject, prompt: str) -> None:
        task_id = data.draw(st.sampled_from(self._awaiting()))
        before = self.world.task(task_id).approval.approval_id
        request = UpdateTaskRequest(task=Task(task_id=task_id, prompt=prompt))
        request.update_mask.paths.append("prompt")
        self.world.do(request)
        after = self.world.task(task_id).approval.approval_id
        if after != before:
            old = self.expected[before]
            old.state = "SUPERSEDED"
            self._expect(after, "start", task_id, self.world.rows.approvals[after].policy, old.asker)

    @rule()
    def work(self) -> None:
        """The agent takes what there is, and says that it lives."""
        self.world.poll(self.agent_id)
        self.world.beat(self.agent_id, *self._running())

    @precondition(lambda self: self._running())
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(self._running()))
        self.world.complete(task_id)
        self._end(task_id)

    @rule(seconds=st.sampled_from([1, 8, 30, 61]))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        for expected in self.expected.values():
            was = expected.state
            expected.pass_time(self.now)
            if expected.state != was and expected.kind == "start":
                self._end(expected.task_id)
        self.world.advance(seconds)

    # -- what must hold ---------------------------------------------------------------------------

    @invariant()
    def every_approval_stands_as_expected(self) -> None:
        for approval_id, expected in getattr(self, "expected", {}).items():
            found = self.world.rows.approvals[approval_id]
            name = ApprovalState.Name(found.state).removeprefix("APPROVAL_STATE_")
            assert name == expected.state, (approval_id, expected)
            assert (found.overdue, found.escalated) == (expected.overdue, expected.escalated)
            assert {vote.decider.id for vote in found.decisions if vote.approves} == expected.votes
            if expected.state == "EXPIRED":
                assert all(vote.approves for vote in found.decisions), "an expiry is nobody's refusal"

    @invariant()
    def nothing_ran_before_its_approval(self) -> None:
        for task in getattr(self, "world", World()).rows.tasks.values():
            if task.HasField("start_time"):
                decided = self.world.rows.approvals[task.approval.approval_id]
                assert ApprovalState.Name(decided.state) == "APPROVAL_STATE_APPROVED"

    @invariant()
    def memory_is_what_the_rows_say(self) -> None:
        if not hasattr(self, "world"):
            return
        waiting = {key for key, one in self.world.rows.approvals.items() if one.state == 1}
        assert {one.approval_id for one in self.world.state.approvals.pending()} == waiting
        by_task = self.world.state.approvals._of_task
        assert {one for ids in by_task.values() for one in ids} == waiting
        assert all(by_task.values())

    # -- the oracle -------------------------------------------------------------------------------

    def _policy(self, approvers: set[str], quorum: int, action: str) -> ApprovalPolicy:
        most = min(quorum, len(approvers)) if approvers else quorum
        named = [f"user:{name}" for name in sorted(approvers)]
        return lasting(LONGEST, approvers=named, quorum=most, on_expiry=ACTIONS[action])

    def _expect(self, approval_id: str, kind: str, task_id: str, policy: ApprovalPolicy, asker: str) -> None:
        [action] = [word for word, value in ACTIONS.items() if value == policy.on_expiry]
        approvers = frozenset(one.removeprefix("user:") for one in policy.approvers)
        self.expected[approval_id] = Expected(
            kind, task_id, approvers, policy.quorum, action, self.now + LONGEST, asker
        )

    def _refusal(self, expected: Expected, name: str, changed: bool) -> str:
        if expected.state == "SUPERSEDED":
            return "APPROVAL_CHANGED"
        if expected.state != "PENDING":
            return "APPROVAL_ALREADY_DECIDED"
        if changed:
            return "APPROVAL_CHANGED"
        if expected.asker == name:
            return "SELF_APPROVAL"
        if not expected.may(name):
            return "NOT_APPROVER"
        return "APPROVAL_ALREADY_DECIDED" if name in expected.votes else ""

    def _end(self, task_id: str) -> None:
        for expected in self.expected.values():
            if expected.task_id == task_id and expected.state == "PENDING":
                expected.state = "CANCELLED"

    def _running(self) -> list[str]:
        return [key for key in sorted(self.world.rows.tasks) if state_of(self.world, key) == "RUNNING"]

    def _awaiting(self) -> list[str]:
        """Tasks that wait for their start, never begun."""
        return [
            key
            for key, task in sorted(self.world.rows.tasks.items())
            if state_of(self.world, key) == "AWAITING_APPROVAL" and not task.HasField("start_time")
        ]


TestApprovalMachine: Any = ApprovalMachine.TestCase
TestApprovalMachine.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
