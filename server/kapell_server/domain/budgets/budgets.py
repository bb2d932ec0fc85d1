"""All budgets: what attempts reserve, what usage settles, and what happens at thresholds.

Owned by State. An attempt reserves in the change that begins it (`take`), its holds are kept in its row
(`attach`), usage moves amounts from reserved to spent (`settle`), and the change that ends it releases the rest
(`finish`). Sums are in memory; durable are what was spent in each slice, and the holds. Events of a budget come
when it is changed, when a threshold is crossed, and else at most every two seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapell.v1.alert_pb2 import ALERT_KIND_BUDGET_THRESHOLD
from kapell.v1.budget_pb2 import (
    BUDGET_ACTION_CANCEL,
    BUDGET_ACTION_REQUIRE_APPROVAL,
    Budget,
    BudgetStatus,
    Reservation,
)
from kapell.v1.task_pb2 import (
    ATTEMPT_STATE_RELEASED,
    ATTEMPT_STATE_SUCCEEDED,
    Task,
    TaskAttempt,
)
from kapell.v1.watch_pb2 import EVENT_KIND_BUDGET_SPENT, EventKind

from kapell_server.domain.approvals import for_budgets
from kapell_server.domain.budgets import edges
from kapell_server.domain.budgets.amounts import milliseconds, units_of, words
from kapell_server.domain.budgets.history import History, Used
from kapell_server.domain.budgets.scopes import Features, Needs, Scopes, features_of
from kapell_server.domain.budgets.shown import describe, differs
from kapell_server.domain.budgets.tally import FULL, Hold, Tally
from kapell_server.domain.copied import copied
from kapell_server.domain.times import SECOND, timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State
    from kapell_server.domain.workers.leases import Lease

_TELL_AFTER_NS = 2 * SECOND
"""How old the figures of a budget's latest event may be while they change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settlement:
    """Usage that was recorded, or, with negative numbers, was recorded wrongly before.

    `task_id` and `attempt` where it is of a task; `features` where that task is not known here.
    """

    cost: int
    """Billionths of a dollar."""
    tokens: int
    task_id: str = ""
    attempt: int = 0
    agent_id: str = ""
    features: Features | None = None


