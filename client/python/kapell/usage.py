"""The faces for the ledger of usage and for prices. Thin; the server decides everything.

Costs are `google.type.Money` with exact nanos; `kapell.records.decimal` makes a Decimal of one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, TypedDict, Unpack

from google.type.money_pb2 import Money

from kapell.connection import Connection
from kapell.messages import Instant, new_request_id, timestamp, usage_bucket
from kapell.records import Dollars, dollars
from kapell.v1 import price_pb2
from kapell.v1 import usage_pb2 as pb
from kapell.v1.common_pb2 import LIST_ORDER_UNSPECIFIED, ListOrder
from kapell.v1.price_pb2_grpc import PriceServiceStub
from kapell.v1.usage_pb2_grpc import UsageServiceStub
from kapell.watch import Watch, WatchKeywords, split_start

if TYPE_CHECKING:
    from kapell.v1.price_pb2_grpc import PriceServiceAsyncStub
    from kapell.v1.usage_pb2_grpc import UsageServiceAsyncStub


class UsageQuery(TypedDict, total=False):
    """Which records are wanted."""

    agent_ids: Iterable[str]
    agent_types: Iterable[str]
    task_ids: Iterable[str]
    root_task_ids: Iterable[str]
    """In the trees below these."""
    template_ids: Iterable[str]
    providers: Iterable[str]
    models: Iterable[str]
    labels: Mapping[str, str]
    """All of them, with these values."""
    unpriced: bool
    """Only those without a price, or only the others."""


class UsageWatchKeywords(WatchKeywords, total=False):
    """Whose totals to watch, and how."""

    task_ids: Iterable[str]
    root_task_ids: Iterable[str]
    agent_ids: Iterable[str]


def usage_filter(**query: Unpack[UsageQuery]) -> pb.UsageFilter:
    """The message for a query of usage."""
    return pb.UsageFilter(
        agent_ids=query.get("agent_ids", ()),
        agent_types=query.get("agent_types", ()),
        task_ids=query.get("task_ids", ()),
        root_task_ids=query.get("root_task_ids", ()),
        template_ids=query.get("template_ids", ()),
        providers=query.get("providers", ()),
        models=query.get("models", ()),
        labels=query.get("labels", {}),
        unpriced=query.get("unpriced"),
    )


class Usage:
    """`client.usage`. A `request_id` makes a write repeatable by hand; left out, each call gets its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> UsageServiceAsyncStub:
        return self._connection.stub(UsageServiceStub)

    async def record(self, records: Iterable[pb.UsageRecord], *, request_id: str = "") -> list[pb.UsageOutcome]:
        """Takes up to 1000 records into the ledger, each once; an outcome for each, in their order.

        See `kapell.records.usage_record`. A record that is refused raises nothing: look at its outcome.
        """
        request = pb.RecordUsageRequest(records=records, request_id=request_id or new_request_id())
        return list((await self._connection.call(self._stub.RecordUsage, request)).outcomes)

    async def query(
        self,
        *,
        by: Iterable[str] = (),
        bucket: pb.UsageBucket.ValueType | str = pb.USAGE_BUCKET_UNSPECIFIED,
        start: Instant | None = None,
        end: Instant | None = None,
        time_zone: str = "",
        **query: Unpack[UsageQuery],
    ) -> pb.QueryUsageResponse:
        """Sums by time and group: `by` agent, agent_type, task, root_task, template, model, provider, label:NAME.

        `bucket` by value or word, as in "day"; days, weeks and months are those of `time_zone`. Without a
        start it is the last 30 days.
        """
        request = pb.QueryUsageRequest(
            start_time=timestamp(start),
            end_time=timestamp(end),
            bucket=usage_bucket(bucket),
            time_zone=time_zone,
            group_by=by,
            filter=usage_filter(**query),
        )
        return await self._connection.call(self._stub.QueryUsage, request)

    async def list(
        self,
        *,
        start: Instant | None = None,
        end: Instant | None = None,
        record_ids: Iterable[str] = (),
        include_superseded: bool = False,
        include_raw: bool = False,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 0,
        page_token: str = "",
        **query: Unpack[UsageQuery],
    ) -> pb.ListUsageRecordsResponse:
        """One page of records, those recorded last first unless ordered otherwise."""
        request = pb.ListUsageRecordsRequest(
            filter=usage_filter(**query),
            start_time=timestamp(start),
            end_time=timestamp(end),
            record_ids=record_ids,
            include_superseded=include_superseded,
            include_raw=include_raw,
            order=order,
            page_size=page_size,
            page_token=page_token,
        )
        return await self._connection.call(self._stub.ListUsageRecords, request)

    async def iterate(
        self,
        *,
        start: Instant | None = None,
        end: Instant | None = None,
        include_superseded: bool = False,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 500,
        **query: Unpack[UsageQuery],
    ) -> AsyncIterator[pb.UsageRecord]:
        """All records that match, page by page."""
        page_token = ""
        while True:
            page = await self.list(
                start=start,
                end=end,
                include_superseded=include_superseded,
                order=order,
                page_size=page_size,
                page_token=page_token,
                **query,
            )
            for record in page.records:
                yield record
            page_token = page.next_page_token
            if not page_token:
                return

    def watch(self, **keywords: Unpack[UsageWatchKeywords]) -> Watch[pb.UsageEvent]:
        """Totals of tasks and agents as they grow, at most once a second for each; see `Client.watch`."""
        start, query = split_start(keywords)
        wanted = pb.UsageUpdateFilter(
            task_ids=query.get("task_ids", ()),
            root_task_ids=query.get("root_task_ids", ()),
            agent_ids=query.get("agent_ids", ()),
        )
        return Watch(
            lambda options: self._connection.stream(
                self._stub.WatchUsage, pb.WatchUsageRequest(filter=wanted, options=options)
            ),
            start,
        )

    async def reprice(
        self,
        *,
        start: Instant | None = None,
        end: Instant | None = None,
        include_reported: bool = False,
        preview: bool = False,
        request_id: str = "",
        **query: Unpack[UsageQuery],
    ) -> pb.RepriceUsageResponse:
        """Costs records anew by the prices as they are now; up to 1000 a call, so call again while `more`."""
        request = pb.RepriceUsageRequest(
            start_time=timestamp(start),
            end_time=timestamp(end),
            filter=usage_filter(**query),
            include_reported=include_reported,
            preview=preview,
            request_id=request_id or new_request_id(),
        )
        return await self._connection.call(self._stub.RepriceUsage, request)

    async def estimate(
        self,
        *,
        model: str = "",
        provider: str = "",
        tokens: pb.TokenCounts | None = None,
        units: Mapping[str, int] | None = None,
        service_tier: str = "",
        template_id: str = "",
        runs: int = 0,
    ) -> pb.EstimateCostResponse:
        """What runs will cost: of a model by its price, or of a template by what its tasks did cost."""
        request = pb.EstimateCostRequest(
            model=model,
            provider=provider,
            tokens=tokens,
            units=units or {},
            service_tier=service_tier,
            template_id=template_id,
            runs=runs,
        )
        return await self._connection.call(self._stub.EstimateCost, request)


