"""What work will cost: tokens of a model by its price, or a template by what its tasks did cost."""

from __future__ import annotations

from collections.abc import Sequence

from kapell.v1.error_pb2 import ERROR_REASON_REQUEST_INVALID
from kapell.v1.usage_pb2 import CostHistory, EstimateCostRequest, EstimateCostResponse

from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.usage.figures import Figures, Sums, money, rounded


def estimate_model(state: State, request: EstimateCostRequest) -> EstimateCostResponse:
    """What runs of a model cost, by the price that counts now."""
    figures = Figures.of(request.tokens)
    if figures.reasoning > figures.output:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            "tokens.reasoning_tokens are a part of tokens.output_tokens and cannot be more. Correct them.",
            violations=(("tokens.reasoning_tokens", "must not be more than output_tokens"),),
        )
    cost = state.usage.prices.cost(
        request.provider.lower(), request.model, state.now_ns, figures, request.units, request.service_tier
    )
    response = EstimateCostResponse(price_id=cost.price_id, revision=state.revision)
    if cost.nanos is None:
        response.note = f"unpriced: {cost.why}"
        return response
    put_runs(response, cost.nanos, request.runs)
    if cost.guessed:
        response.note = "the price says nothing of some kinds of tokens; they are reckoned as uncached input"
    return response


def put_runs(response: EstimateCostResponse, per_run: int, runs: int) -> None:
    """Sets what one run and all of them cost."""
    response.cost_per_run.CopyFrom(money(per_run))
    response.cost.CopyFrom(money(per_run * (runs or 1)))


def history_of(totals: Sequence[Sums]) -> CostHistory:
    """What tasks did cost, as percentiles: at least so many of 100 cost at most that."""
    costs = sorted(total.cost for total in totals)
    history = CostHistory(tasks=len(costs), unpriced_tasks=sum(total.unpriced > 0 for total in totals))
    if costs:
        history.p50.CopyFrom(money(_percentile(costs, 50)))
        history.p95.CopyFrom(money(_percentile(costs, 95)))
        history.highest.CopyFrom(money(costs[-1]))
        history.mean.CopyFrom(money(rounded(sum(costs), len(costs))))
    return history


def _percentile(costs: Sequence[int], percent: int) -> int:
    """The nearest rank: the smallest of them that `percent` of 100 do not exceed."""
    return costs[max(0, -(-len(costs) * percent // 100) - 1)]
