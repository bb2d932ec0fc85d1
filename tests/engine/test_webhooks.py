"""Webhooks against a real receiver: what comes arrives once, signed, whatever fails on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
from kapell.v1.event_pb2 import Event
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_CREATED, EVENT_KIND_WEBHOOK_CREATED
from kapell.v1.webhook_pb2 import (
    WEBHOOK_DELIVERY_STATE_DELIVERED,
    WEBHOOK_DELIVERY_STATE_FAILED,
    WEBHOOK_DELIVERY_STATE_PENDING,
    CreateWebhookRequest,
    DeleteWebhookRequest,
    ListWebhookDeliveriesRequest,
    Webhook,
    WebhookDelivery,
    WebhookSpec,
)
from kapell_server.domain.errors import KapellError
from kapell_server.store.webhook_deliveries import MOST_KEPT, WebhookDeliveries
from kapell_server.supervise import Supervisor
from kapell_server.webhooks.service import Webhooks

from tests.support.http_receiver import Receiver, http_receiver
from tests.support.live_engine import LiveEngine

CREATED = [EVENT_KIND_TASK_CREATED]


class Service:
    """The service of one engine, which may be started again."""

    def __init__(self, live: LiveEngine) -> None:
        self.live = live
        self.rows: WebhookDeliveries
        self.service: Webhooks
        self.starts = 0

    async def start(self) -> None:
        self.starts += 1
        live = self.live
        self.rows = WebhookDeliveries(live.database)
        self.supervisor = Supervisor(lambda name, error: live.crashes.append(error))
        self.service = Webhooks(
            live.engine,
            self.rows,
            keyring=live.keyring,
            clock=live.clock,
            supervisor=self.supervisor,
            random=Random(self.starts),
        )
        await self.service.start()

    async def kill(self) -> None:
        """The server dies: nobody is asked."""
        await self.supervisor.stop()
        await self.live.crash()

    async def create(self, url: str, webhook_id: str = "webhook_w", **spec: object) -> str:
        """A webhook's secret."""
        said = WebhookSpec(**{"url": url, "kinds": CREATED, **spec})  # type: ignore[arg-type]
        made: Webhook = (await self.live.call(CreateWebhookRequest(webhook_id=webhook_id, spec=said))).webhook
        await self.service.changed()
        return self.service.secret(made)

    async def deliveries(self, webhook_id: str = "webhook_w") -> list[WebhookDelivery]:
        """The oldest first."""
        answer = await self.rows.list(ListWebhookDeliveriesRequest(webhook_id=webhook_id))
        return list(reversed(answer.deliveries))

    async def until(self, state: int, webhook_id: str = "webhook_w", count: int = 1) -> list[WebhookDelivery]:
        """The deliveries, as soon as so many are in the state."""

        async def found() -> bool:
            return sum(one.state == state for one in await self.deliveries(webhook_id)) >= count

        async with asyncio.timeout(20):
            while not await found():  # noqa: ASYNC110 - turns of the loop, not a wait in time
                await asyncio.sleep(0)
        return await self.deliveries(webhook_id)


@pytest.fixture
async def sending(live: LiveEngine) -> AsyncIterator[Service]:
    async with _sending(live) as sending:
        yield sending


@asynccontextmanager
async def _sending(live: LiveEngine) -> AsyncIterator[Service]:
    service = Service(live)
    await service.start()
    try:
        yield service
    finally:
        await service.service.stop()
        await service.supervisor.stop()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with http_receiver() as receiver:
        yield receiver


async def test_an_event_arrives_signed_and_is_in_the_log(sending: Service, receiver: Receiver) -> None:
    secret = await sending.create(receiver.url)

    task = await sending.live.create()
    received = await receiver.next()

    assert received.is_signed_by(secret)
    assert not received.is_signed_by("whsec_c29tZXRoaW5nIGVsc2U=")
    assert received.path == "/hook/part?token=hidden"
    said = received.said
    assert (said["type"], said["log_id"]) == ("task.created", sending.live.engine.log_id)
    assert said["event"]["task"]["taskId"] == task.task_id
    assert said["revision"] == said["event"]["revision"]
    [delivery] = await sending.until(WEBHOOK_DELIVERY_STATE_DELIVERED)
    assert delivery.delivery_id == received.headers["webhook-id"]
    assert (delivery.tries, delivery.status_code, delivery.error) == (1, 200, "")


async def test_a_webhook_gets_what_it_wants_from_its_creation_on(sending: Service, receiver: Receiver) -> None:
    await sending.live.create()
    await sending.create(receiver.url)

    agent_id = await sending.live.register()
    task = await sending.live.create()
    await sending.live.lease(agent_id)
    received = await receiver.next()
    last = await sending.live.create()

    assert received.said["event"]["task"]["taskId"] == task.task_id
    assert (await receiver.next()).said["event"]["task"]["taskId"] == last.task_id


async def test_what_does_not_arrive_is_tried_again_with_growing_pauses(sending: Service, receiver: Receiver) -> None:
    secret = await sending.create(receiver.url)
    receiver.answers.extend((500, 302))
    await sending.live.create()

    first = await receiver.next()
    [waiting] = await sending.until(WEBHOOK_DELIVERY_STATE_PENDING)
    waiting = await _tried(sending, 1)
    assert waiting.error == "it answered 500"
    assert 4 <= (waiting.next_try_time.seconds - waiting.try_time.seconds) <= 6
    sending.live.clock.advance(7)
    sending.service.wake()
    second = await receiver.next()
    waiting = await _tried(sending, 2)
    assert 8 <= (waiting.next_try_time.seconds - waiting.try_time.seconds) <= 12
    sending.live.clock.advance(13)
    sending.service.wake()
    third = await receiver.next()
    [done] = await sending.until(WEBHOOK_DELIVERY_STATE_DELIVERED)

    assert done.tries == 3
    assert {one.headers["webhook-id"] for one in (first, second, third)} == {done.delivery_id}
    assert first.body == third.body
    assert third.is_signed_by(secret)
    assert third.headers["webhook-timestamp"] != first.headers["webhook-timestamp"]