class Budgets:
    """The tallies of all budgets, and who holds what."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.tallies: dict[str, Tally] = {}
        self.reservations: dict[str, Reservation] = {}
        self.history = History(state)
        self._held: dict[str, tuple[Hold, ...]] = {}
        self.at_edge: dict[str, None] = {}
        """Tasks whose attempts may be at the edge of what is reserved for them, or may go on. Hints; see `edges`."""
        self._used: dict[str, tuple[int, int]] = {}
        """Cost and tokens that the running attempt of a task has recorded."""
        self._scopes: Scopes | None = None

    # -- which budgets there are ---------------------------------------------------------------

    @property
    def scopes(self) -> Scopes:
        """The budgets by scope."""
        if self._scopes is None:
            find = self._state.standing.find
            pairs = [(find(Budget, budget_id), tally) for budget_id, tally in self.tallies.items()]
            self._scopes = Scopes((budget, tally) for budget, tally in pairs if budget is not None)
        return self._scopes

    def open(self, budget: Budget) -> Tally:
        """A budget is created; whoever calls puts it."""
        state = self._state
        tally = Tally(state, budget)
        tally.end_ns = tally.window.span(state.now_ns).end_ns
        state.assign(self.tallies, budget.budget_id, tally)
        self.rescope()
        return tally

    def close(self, tally: Tally) -> None:
        """A budget is deleted; whoever calls puts it. Those that wait for it, and those it has holds of, are free."""
        state = self._state
        for holder_id in list(tally.holds):
            if holder_id in self._held:
                kept = tuple(hold for hold in self._held[holder_id] if hold.tally is not tally)
                state.assign(self._held, holder_id, kept)
                self.write_holds(holder_id)
            else:
                self.drop_reservation(holder_id)
        for slice_ns in tally.slices:
            state.assign(state.pending.budget_spend, (tally.budget_id, slice_ns), 0)
        for percent in tally.crossed:
            self._resolve(tally, percent)
        self.at_edge.update(tally.paused)
        for_budgets.forget(state, tally.budget_id)
        state.remove(self.tallies, tally.budget_id)
        self.rescope()
        for need_class in sorted(tally.waiting):
            state.queues.retry(f"budget/{tally.budget_id}/{need_class}")

    def rescope(self) -> None:
        self._scopes = None
        self._state.on_rollback(setattr, self, "_scopes", None)

    def needs_changed(self, tally: Tally) -> None:
        """A budget reckons otherwise with what tasks need that say nothing: who waits for it is looked at anew."""
        self.rescope()
        self.at_edge.update(tally.paused)
        for need_class in sorted(tally.waiting):
            self._state.queues.let_all_try(f"budget/{tally.budget_id}/{need_class}")

    def needs(self, task: Task) -> Needs:
        """The budgets that a task draws from whatever agent gets it, each with what it needs of it."""
        return self.scopes.needs(task, self.history.of(task.template_id)) if self.tallies else ()

    def agent_lacks(self, agent_id: str, task: Task) -> Tally | None:
        """The budget of an agent that has no room for a task; None where it may get it."""
        if not self.tallies or not (tallies := self.scopes.of_agent(agent_id)):
            return None
        needs = self.scopes.needs_of(task, tallies, self.history.of(task.template_id))
        return next((tally for tally, need in needs if tally.blocks(need)), None)

    def agent_is_stopped(self, agent_id: str) -> bool:
        """Whether a budget of an agent lets nothing start, however little it needs."""
        return any(tally.blocks(0) for tally in self.scopes.of_agent(agent_id))

    def held(self, task_id: str) -> tuple[Hold, ...]:
        """What the running attempt of a task has of budgets."""
        return self._held.get(task_id, ())

    # -- the life of an attempt ----------------------------------------------------------------

    def take(self, task: Task) -> None:
        """An attempt begins: reserves what it needs of every budget."""
        if not self.tallies:
            return
        needs = self.scopes.admitted(task)
        if needs is None:
            needs = self.needs(task)
        if tallies := self.scopes.of_agent(task.lease.agent_id):
            named = {tally for tally, _ in needs}  # A task may name the budget of its agent.
            others = [tally for tally in tallies if tally not in named]
            needs += self.scopes.needs_of(task, others, self.history.of(task.template_id))
        if needs:
            held = tuple([tally.hold(task.task_id, need) for tally, need in needs])
            self._state.assign(self._held, task.task_id, held)
            for tally, _ in needs:
                self.stir(tally)

    def attach(self, lease: Lease) -> None:
        """The attempt's row keeps what it holds."""
        held = self._held.get(lease.task_id)
        if not held:
            return
        describe(lease.record, held)
        edges.watch_time(self._state, lease)

    def finish(self, lease: Lease, record: TaskAttempt, *, worked: bool) -> None:
        """The attempt has ended as `record` says: what it has not used is free. Does not put the record.

        One that is RELEASED costs nothing but, where its agent has `worked`, its time.
        """
        cost, tokens = self._used.get(lease.task_id, (None, None))
        self._state.remove(self._used, lease.task_id)
        elapsed = milliseconds(max(0, self._state.now_ns - lease.start_ns))
        if record.state == ATTEMPT_STATE_SUCCEEDED and self.tallies:
            task = self._state.find_task(lease.task_id)
            if task is not None:
                self.history.note(task.template_id, Used(cost, tokens, elapsed))
        held = self._held.get(lease.task_id)
        if held is None:
            return
        edges.leave(self._state, lease.task_id)
        self._state.remove(self._held, lease.task_id)
        counts = record.state != ATTEMPT_STATE_RELEASED
        amounts = {"tasks": int(counts), "wall_time": elapsed if counts or worked else 0}
        for hold in held:
            if units := amounts.get(hold.tally.measure, 0):
                self.turn(hold.tally)
                hold.tally.use(hold, units)
                hold.tally.spend(units)
            hold.tally.release(lease.task_id)
        record.ClearField("budget_holds")
        describe(record, held, ended=True)
        for hold in held:
            if hold.let:
                # In the change itself: what is left of the limit is kept with the budget.
                self.put(hold.tally, EVENT_KIND_BUDGET_SPENT, ("status",))
            self.note(hold.tally)

    def settle(self, usage: Settlement, instead_of: Settlement | None = None) -> None:
        """Usage was recorded: it is spent of every budget that applies, and of what its attempt has reserved.

        Counts when it is recorded, whenever it was. `instead_of` is what was recorded before as somebody else's use:
        it is taken back where it was spent. To be called in the change that records it.
        """
        if not self.tallies or not (usage.cost or usage.tokens or instead_of):
            return
        state = self._state
        task = state.find_task(usage.task_id) if usage.task_id else None
        lease = state.leases.by_task.get(usage.task_id)
        if lease is not None and usage.attempt and lease.attempt != usage.attempt:
            lease = None
        held = self._held.get(usage.task_id, ()) if lease is not None else ()
        if lease is not None:
            cost, tokens = self._used.get(usage.task_id, (0, 0))
            state.assign(self._used, usage.task_id, (cost + usage.cost, tokens + usage.tokens))
        by_tally = {hold.tally: hold for hold in held}
        agent_id = usage.agent_id or (lease.agent_id if lease is not None else "")
        used = dict.fromkeys(by_tally, 0) | self._drawn(usage, task, agent_id)
        used = {tally: _units(usage, tally) for tally in used}
        if instead_of is not None:
            before = state.find_task(instead_of.task_id) if instead_of.task_id else None
            for tally in self._drawn(instead_of, before, instead_of.agent_id):
                used[tally] = used.get(tally, 0) - _units(instead_of, tally)
        used = {tally: units for tally, units in used.items() if units}
        for tally, units in used.items():
            self.turn(tally)
            if tally in by_tally and units > 0:
                tally.use(by_tally[tally], units)
            tally.spend(units)
        for tally, units in used.items():
            if units < 0:
                self._leave(tally)
            self.note(tally)
        if lease is not None and any(tally in by_tally for tally in used):
            self.write_holds(usage.task_id)
            if any(hold.spent >= hold.granted for hold in held):
                self.at_edge[usage.task_id] = None

    def _drawn(self, usage: Settlement, task: Task | None, agent_id: str) -> dict[Tally, int]:
        """The budgets that usage is spent of, whoever has reserved."""
        features = features_of(task) if task is not None else usage.features or Features()
        return dict.fromkeys(self.scopes.matching(features) + self.scopes.of_agent(agent_id), 0)

    # -- time ----------------------------------------------------------------------------------

    def look(self, budget_id: str) -> None:
        """Does what time asks of a budget: lets go what has left its window, and tells of its figures."""
        tally = self.tallies.get(budget_id)
        if tally is None:
            return
        self.turn(tally)
        if differs(self.budget(tally).status, self.status(tally)):
            self.put(tally, EVENT_KIND_BUDGET_SPENT, ("status",))
        self._state.schedule(tally.next_ns(), budget_id)

    def turn(self, tally: Tally) -> None:
        """Lets go what has left the window by now; whoever spends does so first, since the timer may be late."""
        if not tally.is_over():
            return
        let = [holder_id for holder_id, hold in tally.holds.items() if hold.let]
        if tally.roll():
            for holder_id in let:
                self.write_holds(holder_id)
            self._leave(tally)
            self.wake(tally)

    # -- thresholds ----------------------------------------------------------------------------

    def note(self, tally: Tally) -> None:
        """What is spent or reserved has changed: thresholds may be crossed, and those that wait may start."""
        for percent in tally.newly_crossed():
            self._cross(tally, percent)
        self.stir(tally)
        self.wake(tally)

    def wake(self, tally: Tally) -> None:
        """Lets those try that wait for the budget and could fit; where nothing can, and nothing will, tells so."""
        if tally.agent_id:
            self._state.polls.touch_agent(tally.agent_id)
        if tally.paused and not tally.blocks(1):
            self.at_edge.update(tally.paused)
        if tally.stopped or not (tally.waiting or tally.paused):
            return
        ready = self._state.queues.ready
        nothing_fits = bool(tally.paused) and not tally.asks and tally.blocks(tally.usual)
        for need_class in sorted(tally.waiting):
            name = f"budget/{tally.budget_id}/{need_class}"
            if tally.tries(need_class) > 0:
                self._state.queues.retry(name)
            elif ready.is_parked_under(name):
                nothing_fits = True
        if nothing_fits:
            self.want_of_room(tally)

    def parked(self, name: str) -> None:
        """A task was parked under a name of a budget."""
        _, budget_id, need_class = name.split("/")
        tally = self.tallies[budget_id]
        tally.waiting.add(int(need_class))
        self.want_of_room(tally)

    def want_of_room(self, tally: Tally) -> None:
        """What is left is too little for all that wait: the limit is reached, where nobody will give anything back."""
        if tally.reserved or tally.stopped or not tally.hard:
            return
        if FULL in tally.actions and FULL not in tally.crossed:
            for percent in sorted(tally.actions):
                if percent == FULL or (percent not in tally.crossed and percent in tally.newly_crossed()):
                    self._cross(tally, percent)

    def _cross(self, tally: Tally, percent: int) -> None:
        state = self._state
        tally.set(crossed=tally.crossed | {percent}, lifted=tally.lifted - {percent})
        budget = self.put(tally, EVENT_KIND_BUDGET_SPENT, ("status",))
        name = budget.spec.display_name
        text = f"Budget {name} has spent {self._spent_of(tally)}."
        if tally.spent * FULL < percent * (tally.limit + tally.extended):
            text = f"Budget {name} has spent {self._spent_of(tally)}; the rest is too little for any task that waits."
        state.alerts.fire(ALERT_KIND_BUDGET_THRESHOLD, tally.budget_id, text, percent=percent)
        action = tally.actions[percent]
        if action == BUDGET_ACTION_CANCEL:
            for task_id in [holder for holder in tally.holds if holder in state.leases.by_task]:
                edges.stop(state, task_id, self.told(tally))
        elif action == BUDGET_ACTION_REQUIRE_APPROVAL:
            for_budgets.ask(state, budget, tally)

    def _leave(self, tally: Tally) -> None:
        """Thresholds above what is spent by now are open again."""
        left = tally.left_behind()
        for percent in sorted(left):
            self._resolve(tally, percent)
        if left:
            tally.set(crossed=tally.crossed - left, lifted=tally.lifted - left)
            # In the change itself: a start goes by what the budget says of thresholds.
            self.put(tally, EVENT_KIND_BUDGET_SPENT, ("status",))
        for_budgets.look_again(self._state, tally)

    def review(self, tally: Tally) -> None:
        """The limit has changed: thresholds are crossed or left by it, and those that wait may start."""
        self._leave(tally)
        self.note(tally)
        self.at_edge.update(tally.paused)

    def _resolve(self, tally: Tally, percent: int) -> None:
        self._state.alerts.resolve(ALERT_KIND_BUDGET_THRESHOLD, tally.budget_id, percent=percent)

    # -- what others see -----------------------------------------------------------------------

    def status(self, tally: Tally) -> BudgetStatus:
        """How a budget stands right now."""
        status = BudgetStatus()
        tally.describe(status)
        return status

    def put(self, tally: Tally, kind: EventKind.ValueType, changed: tuple[str, ...]) -> Budget:
        """Records how a budget stands, with an event."""
        budget = copied(self.budget(tally))
        budget.status.CopyFrom(self.status(tally))
        return self._state.standing.put(budget, kind, changed)

    def stir(self, tally: Tally) -> None:
        """Its figures have changed: an event is due soon, and something may leave its window."""
        self._state.schedule(self._state.now_ns + _TELL_AFTER_NS, tally.budget_id)

    def budget(self, tally: Tally) -> Budget:
        """The budget that the figures are of, as it was put last."""
        budget = self._state.standing.find(Budget, tally.budget_id)
        assert budget is not None, "a tally is of a budget"
        return budget

    def told(self, tally: Tally) -> str:
        """As "budget nightly has spent $4.00 of $5.00"."""
        return f"budget {self.budget(tally).spec.display_name} has spent {self._spent_of(tally)}"

    def _spent_of(self, tally: Tally) -> str:
        """As "$4.00 of $5.00"."""
        limit = words(tally.measure, tally.limit + tally.extended)
        return f"{words(tally.measure, tally.spent)} of {limit}"

    def write_holds(self, task_id: str) -> None:
        """Keeps what a running attempt holds in its row."""
        lease = self._state.leases.by_task.get(task_id)
        if lease is None:
            return
        record = copied(lease.record)
        record.ClearField("budget_holds")
        describe(record, self._held.get(task_id, ()))
        self._state.on_rollback(setattr, lease, "record", lease.record)
        lease.record = record
        self._state.put_attempt(record, lease.poll_id)

    # -- reservations of callers -----------------------------------------------------------------

    def keep_reservation(self, reservation: Reservation) -> None:
        """Reserves for a caller what a reservation says."""
        state = self._state
        state.assign(self.reservations, reservation.reservation_id, reservation)
        state.assign(state.pending.reservations, reservation.reservation_id, reservation)
        tally = self.tallies[reservation.budget_id]
        tally.hold(reservation.reservation_id, units_of(reservation.amount))
        state.schedule(timestamp_ns(reservation.expire_time), reservation.reservation_id)

    def drop_reservation(self, reservation_id: str) -> None:
        """Releases what is left of a reservation."""
        state = self._state
        reservation = self.reservations[reservation_id]
        state.remove(self.reservations, reservation_id)
        state.assign(state.pending.reservations, reservation_id, None)
        self.tallies[reservation.budget_id].release(reservation_id)

    # -- the start, and between batches --------------------------------------------------------

    def load(self, spend: Iterable[tuple[str, int, int]], reservations: Iterable[Reservation]) -> None:
        """Takes over what the database has, after the standing resources and the leases."""
        state = self._state
        for budget in state.standing.all(Budget):
            tally = self.tallies[budget.budget_id] = Tally(state, budget)
            tally.end_ns = tally.end_ns or tally.window.span(state.now_ns).end_ns
            state.schedule(state.now_ns, budget.budget_id)
        for budget_id, slice_ns, units in spend:
            tally = self.tallies[budget_id]
            tally.slices[slice_ns] = units
            tally.spent += units
        for reservation in reservations:
            self.reservations[reservation.reservation_id] = reservation
            units = units_of(reservation.amount)
            self.tallies[reservation.budget_id].load_hold(
                reservation.reservation_id, Hold(self.tallies[reservation.budget_id], units, units)
            )
            state.schedule(timestamp_ns(reservation.expire_time), reservation.reservation_id)
        for lease in state.leases.by_task.values():
            self._load_holds(lease)

    def _load_holds(self, lease: Lease) -> None:
        state, held = self._state, []
        for one in lease.record.budget_holds:
            tally = self.tallies.get(one.budget_id)
            if tally is not None:
                reserved, spent = units_of(one.reserved), units_of(one.spent)
                overrun = units_of(one.overrun) if one.HasField("overrun") else 0
                let = units_of(one.granted) if one.HasField("granted") else 0
                hold = Hold(tally, reserved + spent - overrun, reserved, spent, let)
                tally.load_hold(lease.task_id, hold)
                held.append(hold)
        if held:
            self._held[lease.task_id] = tuple(held)
            if any(hold.spent and hold.spent >= hold.granted for hold in held):
                self.at_edge[lease.task_id] = None
            edges.watch_time(state, lease)

    def trim(self) -> None:
        """Forgets classes of needs that nobody waits with, once they are many; between batches only."""
        for tally in self.tallies.values():
            if len(tally.waiting) > _MANY_CLASSES:
                of, ready = f"budget/{tally.budget_id}/", self._state.queues.ready
                tally.waiting = {one for one in tally.waiting if ready.is_parked_under(f"{of}{one}")}


_MANY_CLASSES = 256


def _units(usage: Settlement, tally: Tally) -> int:
    """What usage is in the measure of a budget."""
    return {"cost": usage.cost, "tokens": usage.tokens}.get(tally.measure, 0)
