"""Budgets that are named: by calls, and by tasks that draw from them."""

from __future__ import annotations

from kapell.v1.error_pb2 import ERROR_REASON_BUDGET_NOT_FOUND

from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State


def check_named(state: State, budget_id: str, path: str) -> None:
    """Refuses a task that names a budget which does not exist."""
    if budget_id and budget_id not in state.budgets.tallies:
        raise budget_not_found(budget_id, (f"{path}.budget_id", "no budget has this id"))


def budget_not_found(budget_id: str, *violations: tuple[str, str]) -> KapellError:
    """No budget has this id."""
    return KapellError(
        ERROR_REASON_BUDGET_NOT_FOUND,
        f"Budget {budget_id} was not found: it never existed or was deleted. List the budgets to find its id.",
        metadata={"budget_id": budget_id},
        violations=violations,
    )
