"""How secrets are shown: everything but their values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.cli import times
from kapell.cli.output import View
from kapell.cli.table import Cell, Column

if TYPE_CHECKING:
    from kapell.v1.secret_pb2 import Secret


def _source(secret: Secret) -> str:
    """As in "stored", or "environment MODEL_KEY"."""
    from kapell.v1.secret_pb2 import SecretSource

    word = SecretSource.Name(secret.source).removeprefix("SECRET_SOURCE_").lower()
    return f"{word} {secret.location}" if secret.location else word


SECRETS = View(
    columns=(
        Column("NAME", lambda secret: Cell(secret.name)),
        Column("SOURCE", _source, flexible=True),
        Column("VERSION", lambda secret: str(secret.version), right=True),
        Column("DESCRIPTION", lambda secret: secret.description or "-", flexible=True),
        Column("SET", lambda secret: times.age(secret.update_time), right=True),
    ),
    id=lambda secret: secret.name,
)
