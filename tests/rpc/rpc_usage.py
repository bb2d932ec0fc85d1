"""The part of rpc_table about usage and prices."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message
from google.type.money_pb2 import Money
from kapell.v1 import price_pb2, task_pb2, usage_pb2
from kapell.v1.watch_pb2 import WatchOptions
from kapell.v1.worker_pb2 import LEASE_DIRECTIVE_LOST, ReportUsageRequest

from tests.rpc.rpc_cases import Case, Make, of_lease, of_lease_worker, of_watch
from tests.rpc.scene import Ask, Scene


def subject_of(message: Message | None) -> str:
    """The price that a message is about, as "price/ID"; empty for other messages."""
    if isinstance(message, (price_pb2.SetPriceResponse, price_pb2.GetPriceResponse)):
        return f"price/{message.price.price_id}"
    return f"price/{message.price_id}" if isinstance(message, price_pb2.DeletePriceRequest) else ""


def alter(request: Any) -> bool:
    """Makes another request of one about usage or prices; False for one about something else."""
    match request:
        case usage_pb2.RecordUsageRequest():
            request.records[0].model = "another"
        case usage_pb2.RepriceUsageRequest():
            request.include_reported = True
        case price_pb2.SetPriceRequest():
            request.price.source = "another"
        case price_pb2.DeletePriceRequest():
            request.price_id = "price_another"
        case _:
            return False
    return True


def use(scene: Scene, **fields: Any) -> usage_pb2.UsageRecord:
    """One call of a model."""
    tokens = usage_pb2.TokenCounts(uncached_input_tokens=1000, output_tokens=100)
    said = {"model": "claude-sonnet-4-5", "tokens": tokens, **fields}
    return usage_pb2.UsageRecord(record_id=scene.name("msg_"), **said)


def recorded(scene: Scene) -> usage_pb2.UsageRecord:
    """A record of the ledger, for a task of its own."""
    record = use(scene, task_id=scene.queued().task_id)
    scene.ask("RecordUsage", usage_pb2.RecordUsageRequest(records=[record]))
    return record


def new_price(scene: Scene, **fields: Any) -> price_pb2.SetPriceRequest:
    rates = price_pb2.TokenRates(input=Money(units=1), output=Money(units=2))
    return price_pb2.SetPriceRequest(
        price=price_pb2.Price(provider="acme", model=scene.name("model-"), rates=rates), **fields
    )


def priced(scene: Scene) -> price_pb2.Price:
    """A price that was set."""
    answer = scene.ask("SetPrice", new_price(scene))
    price: price_pb2.Price = answer.price
    return price


def _too_dear(scene: Scene) -> Ask:
    request = new_price(scene)
    request.price.rates.input.currency_code = "EUR"
    return Ask(request)


def _stale(scene: Scene) -> Ask:
    known = priced(scene)
    request = price_pb2.SetPriceRequest(price=known, etag="other")
    return Ask(request)


def _summed(scene: Scene) -> Ask:
    record = recorded(scene)
    return Ask(usage_pb2.QueryUsageRequest(filter=usage_pb2.UsageFilter(task_ids=[record.task_id]), group_by=["model"]))


def _listed(scene: Scene) -> Ask:
    record = recorded(scene)
    return Ask(usage_pb2.ListUsageRecordsRequest(record_ids=[record.record_id]))


def _watched(scene: Scene) -> Ask:
    recorded(scene)
    return Ask(usage_pb2.WatchUsageRequest(options=WatchOptions(send_initial_state=True)))


def _anew(scene: Scene) -> Ask:
    record = use(scene, model=scene.name("model-"), provider="acme")
    scene.ask("RecordUsage", usage_pb2.RecordUsageRequest(records=[record]))
    rates = price_pb2.TokenRates(input=Money(units=1), output=Money(units=2))
    price = price_pb2.Price(provider="acme", model=record.model, rates=rates)
    scene.ask("SetPrice", price_pb2.SetPriceRequest(price=price))
    return Ask(usage_pb2.RepriceUsageRequest(filter=usage_pb2.UsageFilter(models=[record.model])))


def _of_a_deleted_task(scene: Scene) -> Ask:
    """What an attempt has used is taken whatever became of it, as long as its task is there."""
    running = scene.succeeded()
    late = Ask(ReportUsageRequest(lease_token=running.lease_token, records=[use(scene)]), running.worker.token)
    assert scene.call("ReportUsage", late).directive == LEASE_DIRECTIVE_LOST
    scene.ask("DeleteTask", task_pb2.DeleteTaskRequest(task_id=running.task_id))
    return late


def _refused_usage() -> dict[str, Make]:
    of_all = of_lease(ReportUsageRequest, records=[usage_pb2.UsageRecord(record_id="r")])
    del of_all["LEASE_LOST: the attempt has ended"]
    return {**of_all, "LEASE_LOST: its task was deleted": _of_a_deleted_task}


REPORT_USAGE = Case(
    works=lambda scene: of_lease_worker(ReportUsageRequest, records=[use(scene)])(scene),
    holds=lambda answer: [outcome.version for outcome in answer.outcomes] == [1],
    refused=_refused_usage(),
    malformed=({"leaseToken": "t"}, "records"),
)

USAGE: dict[str, Case] = {
    "RecordUsage": Case(
        works=lambda scene: Ask(usage_pb2.RecordUsageRequest(records=[use(scene), use(scene)])),
        holds=lambda answer: [outcome.version for outcome in answer.outcomes] == [1, 1],
        malformed=(
            {"records": [{"recordId": "a", "tokens": {"outputTokens": "-1"}}]},
            "records[0].tokens.output_tokens",
        ),
    ),
    "QueryUsage": Case(
        works=_summed,
        holds=lambda answer: [(row.group[0], row.usage.records) for row in answer.rows] == [("claude-sonnet-4-5", 1)],
        refused={
            "REQUEST_INVALID: no such zone": lambda scene: Ask(
                usage_pb2.QueryUsageRequest(time_zone="Europe/Atlantis")
            ),
            "USAGE_QUERY_TOO_LARGE": lambda scene: Ask(
                usage_pb2.QueryUsageRequest(start_time={"seconds": 1_600_000_000}, bucket=usage_pb2.USAGE_BUCKET_MINUTE)
            ),
        },
        malformed=({"groupBy": ["colour"]}, "group_by[0]"),
    ),
    "ListUsageRecords": Case(
        works=_listed,
        holds=lambda answer: [record.version for record in answer.records] == [1],
        refused={
            "PAGE_TOKEN_INVALID: damaged": lambda scene: Ask(
                usage_pb2.ListUsageRecordsRequest(page_token="not-a-token")
            ),
        },
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "WatchUsage": Case(
        works=_watched,
        holds=lambda answer: bool(answer.bookmark.log_id or answer.events),
        refused=of_watch(usage_pb2.WatchUsageRequest),
        malformed=({"options": {"sendInitialState": True, "startAfterRevision": "1"}}, "options"),
        lasts=lambda scene: Ask(usage_pb2.WatchUsageRequest()),
    ),
    "RepriceUsage": Case(
        works=_anew,
        holds=lambda answer: answer.changed == 1 and not answer.more,
        malformed=({"requestId": "x" * 65}, "request_id"),
    ),
    "EstimateCost": Case(
        works=lambda scene: Ask(
            usage_pb2.EstimateCostRequest(
                model="claude-sonnet-4-5", tokens=usage_pb2.TokenCounts(output_tokens=1000), runs=3
            )
        ),
        holds=lambda answer: (answer.cost.nanos, answer.cost_per_run.nanos) == (45_000_000, 15_000_000),
        refused={
            "TEMPLATE_NOT_FOUND": lambda scene: Ask(usage_pb2.EstimateCostRequest(template_id="nothing-like-it")),
            "REQUEST_INVALID: more reasoning than output": lambda scene: Ask(
                usage_pb2.EstimateCostRequest(model="gpt-5", tokens=usage_pb2.TokenCounts(reasoning_tokens=1))
            ),
        },
        malformed=({}, ""),
    ),
    "ListPrices": Case(
        works=lambda scene: Ask(price_pb2.ListPricesRequest(provider="acme", model=priced(scene).model)),
        holds=lambda answer: [price.provider for price in answer.prices] == ["acme"] and bool(answer.shipped_date),
        refused={"PAGE_TOKEN_INVALID: damaged": lambda scene: Ask(price_pb2.ListPricesRequest(page_token="no-token"))},
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "GetPrice": Case(
        works=lambda scene: Ask(price_pb2.GetPriceRequest(model=priced(scene).model)),
        holds=lambda answer: answer.price.provider == "acme",
        refused={"PRICE_NOT_FOUND: no price": lambda scene: Ask(price_pb2.GetPriceRequest(model="nobody-knows"))},
        malformed=({}, "model"),
    ),
    "SetPrice": Case(
        works=lambda scene: Ask(new_price(scene)),
        holds=lambda answer: answer.price.revision == answer.revision and answer.price.price_id.startswith("price_"),
        refused={"REQUEST_INVALID: euros": _too_dear, "ETAG_MISMATCH": _stale},
        malformed=({"price": {"provider": "No Spaces", "model": "m"}}, "price.provider"),
    ),
    "DeletePrice": Case(
        works=lambda scene: Ask(price_pb2.DeletePriceRequest(price_id=priced(scene).price_id)),
        holds=lambda answer: answer.revision > 0,
        refused={"PRICE_NOT_FOUND": lambda scene: Ask(price_pb2.DeletePriceRequest(price_id="price_nothing"))},
        malformed=({}, "price_id"),
    ),
}

_RATES = {"input": {"units": "1"}, "output": {"units": "2"}}
VALID_OF_USAGE: dict[str, dict[str, Any]] = {
    "RecordUsage": {"records": [{"recordId": "a"}]},
    "EstimateCost": {"model": "gpt-5"},
    "GetPrice": {"model": "gpt-5"},
    "SetPrice": {
        "price": {"provider": "acme", "model": "m", "rates": {"input": {"units": "1"}, "output": {"units": "2"}}}
    },
    "DeletePrice": {"priceId": "price_1"},
    "ReportUsage": {"leaseToken": "t", "records": [{"recordId": "a"}]},
}
"""Requests that pass validation, of the methods that require something."""
