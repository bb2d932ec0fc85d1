"""The part of rpc_table about secrets."""

from __future__ import annotations

from typing import Any

from kapell.v1 import secret_pb2, task_pb2
from kapell.v1.secret_pb2 import SECRET_SOURCE_STORED

from tests.rpc.rpc_cases import Case
from tests.rpc.scene import Ask, Scene


def subject_of(message: Any) -> str:
    """The secret that a message is about, as "secret/NAME"; empty for other messages."""
    if message is None or message.DESCRIPTOR.file.name != "kapell/v1/secret.proto":
        return ""
    named = getattr(message, "secret", message)
    return f"secret/{named.name}" if hasattr(named, "name") else ""


def alter(request: Any) -> bool:
    """Makes another request of one about a secret; False for one about something else."""
    if request.DESCRIPTOR.file.name != "kapell/v1/secret.proto" or not hasattr(request, "name"):
        return False
    request.name = "another"
    return True


def new_secret(name: str, **fields: Any) -> secret_pb2.SetSecretRequest:
    """Sets a value."""
    return secret_pb2.SetSecretRequest(name=name, value="correct horse battery", **fields)


def kept(scene: Scene) -> str:
    """The name of a secret that there is."""
    name = scene.name("secret-")
    scene.ask("SetSecret", new_secret(name))
    return name


def _listed(scene: Scene) -> Ask:
    kept(scene)
    return Ask(secret_pb2.ListSecretsRequest(page_size=1))


SECRET_NOT_FOUND = {
    "SECRET_NOT_FOUND": lambda scene: Ask(
        task_pb2.CreateTaskRequest(task=scene.spec(secrets={"TOKEN": "nobody-set-it"})),
    ),
}

SECRETS: dict[str, Case] = {
    "SetSecret": Case(
        works=lambda scene: Ask(new_secret(scene.name("secret-"))),
        holds=lambda answer: (
            (answer.secret.version, answer.secret.source, answer.secret.revision)
            == (1, SECRET_SOURCE_STORED, answer.revision)
            and b"battery" not in answer.SerializeToString()
        ),
        refused={"ETAG_MISMATCH": lambda scene: Ask(new_secret(kept(scene), etag="other"))},
        malformed=({"name": "a b", "value": "long enough"}, "name"),
    ),
    "ListSecrets": Case(
        works=_listed,
        holds=lambda answer: len(answer.secrets) == 1 and b"battery" not in answer.SerializeToString(),
        refused={
            "PAGE_TOKEN_INVALID: damaged": lambda scene: Ask(secret_pb2.ListSecretsRequest(page_token="not-a-token"))
        },
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "DeleteSecret": Case(
        works=lambda scene: Ask(secret_pb2.DeleteSecretRequest(name=kept(scene))),
        holds=lambda answer: answer.revision > 0,
        refused={
            "SECRET_NOT_FOUND": lambda scene: Ask(secret_pb2.DeleteSecretRequest(name="nobody-set-it")),
        },
        malformed=({"name": "*"}, "name"),
    ),
    "RotateSecretKey": Case(
        works=lambda scene: Ask(secret_pb2.RotateSecretKeyRequest()),
        holds=lambda answer: answer.revision >= 0,
        malformed=({"requestId": "x" * 65}, "request_id"),
    ),
}

VALID_OF_SECRETS: dict[str, dict[str, Any]] = {
    "SetSecret": {"name": "token", "value": "long enough"},
    "DeleteSecret": {"name": "token"},
}
"""Requests that pass validation, of the methods that require something."""
