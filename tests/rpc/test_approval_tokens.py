"""Approvals and the tokens of those who decide: a revoked one decides nothing more; what it has said stays said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kapell.v1 import approval_pb2, task_pb2, token_pb2
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_APPROVED, APPROVAL_STATE_PENDING
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST, SCOPE_APPROVE, SCOPE_READ

from tests.rpc.rpc_approvals import start
from tests.rpc.scene import Ask, Scene
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with ServerProcess(tmp_path_factory.mktemp("approvals") / "data") as server:
        scene = Scene(server)
        yield scene
        scene.close()


def approver(scene: Scene, name: str) -> tuple[str, str]:
    """The id and the secret of a new token of this user that may approve."""
    request = token_pb2.CreateTokenRequest(principal=name, scopes=[SCOPE_READ, SCOPE_APPROVE])
    made = scene.ask("CreateToken", request)
    return made.token.token_id, made.secret


def decision(approval: approval_pb2.Approval, option: str = "approve") -> Ask:
    request = approval_pb2.DecideApprovalRequest(
        approval_id=approval.approval_id, option=option, shown_hash=approval.content_hash
    )
    return Ask(request)


def state_of(scene: Scene, approval: approval_pb2.Approval) -> Any:
    return scene.ask("GetApproval", approval_pb2.GetApprovalRequest(approval_id=approval.approval_id)).approval.state


def test_a_revoked_approver_votes_no_more_and_a_vote_that_was_given_stays(scene: Scene) -> None:
    alice_id, alice = approver(scene, "alice")
    bob_id, bob = approver(scene, "bob")
    _, carol = approver(scene, "carol")
    approval = start(scene, quorum=2)
    scene.call("DecideApproval", decision(approval), token=alice)

    for token_id in (alice_id, bob_id):
        scene.ask("RevokeToken", token_pb2.RevokeTokenRequest(token_id=token_id))

    for secret in (alice, bob):
        refused = scene.refusal("DecideApproval", decision(approval), token=secret)
        assert refused.reasons == ("TOKEN_INVALID",)
    assert state_of(scene, approval) == APPROVAL_STATE_PENDING
    decided = scene.call("DecideApproval", decision(approval), token=carol).approval
    assert decided.state == APPROVAL_STATE_APPROVED
    assert [vote.decider.id for vote in decided.decisions] == ["alice", "carol"]


def test_two_tokens_of_one_user_are_one_voter(scene: Scene) -> None:
    (_, first), (_, second) = approver(scene, "dora"), approver(scene, "dora")
    approval = start(scene, quorum=2)
    scene.call("DecideApproval", decision(approval), token=first)

    refused = scene.refusal("DecideApproval", decision(approval), token=second)

    assert refused.reasons == ("APPROVAL_ALREADY_DECIDED",)
    assert state_of(scene, approval) == APPROVAL_STATE_PENDING


def test_every_entry_of_the_audit_says_where_it_came_from(scene: Scene) -> None:
    approval = start(scene)
    scene.ask("CancelTask", task_pb2.CancelTaskRequest(task_id=approval.task_id))

    request = approval_pb2.ListApprovalAuditRequest(approval_id=approval.approval_id, order=LIST_ORDER_OLDEST_FIRST)
    entries = scene.ask("ListApprovalAudit", request).entries

    assert len(entries) == 2
    assert all(entry.actor.id and entry.peer for entry in entries)
