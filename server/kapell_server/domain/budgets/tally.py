"""What is spent and reserved of one budget, in its present window. Every write goes through the journal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kapell.v1.budget_pb2 import (
    BUDGET_ACTION_NOTIFY,
    BUDGET_ACTION_REQUIRE_APPROVAL,
    BUDGET_STATE_AWAITING_APPROVAL,
    BUDGET_STATE_OPEN,
    BUDGET_STATE_STOPPED,
    Budget,
    BudgetAction,
    BudgetHold,
    BudgetState,
    BudgetStatus,
)
from kapell.v1.error_pb2 import ERROR_REASON_USAGE_LIMIT
from kapell.v1.task_pb2 import TaskAttempt

from kapell_server.domain.budgets.amounts import MOST_SUM, measure_of, set_amount, units_of, words
from kapell_server.domain.budgets.windows import Calendar, Rolling, window_of
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import stamp, timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State

FULL = 100
_NEVER = 1 << 62
_MOST_TRIES = 1_000
_MOST_REMEMBERED = 1_000
_EASE = 9, 10
"""A threshold of a rolling window is left only when a tenth below it: what ages must not fire it again and again."""


@dataclass(slots=True, eq=False)
class Hold:
    """What an attempt, or a reservation of a caller, has of one budget."""

    tally: Tally
    granted: int
    """All that was ever reserved for it."""
    reserved: int
    spent: int = 0
    let: int = 0
    """How much of it goes beyond the limit, as somebody has approved."""

    @property
    def overrun(self) -> int:
        """What was used beyond all that was reserved."""
        return max(0, self.spent - self.granted)

    def restore(self, granted: int, reserved: int, spent: int) -> None:
        """Undoes a change."""
        self.granted, self.reserved, self.spent = granted, reserved, spent


class Tally:
    """The figures of a budget. Units are those of `amounts`."""

    def __init__(self, state: State, budget: Budget) -> None:
        self._state = state
        self.budget_id = budget.budget_id
        self.window = window_of(budget.spec.window)
        self.measure = measure_of(budget.spec.limit)
        self.agent_id = budget.spec.scope.agent_id
        """The agent that it is about, which waits for room as tasks do."""
        self.spent = 0
        self.reserved = 0
        self.holds: dict[str, Hold] = {}
        """By the id of a task or reservation."""
        self.slices: dict[int, int] = {}
        self._untouched: dict[int, bytes] = {}
        self.waiting: set[int] = set()
        """Classes of needs that tasks were parked under. Those without a task do no harm."""
        self.paused: dict[str, None] = {}
        """Tasks whose attempts are told to use no more until there is room."""
        status = budget.status
        self.extended = units_of(status.extended_by) if status.HasField("extended_by") else 0
        self.extension_end_ns = timestamp_ns(status.extension_end_time)
        self.crossed = frozenset(status.crossed_percents)
        self.lifted = frozenset(status.lifted_percents)
        self.end_ns = timestamp_ns(status.window_end_time)
        self.say(budget)

    def say(self, budget: Budget) -> None:
        """Takes up what the budget says now."""
        spec = budget.spec
        self.limit = units_of(spec.limit)
        self.default_need = units_of(spec.default_estimate)
        self.actions: dict[int, BudgetAction.ValueType] = {one.percent: one.action for one in spec.thresholds}
        self.hard = self.actions.get(FULL, BUDGET_ACTION_NOTIFY) != BUDGET_ACTION_NOTIFY
        self.asks = self.actions.get(FULL) == BUDGET_ACTION_REQUIRE_APPROVAL
        self.usual = max(self.default_need, 1)
        self.judge()

    def judge(self) -> None:
        """Whether a threshold below the limit holds new work back, and which is the next one."""
        actions = self.actions
        most = self.limit + self.extended
        ahead = [-(-percent * most // FULL) for percent in actions if percent not in self.crossed]
        self._next_mark = min(ahead, default=_NEVER)
        self.stopped = any(
            percent < FULL and actions.get(percent, BUDGET_ACTION_NOTIFY) != BUDGET_ACTION_NOTIFY
            for percent in self.crossed - self.lifted
        )

    # -- what may start ----------------------------------------------------------------------

    @property
    def room(self) -> int:
        """What is left; negative where more was used than estimated."""
        return self.limit + self.extended - self.spent - self.reserved

    def blocks(self, need: int) -> bool:
        """Whether work that needs so much has to wait."""
        return self.stopped or (self.hard and need > self.limit + self.extended - self.spent - self.reserved)

    def name_for(self, need: int) -> str:
        """Under which name work that needs so much waits: that of its class, whose needs are nearly alike."""
        return f"budget/{self.budget_id}/{class_of(need)}"

    def tries(self, need_class: int) -> int:
        """How many of a class may try."""
        if self.stopped:
            return 0
        if not self.hard or (need_class == 0 and self.room >= 0):
            return _MOST_TRIES
        return max(0, min(_MOST_TRIES, self.room // max(need_class, 1)))

    # -- changes -----------------------------------------------------------------------------

    def hold(self, holder_id: str, need: int) -> Hold:
        """Reserves so much for a holder, whatever the room."""
        hold = Hold(self, need, need)
        self.load_hold(holder_id, hold)
        self._state.on_rollback(self._unhold, holder_id, hold)
        return hold

    def load_hold(self, holder_id: str, hold: Hold) -> None:
        """Takes over a hold."""
        self.holds[holder_id] = hold
        self.reserved += hold.reserved

    def _unhold(self, holder_id: str, hold: Hold) -> None:
        del self.holds[holder_id]
        self.reserved -= hold.reserved

    def release(self, holder_id: str) -> None:
        """The work of a holder has ended: what it has not used is free; of what was let beyond the limit, nobody's."""
        hold = self.holds[holder_id]
        if unused := min(hold.let, hold.reserved, self.extended):
            self.set(extended=self.extended - unused)
        self._unhold(holder_id, hold)
        self._state.on_rollback(self.load_hold, holder_id, hold)

    def extend_hold(self, hold: Hold, by: int) -> None:
        """Reserves more for a holder that has used up what it had."""
        self._change(hold, hold.granted + by, hold.reserved + by, hold.spent)

    def use(self, hold: Hold, units: int) -> None:
        """A holder has used so much of what is reserved for it; the spending itself is `spend`'s."""
        self._change(hold, hold.granted, max(0, hold.reserved - units), hold.spent + units)

    def _change(self, hold: Hold, granted: int, reserved: int, spent: int) -> None:
        self._state.on_rollback(self._restore_hold, hold, hold.granted, hold.reserved, hold.spent)
        self._restore_hold(hold, granted, reserved, spent)

    def _restore_hold(self, hold: Hold, granted: int, reserved: int, spent: int) -> None:
        self.reserved += reserved - hold.reserved
        hold.restore(granted, reserved, spent)

    def spend(self, units: int, most: int = MOST_SUM) -> None:
        """So much was used; a negative number takes back, of the latest slices, at most what is there.

        Raises USAGE_LIMIT where more than `most` would be spent.
        """
        if units > 0 and self.spent + units > most:
            raise self._too_much(most)
        slice_ns = self.window.slice_of(self._state.now_ns)
        if units >= 0:
            self._spend_in(slice_ns, units)
            return
        for slice_ns in sorted(self.slices, reverse=True):
            taken = min(-units, self.slices[slice_ns])
            if taken:
                self._spend_in(slice_ns, -taken)
                units += taken

    def _too_much(self, most: int) -> KapellError:
        return KapellError(
            ERROR_REASON_USAGE_LIMIT,
            f"Budget {self.budget_id} cannot sum more than {words(self.measure, most)}. Check the figures; "
            "where what it has is wrong, delete the budget and make it anew.",
            metadata={"limit": str(most), "budget_id": self.budget_id},
        )

    def _spend_in(self, slice_ns: int, units: int) -> None:
        state = self._state
        total = self.slices.get(slice_ns, 0) + units
        state.assign(self.slices, slice_ns, total)
        state.assign(state.pending.budget_spend, (self.budget_id, slice_ns), total)
        self.set(spent=self.spent + units)

    def set(self, **values: Any) -> None:
        """Sets attributes so that it can be undone, and judges anew."""
        self._state.on_rollback(self._set, {name: getattr(self, name) for name in values})
        self._set(values)

    def _set(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        if "spent" not in values or len(values) > 1:
            self.judge()

    # -- time --------------------------------------------------------------------------------

    def next_ns(self) -> int:
        """When something of what was spent comes back, or an extension ends; 0 for never."""
        times = [self.window.leaves_ns(slice_ns) for slice_ns, units in self.slices.items() if units]
        if isinstance(self.window, Calendar):
            times = [self.end_ns]
        return min((time for time in (*times, self.extension_end_ns) if time), default=0)

    def is_over(self) -> bool:
        """Whether anything has left the window by now: whoever spends rolls first, however late the timer is."""
        now = self._state.now_ns
        leaves_ns = self.end_ns if isinstance(self.window, Calendar) else 0
        if isinstance(self.window, Rolling) and self.slices:
            leaves_ns = self.window.leaves_ns(min(self.slices))
        return 0 < leaves_ns <= now or 0 < self.extension_end_ns <= now

    def roll(self) -> bool:
        """Lets go what has left the window by now. Whether anything has."""
        state = self._state
        now = state.now_ns
        if isinstance(self.window, Calendar) and now >= self.end_ns:
            self.set(end_ns=self.window.span(now).end_ns, lifted=frozenset())
            self._end_extension()
            moved = True
        else:
            moved = 0 < self.extension_end_ns <= now
            if moved:
                self._end_extension()
        gone = [slice_ns for slice_ns in self.slices if 0 < self.window.leaves_ns(slice_ns) <= now]
        for slice_ns in gone:
            self.set(spent=self.spent - self.slices[slice_ns])
            state.remove(self.slices, slice_ns)
            state.assign(state.pending.budget_spend, (self.budget_id, slice_ns), 0)
        return moved or bool(gone)

    def _end_extension(self) -> None:
        self.set(extended=0, extension_end_ns=0)
        for hold in self.holds.values():
            if hold.let:
                self._state.on_rollback(setattr, hold, "let", hold.let)
                hold.let = 0

    def left_behind(self) -> frozenset[int]:
        """Thresholds that were crossed and are not any more."""
        eased, whole = _EASE if isinstance(self.window, Rolling) else (1, 1)
        most = self.limit + self.extended
        gone = self.crossed - self.actions.keys()
        return gone | {p for p in self.crossed if self.spent * FULL * whole < p * most * eased}

    def newly_crossed(self) -> list[int]:
        """Thresholds that what is spent has come to, ascending."""
        if self.spent < self._next_mark:
            return []
        most = self.limit + self.extended
        return sorted(p for p in self.actions if p not in self.crossed and self.spent * FULL >= p * most)

    def untouched(self, need: int) -> bytes:
        """What an attempt holds when it begins, as part of a TaskAttempt: the same for all that need as much."""
        found = self._untouched.get(need)
        if found is None:
            if len(self._untouched) >= _MOST_REMEMBERED:
                self._untouched.clear()
            found = self._untouched[need] = TaskAttempt(budget_holds=[self.describe_hold(need, 0)]).SerializeToString()
        return found

    def describe_hold(self, reserved: int, spent: int, overrun: int = 0, let: int = 0) -> BudgetHold:
        """A hold, as a message."""
        told = BudgetHold(budget_id=self.budget_id)
        set_amount(told.reserved, self.measure, reserved)
        set_amount(told.spent, self.measure, spent)
        if overrun:
            set_amount(told.overrun, self.measure, overrun)
        if let:
            set_amount(told.granted, self.measure, let)
        return told

    # -- for people --------------------------------------------------------------------------

    @property
    def state(self) -> BudgetState.ValueType:
        """Whether new work gets through."""
        holding = [
            percent
            for percent in self.crossed - self.lifted
            if self.actions.get(percent, BUDGET_ACTION_NOTIFY) != BUDGET_ACTION_NOTIFY
        ]
        if not holding:
            return BUDGET_STATE_OPEN
        asks = any(self.actions[percent] == BUDGET_ACTION_REQUIRE_APPROVAL for percent in holding)
        return BUDGET_STATE_AWAITING_APPROVAL if asks else BUDGET_STATE_STOPPED

    def describe(self, status: BudgetStatus) -> None:
        """Fills in an empty status."""
        measure = self.measure
        status.state = self.state
        set_amount(status.spent, measure, self.spent)
        set_amount(status.reserved, measure, self.reserved)
        set_amount(status.remaining, measure, max(0, self.room))
        if self.extended:
            set_amount(status.extended_by, measure, self.extended)
            if self.extension_end_ns:
                stamp(status.extension_end_time, self.extension_end_ns)
        span = self.window.span(self._state.now_ns)
        if span.start_ns and not isinstance(self.window, Calendar):
            stamp(status.window_start_time, span.start_ns)
        elif self.end_ns:
            stamp(status.window_start_time, self.window.span(self.end_ns - 1).start_ns)
            stamp(status.window_end_time, self.end_ns)
        if next_ns := self.next_ns():
            stamp(status.reset_time, next_ns)
        status.crossed_percents.extend(sorted(self.crossed))
        status.lifted_percents.extend(sorted(self.lifted))
        status.holders = len(self.holds)
        status.paused = len(self.paused)
        if self.room < 0:
            set_amount(status.overrun, measure, -self.room)


def class_of(need: int) -> int:
    """A number that is not above the need, nor more than a thirtieth below it: so there are few of them."""
    shift = max(0, need.bit_length() - 6)
    return need >> shift << shift
