"""What may be done with secrets: set, delete, and encrypt them anew. Values come here sealed only."""

from __future__ import annotations

from dataclasses import dataclass

from kapell.v1.error_pb2 import ERROR_REASON_SECRET_LIMIT
from kapell.v1.secret_pb2 import (
    SECRET_SOURCE_ENVIRONMENT,
    SECRET_SOURCE_FILE,
    SECRET_SOURCE_STORED,
    DeleteSecretRequest,
    DeleteSecretResponse,
    RotateSecretKeyRequest,
    RotateSecretKeyResponse,
    Secret,
    SetSecretRequest,
)
from kapell.v1.watch_pb2 import EVENT_KIND_SECRET_DELETED, EVENT_KIND_SECRET_UPDATED

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.secrets.use import secret_not_found
from kapell_server.domain.state import State
from kapell_server.domain.tasks.task import check_etag
from kapell_server.domain.times import stamp

MAX_SECRETS = 1_000
"""All are in memory, sealed."""


@dataclass(frozen=True, slots=True)
class SetSecretCommand:
    """A SetSecret request in which the value has given way to a keyed hash of it, and the value, sealed."""

    request: SetSecretRequest
    sealed: bytes

    @property
    def request_id(self) -> str:
        """That of the request."""
        return self.request.request_id


@dataclass(frozen=True, slots=True)
class RotateKeyCommand:
    """A RotateSecretKey request, once the vault seals with a new key."""

    request: RotateSecretKeyRequest

    @property
    def request_id(self) -> str:
        """That of the request."""
        return self.request.request_id


SealedCommand = SetSecretCommand | RotateKeyCommand
"""What stands for a request whose values nobody but the vault may see."""


def set_secret(state: State, command: SetSecretCommand) -> Secret:
    """Creates or replaces a secret."""
    request = command.request
    current = state.standing.find(Secret, request.name)
    if current is None and state.standing.count(Secret) >= MAX_SECRETS:
        raise KapellError(
            ERROR_REASON_SECRET_LIMIT,
            f"There are {MAX_SECRETS} secrets already, which is the most. Delete those that nothing needs.",
            metadata={"limit": str(MAX_SECRETS)},
        )
    check_etag(request.etag, current.etag if current is not None else "")
    secret = Secret(name=request.name, description=request.description, source=SECRET_SOURCE_STORED)
    secret.version = (current.version if current is not None else 0) + 1
    match request.WhichOneof("source"):
        case "environment_variable":
            secret.source, secret.location = SECRET_SOURCE_ENVIRONMENT, request.environment_variable
        case "file":
            secret.source, secret.location = SECRET_SOURCE_FILE, request.file
    stamp(secret.update_time, state.tick_ns())
    secret.create_time.CopyFrom(current.create_time if current is not None else secret.update_time)
    _keep(state, request.name, command.sealed)
    changed = ("description", "source", "location", "version")
    return state.standing.put(secret, EVENT_KIND_SECRET_UPDATED, changed)


def delete_secret(state: State, request: DeleteSecretRequest) -> DeleteSecretResponse:
    """Forgets a secret and its value."""
    current = state.standing.find(Secret, request.name)
    if current is None:
        raise secret_not_found(request.name)
    _keep(state, request.name, b"")
    deleted = state.standing.put(copied(current), EVENT_KIND_SECRET_DELETED, (), deleted=True)
    return DeleteSecretResponse(revision=deleted.revision)


def seal_anew(state: State, command: RotateKeyCommand) -> RotateSecretKeyResponse:
    """Seals every value with the vault's key of now. A value that cannot be opened stays as it is."""
    count = 0
    for name, sealed in list(state.secret_values.items()):
        value = state.vault.open(sealed, name)
        if value is not None:
            _keep(state, name, state.vault.seal(value, name))
            count += 1
    return RotateSecretKeyResponse(secrets=count, revision=state.revision)


def _keep(state: State, name: str, sealed: bytes) -> None:
    """Records a sealed value; an empty one deletes."""
    state.assign(state.pending.secret_values, name, sealed)
    if sealed:
        state.assign(state.secret_values, name, sealed)
    else:
        state.remove(state.secret_values, name)
