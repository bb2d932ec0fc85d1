"""Answers that are remembered: the rule that is made with a decision, and when none is."""

from __future__ import annotations

from typing import Any

import pytest
from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_QUESTION,
    ApprovalContent,
    ApprovalOption,
    ApprovalRule,
)
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_APPROVED, ApprovalPolicy
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import SECOND

from tests.domain.asking import ALICE, BOB, ask, decide
from tests.domain.test_approval_rules import is_approved
from tests.domain.world import START_NS, World

SAME = ApprovalContent(tool="execute", command="make test", paths=["/srv/shop/a"], workspace="/srv/shop")
ALWAYS = [ApprovalOption(option_id="always", label="Always", remember=True)]


def rules_after(content: ApprovalContent, option: str = "always", **said: Any) -> list[ApprovalRule]:
    """The rules there are once a request that may be remembered was decided."""
    world = World()
    approval = ask(world, world.running(), content=content, options=ALWAYS, **said)
    decide(world, approval, option, by=ALICE)
    return list(world.state.standing.all(ApprovalRule))


def test_remembering_approves_the_same_in_the_task_and_nothing_else() -> None:
    world = World()
    task_id, other = world.running(), world.running()
    first = ask(world, task_id, content=SAME, options=ALWAYS)

    decide(world, first, "always", by=ALICE)

    [made] = world.state.standing.all(ApprovalRule)
    assert (made.creator, made.spec.root_task_id) == (ALICE.actor(), task_id)
    assert abs(made.spec.expire_time.seconds - START_NS // SECOND - 24 * 3600) < 60
    assert is_approved(world, task_id, content=SAME)
    assert not is_approved(world, other, content=SAME)
    for field, value in (("command", "make"), ("tool", "edit"), ("paths", ["/srv/shop/b"])):
        wider = ApprovalContent()
        wider.CopyFrom(SAME)
        wider.ClearField(field)  # type: ignore[arg-type]
        wider.MergeFrom(ApprovalContent(**{field: value}))  # type: ignore[arg-type]
        assert not is_approved(world, task_id, content=wider)
    assert not is_approved(world, task_id)


def test_nothing_is_remembered_that_a_rule_could_not_say() -> None:
    assert len(rules_after(SAME)) == 1
    assert not rules_after(SAME, "approve")
    assert not rules_after(SAME, "deny")
    assert not rules_after(ApprovalContent(tool="fetch"))
    assert not rules_after(ApprovalContent(command="make"))
    assert not rules_after(ApprovalContent(tool="fetch", command="curl", hosts=["example.com"]))
    assert not rules_after(ApprovalContent(tool="bash", command="ls *.py"))
    assert not rules_after(ApprovalContent(tool="bash", command="rm -rf /"))
    assert not rules_after(ApprovalContent(tool="read", paths=[f"/srv/{number}" for number in range(21)]))


def test_one_of_several_who_must_agree_makes_no_rule() -> None:
    world = World()
    policy = ApprovalPolicy(quorum=2)
    approval = ask(world, world.running(), content=SAME, options=ALWAYS, policy=policy)

    for voter in (ALICE, BOB):
        approval = decide(world, approval, "always", by=voter)

    assert approval.state == APPROVAL_STATE_APPROVED
    assert not list(world.state.standing.all(ApprovalRule))


def test_answer_to_a_question_cannot_be_remembered() -> None:
    world = World()

    with pytest.raises(KapellError, match="cannot be remembered"):
        ask(world, world.running(), kind=APPROVAL_KIND_QUESTION, content=ApprovalContent(), options=ALWAYS)