async def _tried(sending: Service, tries: int) -> WebhookDelivery:
    async with asyncio.timeout(20):
        while (found := (await sending.deliveries())[0]).tries < tries:  # noqa: ASYNC110
            await asyncio.sleep(0)
    return found


async def test_what_is_gone_is_given_up_and_may_be_sent_again_by_hand(sending: Service, receiver: Receiver) -> None:
    await sending.create(receiver.url)
    receiver.answers.append(410)
    await sending.live.create()
    await receiver.next()
    [failed] = await sending.until(WEBHOOK_DELIVERY_STATE_FAILED)
    assert failed.status_code == 410

    sent = await sending.service.resend("webhook_w", failed.delivery_id)
    assert sent.state == WEBHOOK_DELIVERY_STATE_PENDING
    again = await receiver.next()

    assert again.headers["webhook-id"] == failed.delivery_id
    [done] = await sending.until(WEBHOOK_DELIVERY_STATE_DELIVERED)
    assert done.tries == 2


async def test_a_killed_server_sends_what_it_had_not_and_nothing_twice(sending: Service, receiver: Receiver) -> None:
    await sending.create(receiver.url)
    receiver.answers.append(503)
    first = await sending.live.create()
    await receiver.next()
    await _tried(sending, 1)

    await sending.kill()
    second = await sending.live.create()  # While nobody follows.
    sending.live.clock.advance(10)
    await sending.start()

    async with asyncio.timeout(20):
        ids = [(await receiver.next()).said["event"]["task"]["taskId"] for _ in range(2)]
    assert set(ids) == {first.task_id, second.task_id}
    done = await sending.until(WEBHOOK_DELIVERY_STATE_DELIVERED, count=2)
    assert len(done) == 2
    await sending.kill()
    await sending.start()
    third = await sending.live.create()
    assert (await receiver.next()).said["event"]["task"]["taskId"] == third.task_id


async def test_a_deleted_webhook_gets_nothing_and_leaves_nothing(sending: Service, receiver: Receiver) -> None:
    await sending.create(receiver.url)
    await sending.create(receiver.url, "webhook_kept")
    await sending.live.call(DeleteWebhookRequest(webhook_id="webhook_w"))
    await sending.service.changed()

    await sending.live.create()
    await receiver.next()
    await sending.until(WEBHOOK_DELIVERY_STATE_DELIVERED, "webhook_kept")

    assert len(receiver.all) == 1
    with pytest.raises(KapellError):
        await sending.deliveries()


async def test_one_receiver_that_hangs_does_not_hold_up_the_others(sending: Service, receiver: Receiver) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await sending.create(f"http://127.0.0.1:{port}/", "webhook_hangs")
        await sending.create(receiver.url)

        for _ in range(3):
            await sending.live.create()
        for _ in range(3):
            await receiver.next()

        assert (await sending.deliveries("webhook_hangs"))[0].tries == 0
        await sending.service.stop()


async def test_a_test_tells_what_became_of_it(sending: Service, receiver: Receiver) -> None:
    secret = await sending.create(receiver.url)

    arrived = await sending.service.test("webhook_w")
    assert (arrived.state, arrived.type) == (WEBHOOK_DELIVERY_STATE_DELIVERED, "webhook.test")
    assert (await receiver.next()).is_signed_by(secret)
    receiver.answers.append(404)
    lost = await sending.service.test("webhook_w")

    assert (lost.state, lost.error) == (WEBHOOK_DELIVERY_STATE_FAILED, "it answered 404")
    assert [one.delivery_id for one in await sending.deliveries()] == [arrived.delivery_id, lost.delivery_id]


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "0.0.0.0", "[::ffff:169.254.1.1]", "224.0.0.1"])
async def test_nothing_is_sent_where_nobody_means_it(sending: Service, host: str) -> None:
    await sending.create(f"http://{host}/latest/meta-data")

    refused = await sending.service.test("webhook_w")

    assert refused.state == WEBHOOK_DELIVERY_STATE_FAILED
    assert refused.error.startswith("nothing is sent to")


async def test_the_log_and_others_do_not_see_the_secret_part_of_the_url(sending: Service, receiver: Receiver) -> None:
    await sending.create(receiver.url, kinds=[EVENT_KIND_WEBHOOK_CREATED])

    shown = [Event.FromString(record.data) for record in await sending.live.log()]

    assert all(b"hidden" not in event.SerializeToString() for event in shown)
    assert shown[-1].webhook.spec.url.endswith("/…")


async def test_of_each_webhook_the_latest_deliveries_are_kept(sending: Service, receiver: Receiver) -> None:
    await sending.create(receiver.url)
    one = WebhookDelivery(webhook_id="webhook_w", state=WEBHOOK_DELIVERY_STATE_DELIVERED)
    many = []
    for number in range(MOST_KEPT + 7):
        made = WebhookDelivery()
        made.CopyFrom(one)
        made.delivery_id = f"delivery_{number:04}"
        many.append((made, b"{}"))

    await sending.rows.take_up(many, 0)

    answer = await sending.rows.list(ListWebhookDeliveriesRequest(webhook_id="webhook_w", page_size=500))
    assert len(answer.deliveries) == MOST_KEPT
    assert answer.deliveries[-1].delivery_id == "delivery_0007"
