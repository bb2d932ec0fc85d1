"""How holds are told of in the rows of attempts, and which changes of a budget's figures are news."""

from __future__ import annotations

from collections.abc import Iterable

from kapell.v1.budget_pb2 import BudgetStatus
from kapell.v1.task_pb2 import TaskAttempt

from kapell_server.domain.budgets.tally import Hold
from kapell_server.domain.copied import copied


def describe(record: TaskAttempt, held: Iterable[Hold], *, ended: bool = False) -> None:
    """Adds holds to the record of an attempt; in bytes, since nearly all of them are known from others."""
    parts = []
    for hold in held:
        reserved = 0 if ended else hold.reserved
        if hold.spent or hold.let:
            told = hold.tally.describe_hold(reserved, hold.spent, hold.overrun, hold.let)
            parts.append(TaskAttempt(budget_holds=[told]).SerializeToString())
        else:
            parts.append(hold.tally.untouched(reserved))
    record.MergeFromString(b"".join(parts))


def differs(before: BudgetStatus, now: BudgetStatus) -> bool:
    """Whether there is something to tell. A rolling window moves all the time, which is no news."""
    if before == now:
        return False
    one, other = copied(before), copied(now)
    if not now.HasField("window_end_time"):
        one.ClearField("window_start_time")
        other.ClearField("window_start_time")
    return one != other
