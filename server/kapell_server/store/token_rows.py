"""Rows of what proves tokens, when they were last used, and of the audit log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from kapell.v1.audit_pb2 import AuditEntry
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.store.bulk import Bulk
from kapell_server.store.schema import audit, token_digests

_of_key = token_digests.c.token_id == bindparam("key")
_delete = Bulk(sa.delete(token_digests).where(_of_key), "key")
_insert = Bulk(sa.insert(token_digests), "token_id", "digest", "used_ns")
_use = Bulk(sa.update(token_digests).where(_of_key).values(used_ns=bindparam("used_ns")), "used_ns", "key")
_insert_audit = Bulk(sa.insert(audit), "number", "principal", "method", "audit_ns", "data")


def load_token_digests(connection: Connection) -> dict[str, bytes]:
    """What proves each token, by id."""
    rows = connection.execute(sa.select(token_digests.c.token_id, token_digests.c.digest))
    return {token_id: bytes(digest) for token_id, digest in rows}


def load_token_uses(connection: Connection) -> dict[str, int]:
    """When each token was last used, ns; without those that never were."""
    rows = connection.execute(sa.select(token_digests.c.token_id, token_digests.c.used_ns))
    return {token_id: used_ns for token_id, used_ns in rows if used_ns}


def write_token_digests(connection: Connection, digests: Mapping[str, bytes | None]) -> None:
    """Puts each in the place of what was there; None deletes."""
    _delete.execute(connection, [(token_id,) for token_id in digests])
    kept = [(token_id, digest, 0) for token_id, digest in digests.items() if digest is not None]
    _insert.execute(connection, kept)


def write_token_uses(connection: Connection, uses: Mapping[str, int]) -> None:
    """Notes when tokens were last used; one that is gone is passed over."""
    _use.execute(connection, [(used_ns, token_id) for token_id, used_ns in uses.items()])


def load_audit_number(connection: Connection) -> int:
    """The number of the newest entry of the audit log; 0 where there is none."""
    return connection.scalar(sa.select(sa.func.max(audit.c.number))) or 0


def write_audit(connection: Connection, entries: Sequence[AuditEntry]) -> None:
    """Appends to the audit log."""
    _insert_audit.execute(
        connection,
        [
            (entry.number, entry.actor.id, entry.method, entry.audit_time.ToNanoseconds(), entry.SerializeToString())
            for entry in entries
        ],
    )
