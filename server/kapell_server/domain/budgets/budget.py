"""What clients may do to a budget: create, read, update, resume, delete."""

from __future__ import annotations

from typing import cast

from google.protobuf.message import Message
from kapell.v1.budget_pb2 import (
    BUDGET_ACTION_NOTIFY,
    BUDGET_ACTION_STOP_ADMISSION,
    Budget,
    BudgetAmount,
    BudgetSpec,
    CreateBudgetRequest,
    DeleteBudgetRequest,
    DeleteBudgetResponse,
    GetBudgetRequest,
    GetBudgetResponse,
    ResumeBudgetRequest,
    UpdateBudgetRequest,
)
from kapell.v1.error_pb2 import ERROR_REASON_ID_TAKEN, ERROR_REASON_REQUEST_INVALID
from kapell.v1.watch_pb2 import EVENT_KIND_BUDGET_CREATED, EVENT_KIND_BUDGET_DELETED, EVENT_KIND_BUDGET_UPDATED

from kapell_server.domain.budgets.amounts import Measure, measure_of, set_amount, units_of
from kapell_server.domain.budgets.named import budget_not_found
from kapell_server.domain.budgets.resuming import resume, usual_extension
from kapell_server.domain.budgets.tally import FULL, Tally
from kapell_server.domain.budgets.windows import ZoneError, window_of
from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.tasks.task import check_etag
from kapell_server.domain.times import stamp

PREFIX = "budget_"
MOST_BUDGETS = 1_000
"""All of them are in memory."""
_SHARE_OF_LIMIT = 20
_DEFAULT_THRESHOLDS = ((50, BUDGET_ACTION_NOTIFY), (80, BUDGET_ACTION_NOTIFY), (FULL, BUDGET_ACTION_STOP_ADMISSION))


def create_budget(state: State, request: CreateBudgetRequest) -> Budget:
    """Creates a budget, of which nothing is spent yet."""
    if len(state.budgets.tallies) >= MOST_BUDGETS:
        raise invalid("spec", f"would be budget number {MOST_BUDGETS + 1}; {MOST_BUDGETS} are allowed, so delete one")
    budget_id = request.budget_id or state.new_id("budget")
    if budget_id in state.budgets.tallies:
        raise KapellError(
            ERROR_REASON_ID_TAKEN,
            f"Budget {budget_id} exists already. Choose another budget_id, or update this one.",
            metadata={"budget_id": budget_id},
        )
    if not request.spec.HasField("limit"):
        raise invalid("spec.limit", "is required")
    budget = Budget(budget_id=budget_id, spec=request.spec, creator=state.caller.actor())
    stamp(budget.create_time, state.tick_ns())
    budget.update_time.CopyFrom(budget.create_time)
    _fill_in(budget)
    _check_scope(state, budget.spec)
    try:
        window_of(budget.spec.window)
    except ZoneError as error:
        raise invalid("spec.window.calendar.time_zone", str(error)) from None
    tally = state.budgets.open(budget)
    budget.status.CopyFrom(state.budgets.status(tally))
    put = state.standing.put(budget, EVENT_KIND_BUDGET_CREATED, ())
    state.schedule(tally.next_ns(), budget_id)
    return put


def get_budget(state: State, request: GetBudgetRequest) -> GetBudgetResponse:
    """The budget as it stands right now."""
    tally = tally_of(state, request.budget_id)
    budget = copied(_find(state, tally))
    budget.status.CopyFrom(state.budgets.status(tally))
    return GetBudgetResponse(budget=budget, revision=state.revision)


def update_budget(state: State, request: UpdateBudgetRequest) -> Budget:
    """Sets the fields of the mask. What is spent stays; thresholds are looked at anew."""
    tally = tally_of(state, request.budget_id)
    current = _find(state, tally)
    check_etag(request.etag, current.etag)
    budget = copied(current)
    paths = frozenset(request.update_mask.paths)
    guessed = budget.spec.default_estimate == _guess(tally.measure, tally.limit)
    for path in sorted(paths):
        _set(budget.spec, request.spec, path)
    if "limit" in paths and guessed and "default_estimate" not in paths:
        budget.spec.ClearField("default_estimate")
    if not budget.spec.HasField("limit") or measure_of(budget.spec.limit) != tally.measure:
        raise invalid("spec.limit", f"must be of {tally.measure}, as it was: what a budget measures cannot be changed")
    _fill_in(budget)
    stamp(budget.update_time, state.tick_ns())
    needed = tally.default_need
    state.on_rollback(tally.say, current)
    tally.say(budget)
    if tally.default_need != needed:
        state.budgets.needs_changed(tally)
    budget.status.CopyFrom(state.budgets.status(tally))
    state.standing.put(budget, EVENT_KIND_BUDGET_UPDATED, tuple(f"spec.{path}" for path in sorted(paths)))
    if paths & {"limit", "thresholds"}:
        state.budgets.review(tally)
    return _find(state, tally)


