"""The part of rpc_table about tokens and the audit log."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message
from kapell.v1 import audit_pb2, token_pb2
from kapell.v1.common_pb2 import SCOPE_READ

from tests.rpc.rpc_cases import Case
from tests.rpc.scene import Ask, Scene


def subject_of(message: Message | None) -> str:
    """The token that a message is about, as "token/ID"; empty for other messages."""
    if message is None or message.DESCRIPTOR.file.name != "kapell/v1/token.proto":
        return ""
    named: Any = getattr(message, "token", message)
    return f"token/{named.token_id}" if getattr(named, "token_id", "") else ""


def alter(request: Any) -> bool:
    """Makes another request of one about a token; False for one about something else."""
    if request.DESCRIPTOR.file.name != "kapell/v1/token.proto":
        return False
    if hasattr(request, "principal"):
        request.principal = "another"
    else:
        request.token_id = "token_another"
    return True


def _create(scene: Scene) -> Ask:
    return Ask(token_pb2.CreateTokenRequest(principal=scene.name("user-"), scopes=[SCOPE_READ]))


def _audited(scene: Scene) -> Ask:
    scene.call("CreateToken", _create(scene))
    return Ask(audit_pb2.ListAuditEntriesRequest(filter=audit_pb2.AuditFilter(principals=["admin"]), page_size=1))


def _other_audit(scene: Scene) -> Ask:
    for _ in range(2):
        scene.call("CreateToken", _create(scene))
    token = scene.ask("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(page_size=1)).next_page_token
    other = audit_pb2.AuditFilter(principals=["other"])
    return Ask(audit_pb2.ListAuditEntriesRequest(page_size=1, page_token=token, filter=other))


def _listed(scene: Scene) -> Ask:
    made = scene.call("CreateToken", _create(scene)).token
    return Ask(token_pb2.ListTokensRequest(principals=[made.principal]))


def _revocation(scene: Scene) -> Ask:
    return Ask(token_pb2.RevokeTokenRequest(token_id=scene.call("CreateToken", _create(scene)).token.token_id))


TOKENS: dict[str, Case] = {
    "CreateToken": Case(
        works=_create,
        holds=lambda answer: answer.secret.startswith(f"kapell_{answer.token.token_id}."),
        malformed=({"principal": "No Spaces", "scopes": ["SCOPE_READ"]}, "principal"),
    ),
    "ListTokens": Case(
        works=_listed,
        holds=lambda answer: len(answer.tokens) == 1 and not answer.tokens[0].HasField("last_used_time"),
        refused={
            "PAGE_TOKEN_INVALID: damaged": lambda scene: Ask(token_pb2.ListTokensRequest(page_token="not-a-token"))
        },
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "RevokeToken": Case(
        works=_revocation,
        holds=lambda answer: answer.token.HasField("revoke_time"),
        refused={"TOKEN_NOT_FOUND": lambda scene: Ask(token_pb2.RevokeTokenRequest(token_id="token_nothing"))},
        malformed=({}, "token_id"),
    ),
    "GetCaller": Case(
        works=lambda scene: Ask(token_pb2.GetCallerRequest()),
        holds=lambda answer: answer.actor.id == "admin" and not answer.token_id,
    ),
    "ListAuditEntries": Case(
        works=_audited,
        holds=lambda answer: answer.entries[0].method == "TokenService.CreateToken",
        refused={
            "PAGE_TOKEN_INVALID: damaged": lambda scene: Ask(
                audit_pb2.ListAuditEntriesRequest(page_token="not-a-token")
            ),
            "PAGE_TOKEN_INVALID: of another filter": _other_audit,
        },
        malformed=({"pageSize": 1001}, "page_size"),
    ),
}
VALID_OF_TOKENS: dict[str, dict[str, Any]] = {
    "CreateToken": {"principal": "alice", "scopes": ["SCOPE_READ"]},
    "RevokeToken": {"tokenId": "token_1"},
}
