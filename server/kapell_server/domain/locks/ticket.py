"""Durable places in the queue, asked to be given up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.lock_pb2 import (
    LOCK_TICKET_STATE_CANCELLED,
    AcquireLocksResponse,
    CancelLockTicketRequest,
    CancelLockTicketResponse,
)

from kapell_server.domain.locks import grants
from kapell_server.domain.locks.owners import check_may_use
from kapell_server.domain.locks.views import find_ticket, shown_ticket

if TYPE_CHECKING:
    from kapell_server.domain.state import State


def cancel_ticket(state: State, request: CancelLockTicketRequest) -> CancelLockTicketResponse:
    """Leaves the queue; a grant that came first stands. Raises LOCK_TICKET_NOT_FOUND, NOT_OWNER."""
    grants.settle(state)
    check_may_use(state, find_ticket(state, request.ticket_id).owner)
    wait = state.locks.waits.get(request.ticket_id)
    if wait is not None:
        grants.give_up(state, wait, LOCK_TICKET_STATE_CANCELLED, "it was cancelled")
        ticket = shown_ticket(state, request.ticket_id)
        grants.serve(state, wait, AcquireLocksResponse(ticket=ticket, revision=state.revision))
    return CancelLockTicketResponse(ticket=shown_ticket(state, request.ticket_id), revision=state.revision)