def resume_budget(state: State, request: ResumeBudgetRequest) -> Budget:
    """Lifts what holds new work back, for the rest of the window."""
    tally = tally_of(state, request.budget_id)
    if request.HasField("extend_by"):
        return resume(state, tally, checked(request.extend_by, tally.measure, "extend_by"))
    return resume(state, tally, usual_extension(tally))


def delete_budget(state: State, request: DeleteBudgetRequest) -> DeleteBudgetResponse:
    """Deletes it; those that wait for it are free of it."""
    tally = tally_of(state, request.budget_id)
    budget = copied(_find(state, tally))
    budget.status.CopyFrom(state.budgets.status(tally))
    state.budgets.close(tally)
    gone = state.standing.put(budget, EVENT_KIND_BUDGET_DELETED, (), deleted=True)
    return DeleteBudgetResponse(revision=gone.revision)


def tally_of(state: State, budget_id: str) -> Tally:
    """The figures of a budget; BUDGET_NOT_FOUND where there is none."""
    tally = state.budgets.tallies.get(budget_id)
    if tally is None:
        raise budget_not_found(budget_id)
    return tally


def checked(amount: BudgetAmount, measure: Measure, field: str) -> int:
    """An amount in units. Refuses one of something else than the budget measures."""
    if measure_of(amount) != measure:
        raise invalid(field, f"must be of {measure}, which is what the budget measures")
    return units_of(amount)


def invalid(field: str, what: str) -> KapellError:
    """REQUEST_INVALID for one field."""
    return KapellError(
        ERROR_REASON_REQUEST_INVALID,
        f"The request is invalid: {field} {what}. Correct it and send it again.",
        violations=((field, what),),
    )


def _find(state: State, tally: Tally) -> Budget:
    budget = state.standing.find(Budget, tally.budget_id)
    assert budget is not None, "a tally is of a budget"
    return budget


def _fill_in(budget: Budget) -> None:
    """Puts defaults where the spec says nothing, and amounts into their usual form."""
    spec = budget.spec
    spec.display_name = spec.display_name or budget.budget_id.removeprefix(PREFIX)
    measure = measure_of(spec.limit)
    set_amount(spec.limit, measure, units_of(spec.limit))
    if spec.HasField("default_estimate"):
        set_amount(spec.default_estimate, measure, checked(spec.default_estimate, measure, "spec.default_estimate"))
    else:
        spec.default_estimate.CopyFrom(_guess(measure, units_of(spec.limit)))
    if not spec.thresholds:
        for percent, action in _DEFAULT_THRESHOLDS:
            spec.thresholds.add(percent=percent, action=action)
    for threshold in spec.thresholds:
        usual = BUDGET_ACTION_STOP_ADMISSION if threshold.percent == FULL else BUDGET_ACTION_NOTIFY
        threshold.action = threshold.action or usual
    spec.thresholds.sort(key=lambda one: one.percent)
    if spec.window.HasField("calendar"):
        spec.window.calendar.time_zone = spec.window.calendar.time_zone or "UTC"


def _guess(measure: Measure, limit: int) -> BudgetAmount:
    """What is reserved where nothing is known: a share of the limit."""
    guess = BudgetAmount()
    set_amount(guess, measure, 1 if measure == "tasks" else -(-limit // _SHARE_OF_LIMIT))
    return guess


def _check_scope(state: State, spec: BudgetSpec) -> None:
    """Refuses a tree that is none: its children would not be counted."""
    root_id = spec.scope.root_task_id
    task = state.find_task(root_id) if root_id else None
    if task is not None and task.root_task_id:
        raise invalid("spec.scope.root_task_id", f"must be a root; {root_id} is below {task.root_task_id}")


def _set(target: BudgetSpec, source: BudgetSpec, path: str) -> None:
    """Sets one field as it is in the source, which may be unset."""
    target.ClearField(path)  # type: ignore[arg-type]
    value = getattr(source, path)
    if path == "thresholds":
        target.thresholds.extend(value)
    elif BudgetSpec.DESCRIPTOR.fields_by_name[path].message_type is None:
        setattr(target, path, value)
    elif source.HasField(path):  # type: ignore[arg-type]
        getattr(target, path).CopyFrom(cast(Message, value))
