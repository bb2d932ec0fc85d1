"""Tokens as rules: what they open, when they end, and what is recorded of who makes them."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.admin_pb2 import CompactEventsRequest
from kapell.v1.common_pb2 import SCOPE_ADMIN, SCOPE_READ, SCOPE_WRITE
from kapell.v1.queue_pb2 import PauseQueueRequest
from kapell.v1.task_pb2 import CreateTaskRequest
from kapell.v1.token_pb2 import CreateTokenRequest, CreateTokenResponse, RevokeTokenRequest, Token
from kapell_server.domain.access import ALL_SCOPES
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import SECOND
from kapell_server.domain.tokens import token as tokens
from kapell_server.domain.tokens.audit import MOST_BYTES, audited_method, summary

from tests.domain.world import START_NS, World


@pytest.fixture
def world() -> World:
    return World()


def names(world: World) -> list[str]:
    return [name for name in world.events if name.startswith("token.")]


def make(world: World, **fields: object) -> Token:
    said = {"principal": "alice", "scopes": [SCOPE_READ], **fields}
    answer = world.do(CreateTokenRequest(**said))  # type: ignore[arg-type]
    assert isinstance(answer, CreateTokenResponse)
    return answer.token


def test_a_token_is_proven_by_its_secret_and_no_other(world: World) -> None:
    made = make(world)
    secret = world.state.keyring.token_secret(made.token_id)
    digest = world.state.token_digests[made.token_id]

    assert secret.startswith(f"kapell_{made.token_id}.")
    assert tokens.proves(secret, digest)
    assert not tokens.proves(secret + "0", digest)
    assert not tokens.proves("", digest)
    assert names(world) == ["token.created"]


def test_its_answer_and_its_record_have_no_secret(world: World) -> None:
    answer = world.do(CreateTokenRequest(principal="alice", scopes=[SCOPE_READ]))
    proof = world.state.keyring.token_secret(answer.token.token_id).partition(".")[2]

    assert answer.secret == ""
    assert proof not in str(answer)


def test_it_is_good_until_its_time_is_over(world: World) -> None:
    made = make(world, ttl=Duration(seconds=60))
    end_ns = made.expire_time.ToNanoseconds()

    assert end_ns == START_NS + 60 * SECOND
    assert tokens.is_good(made, end_ns - 1)
    assert not tokens.is_good(made, end_ns)
    assert tokens.is_good(make(world), 1 << 62), "without a time it is good until it is revoked"


def test_revoking_ends_it_for_good_and_once(world: World) -> None:
    made = make(world)

    first = world.do(RevokeTokenRequest(token_id=made.token_id, reason="lost"))
    second = world.do(RevokeTokenRequest(token_id=made.token_id, reason="again"))

    assert first == second
    assert not tokens.is_good(first, START_NS)
    assert first.revoke_reason == "lost"
    assert names(world) == ["token.created", "token.revoked"]


def test_admin_stands_for_all_scopes(world: World) -> None:
    assert tokens.caller_of(make(world, scopes=[SCOPE_ADMIN])).scopes == ALL_SCOPES
    assert tokens.caller_of(make(world, scopes=[SCOPE_WRITE])).scopes == {SCOPE_WRITE}
    assert tokens.caller_of(make(world)).actor().id == "alice"


def test_one_that_is_not_there_cannot_be_revoked(world: World) -> None:
    with pytest.raises(KapellError) as refused:
        world.do(RevokeTokenRequest(token_id="token_x"))

    assert refused.value.reason_name == "TOKEN_NOT_FOUND"


def test_beyond_the_limit_one_that_has_ended_makes_room_and_one_that_is_good_does_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MOST_TOKENS", 2)
    first, second = make(world), make(world)

    with pytest.raises(KapellError) as refused:
        make(world)
    assert refused.value.reason_name == "TOKEN_LIMIT"

    world.do(RevokeTokenRequest(token_id=first.token_id))
    third = make(world)
    assert set(world.state.token_digests) == {second.token_id, third.token_id}
    assert names(world)[-2:] == ["token.deleted", "token.created"]


def test_what_administrators_change_is_recorded_and_what_others_do_is_not() -> None:
    assert audited_method(CreateTokenRequest) == "TokenService.CreateToken"
    assert audited_method(CompactEventsRequest) == "AdminService.CompactEvents"
    assert audited_method(PauseQueueRequest) == "QueueService.PauseQueue"
    assert audited_method(CreateTaskRequest) == ""
    assert audited_method(str) == ""


def test_a_summary_leaves_out_content_and_is_short() -> None:
    request = CreateTaskRequest(request_id="r", task={"agent_type": "a", "prompt": "secret"})
    request.task.input["secret"] = "secret"
    long = RevokeTokenRequest(token_id="t", reason="ä" * 400)

    assert summary(request) == '{"task": {"agentType": "a"}}'
    assert "ä" in summary(long)
    assert len(summary(RevokeTokenRequest(token_id="t", reason="x" * 5000)).encode()) <= MOST_BYTES
