"""Page tokens: an opaque cursor that belongs to one filter and order."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct

from google.protobuf.message import Message
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST, ListOrder
from kapell.v1.error_pb2 import ERROR_REASON_PAGE_TOKEN_INVALID

from kapell_server.domain.errors import KapellError

DEFAULT_SIZE = 50
ANSWER_BYTES = 1024 * 1024
"""About what one answer may hold: a client of gRPC reads 4 MiB unless it is told otherwise."""
_BINDING_BYTES = 8


class Page:
    """One request for a page: how many rows, from where, in which direction.

    `cursor` is the create_revision (or revision) of the last row of the page before; None at the start.
    """

    def __init__(self, *, size: int, token: str, order: ListOrder.ValueType, bound_to: Message) -> None:
        self.size = size or DEFAULT_SIZE
        self.oldest_first = order == LIST_ORDER_OLDEST_FIRST
        digest = hashlib.blake2b(bound_to.DESCRIPTOR.full_name.encode(), digest_size=_BINDING_BYTES)
        digest.update(bytes([self.oldest_first]))
        digest.update(bound_to.SerializeToString(deterministic=True))
        self._binding = digest.digest()
        self.cursor = self._read(token) if token else None

    def _read(self, token: str) -> int:
        try:
            raw = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
            cursor, binding = struct.unpack(f">q{_BINDING_BYTES}s", raw)
        except (ValueError, binascii.Error, struct.error) as error:
            raise _invalid("it is damaged") from error
        if binding != self._binding:
            raise _invalid("it belongs to another filter or order")
        return int(cursor)

    def token(self, cursor: int) -> str:
        """The token of the page that follows the row at `cursor`."""
        raw = struct.pack(f">q{_BINDING_BYTES}s", cursor, self._binding)
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _invalid(why: str) -> KapellError:
    return KapellError(
        ERROR_REASON_PAGE_TOKEN_INVALID,
        f"page_token cannot be used: {why}. Start again without a page_token.",
        violations=(("page_token", why),),
    )