class Prices:
    """`client.prices`: what models cost, and since when."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> PriceServiceAsyncStub:
        return self._connection.stub(PriceServiceStub)

    async def list(
        self,
        *,
        provider: str = "",
        model: str = "",
        include_past: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> price_pb2.ListPricesResponse:
        """One page of prices, by provider, model and time; `model` is a part of its name."""
        request = price_pb2.ListPricesRequest(
            provider=provider, model=model, include_past=include_past, page_size=page_size, page_token=page_token
        )
        return await self._connection.call(self._stub.ListPrices, request)

    async def iterate(
        self, *, provider: str = "", model: str = "", include_past: bool = False, page_size: int = 200
    ) -> AsyncIterator[price_pb2.Price]:
        """All prices that match, page by page."""
        page_token = ""
        while True:
            page = await self.list(
                provider=provider, model=model, include_past=include_past, page_size=page_size, page_token=page_token
            )
            for price in page.prices:
                yield price
            page_token = page.next_page_token
            if not page_token:
                return

    async def get(self, model: str, *, provider: str = "", at: Instant | None = None) -> price_pb2.Price:
        """The price that a call of the model is costed by. Raises NotFound where there is none."""
        request = price_pb2.GetPriceRequest(model=model, provider=provider, at_time=timestamp(at))
        return (await self._connection.call(self._stub.GetPrice, request)).price

    async def set(
        self,
        provider: str,
        model: str,
        *,
        input: Dollars,
        output: Dollars,
        cache_read: Dollars | None = None,
        cache_write_5m: Dollars | None = None,
        cache_write_1h: Dollars | None = None,
        per_request: Dollars | None = None,
        units: Mapping[str, Dollars] | None = None,
        aliases: Iterable[str] = (),
        valid_from: Instant | None = None,
        source: str = "",
        etag: str = "",
        request_id: str = "",
    ) -> price_pb2.Price:
        """Sets dollars for a million tokens, from a time on; without one, from the beginning."""
        price = price_pb2.Price(
            provider=provider,
            model=model,
            aliases=aliases,
            rates=price_pb2.TokenRates(
                input=dollars(input),
                output=dollars(output),
                cache_read=_dollars(cache_read),
                cache_write_5m=_dollars(cache_write_5m),
                cache_write_1h=_dollars(cache_write_1h),
            ),
            per_request=_dollars(per_request),
            units={name: dollars(amount) for name, amount in (units or {}).items()},
            valid_from_time=timestamp(valid_from),
            source=source,
        )
        request = price_pb2.SetPriceRequest(price=price, etag=etag, request_id=request_id or new_request_id())
        return (await self._connection.call(self._stub.SetPrice, request)).price

    async def delete(self, price_id: str, *, request_id: str = "") -> price_pb2.DeletePriceResponse:
        """Forgets a price that was set, so that the one before it, or Kapell's own, counts again."""
        request = price_pb2.DeletePriceRequest(price_id=price_id, request_id=request_id or new_request_id())
        return await self._connection.call(self._stub.DeletePrice, request)


def _dollars(amount: Dollars | None) -> Money | None:
    return None if amount is None else dollars(amount)
