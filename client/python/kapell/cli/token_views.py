"""How tokens and the audit log are shown: their columns."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kapell.cli import times
from kapell.cli.output import View
from kapell.cli.table import Cell, Column, moment, peer

if TYPE_CHECKING:
    from kapell.v1.token_pb2 import Token


def scope_words(scopes: Iterable[int]) -> str:
    """As in "read,write"; a number for one of a newer server."""
    from kapell.v1.common_pb2 import Scope

    names = {value: name.removeprefix("SCOPE_").lower() for name, value in Scope.items()}
    return ",".join(names.get(scope, str(scope)) for scope in scopes)  # type: ignore[call-overload]


def token_state(token: Token) -> Cell:
    """Whether it is good, in a word."""
    if token.HasField("revoke_time"):
        return Cell("revoked", "red", "✗")
    if token.HasField("expire_time") and token.expire_time.ToNanoseconds() <= time.time_ns():
        return Cell("expired", "yellow", "○")
    return Cell("good", "green", "●")


def _expires(token: Token) -> Cell:
    if not token.HasField("expire_time"):
        return Cell("never")
    return Cell(times.iso(token.expire_time), seen=times.until(token.expire_time))


TOKENS = View(
    columns=(
        Column("ID", lambda t: Cell(t.token_id)),
        Column("STATE", token_state),
        Column("PRINCIPAL", lambda t: t.principal, flexible=True),
        Column("SCOPES", lambda t: scope_words(t.scopes), flexible=True),
        Column("NAME", lambda t: t.display_name or "-", flexible=True, spare=True),
        Column("EXPIRES", _expires),
        Column("USED", lambda t: times.age(t.last_used_time) if t.HasField("last_used_time") else "never", right=True),
        Column("MADE", lambda t: times.age(t.create_time), wide=True, right=True),
        Column("BY", lambda t: t.creator.id, wide=True),
        Column("WHY", lambda t: t.revoke_reason or "-", wide=True),
    ),
    id=lambda t: t.token_id,
    brief=(
        Column("STATE", token_state),
        Column("ID", lambda t: Cell(t.token_id)),
        Column("PRINCIPAL", lambda t: t.principal, flexible=True),
    ),
)

AUDIT = View(
    columns=(
        Column("TIME", lambda e: moment(e.audit_time)),
        Column("WHO", lambda e: e.actor.id),
        Column("METHOD", lambda e: e.method),
        Column("REFUSED", lambda e: f"{e.refusal} ×{e.times}" if e.refusal else "-", spare=True),
        Column("FROM", lambda e: peer(e.peer), spare=True),
        Column("REQUEST", lambda e: e.request, flexible=True, keep=16),
        Column("TOKEN", lambda e: e.token_id or "-", wide=True),
        Column("REVISION", lambda e: str(e.revision), wide=True, right=True),
        Column("NUMBER", lambda e: str(e.number), wide=True, right=True),
    ),
    id=lambda e: str(e.number),
)

CALLER = View(
    columns=(
        Column("PRINCIPAL", lambda c: c.actor.id),
        Column("SCOPES", lambda c: scope_words(c.scopes)),
        Column("TOKEN", lambda c: c.token_id or "-"),
        Column("EXPIRES", lambda c: moment(c.expire_time)),
    ),
    id=lambda c: c.actor.id,
)
"""Of GetCallerResponse."""
