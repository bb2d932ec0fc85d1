"""Requests that carry a request_id: how they are told apart, and their first answers in the database."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from google.protobuf.message import Message
from kapell.v1.error_pb2 import ERROR_REASON_REQUEST_ID_REUSED
from sqlalchemy.engine import Connection

from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.store.schema import answers

_answer = sa.select(answers.c.fingerprint, answers.c.data).where(answers.c.request_key == sa.bindparam("key"))
_insert = sa.insert(answers)


def request_key(caller: Caller, request_id: str) -> str:
    """A request_id is good for who chose it; of programs that is an attempt, not its like of a task made anew."""
    if caller.lease is not None:
        return f"{caller.kind.value}:{caller.name}.{caller.lease.start_ns:x}/{request_id}"
    return f"{caller.kind.value}:{caller.name}/{request_id}"


def fingerprint_of(message: Message) -> bytes:
    """What tells a request from another of the same request_id."""
    digest = hashlib.blake2b(message.DESCRIPTOR.full_name.encode(), digest_size=16)
    digest.update(message.SerializeToString(deterministic=True))
    return digest.digest()


def reused(request_id: str) -> KapellError:
    """The request_id was used with another body."""
    return KapellError(
        ERROR_REASON_REQUEST_ID_REUSED,
        f"request_id {request_id} was used for another request. Use a fresh one for each new request.",
        metadata={"request_id": request_id},
    )


class Remembered:
    """One request that does not pass the writer: looked up and remembered in its own transaction."""

    def __init__(self, caller: Caller, request: Message, request_id: str) -> None:
        self._key = request_key(caller, request_id) if request_id else ""
        self._request_id = request_id
        self._fingerprint = fingerprint_of(request) if request_id else b""

    def first_answer(self, connection: Connection) -> bytes | None:
        """The encoded first answer; None where this is the first. Raises REQUEST_ID_REUSED."""
        row = connection.execute(_answer, {"key": self._key}).first() if self._key else None
        if row is None:
            return None
        if bytes(row[0]) != self._fingerprint:
            raise reused(self._request_id)
        return bytes(row[1])

    def remember(self, connection: Connection, data: bytes, now_ns: int) -> None:
        """Keeps the encoded answer; without a request_id there is nothing to keep."""
        if self._key:
            row = {"request_key": self._key, "fingerprint": self._fingerprint, "data": data, "create_ns": now_ns}
            connection.execute(_insert, row)
