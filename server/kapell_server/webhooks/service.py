"""Webhooks as a service: events become deliveries, deliveries are sent until they have arrived.

States: without webhooks it rests, and costs nothing; with some, a follower reads the log from its cursor and keeps
a delivery for each webhook that wants the event, in one transaction with the cursor; so an event is taken up once,
whatever crashes. A sender tries what is due, one at a time for each webhook, at most eight in all. Authority: the rows;
what is in memory is what they say is pending. Failures: what does not arrive is tried again with growing pauses for
a day; a crash in the middle of a try repeats it, with the same id. A log that was compacted beyond the cursor is
followed from where it begins now, with a warning.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import structlog
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.error_pb2 import ERROR_REASON_SERVER_DRAINING
from kapell.v1.event_pb2 import Event
from kapell.v1.watch_pb2 import EventKind
from kapell.v1.webhook_pb2 import (
    WEBHOOK_DELIVERY_STATE_DELIVERED,
    WEBHOOK_DELIVERY_STATE_FAILED,
    WEBHOOK_DELIVERY_STATE_PENDING,
    Webhook,
    WebhookDelivery,
)

from kapell_server.clock import Clock
from kapell_server.domain.access import Keyring
from kapell_server.domain.errors import KapellError
from kapell_server.domain.ids import IdMinter
from kapell_server.domain.times import SECOND, stamp, timestamp_ns
from kapell_server.domain.webhooks import signing
from kapell_server.domain.webhooks.retrying import GIVE_UP_AFTER_NS, next_try_ns
from kapell_server.domain.webhooks.webhook import webhook_not_found
from kapell_server.engine.engine import Engine
from kapell_server.store.record import Record
from kapell_server.store.webhook_deliveries import WebhookDeliveries
from kapell_server.supervise import Supervisor

if TYPE_CHECKING:
    from kapell_server.webhooks.posting import Poster

_log = structlog.get_logger(__name__)

_READ_LIMIT = 512
_PATIENCE = 60.0
_GATHER_SECONDS = 0.05
"""How long the follower lets events come together: it must not be woken for every commit."""
_KEEP_CURSOR_EVERY = 20_000
"""Events without a delivery after which the cursor is kept all the same."""
_MOST_AT_ONCE = 8
_AFTER_A_FAULT = 5.0


class Webhooks:
    """Sends what webhooks want. `start` after the engine, `stop` before it."""

    def __init__(
        self,
        engine: Engine,
        rows: WebhookDeliveries,
        *,
        keyring: Keyring,
        clock: Clock,
        supervisor: Supervisor,
        random: Random | None = None,
    ) -> None:
        self._engine = engine
        self._rows = rows
        self._keyring = keyring
        self._clock = clock
        self._supervisor = supervisor
        self._random = random or Random()
        self._ids = IdMinter(self._random)
        self._webhooks: dict[str, Webhook] = {}
        self._cursor = 0
        self._kept_cursor = 0
        self._pending: dict[str, WebhookDelivery] = {}
        self._since: dict[str, int] = {}
        """When deliveries were sent again by hand, from which they are given up a day later."""
        self._under_way: dict[str, asyncio.Task[None]] = {}
        """By webhook, the try that is made of it."""
        self._changed = asyncio.Event()
        self._due = asyncio.Event()
        self._poster: Poster | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Goes on where the last run of the server has ended."""
        resumed = await self._rows.resume()
        self._take_over(resumed.webhooks)
        oldest = min((webhook.revision for webhook in resumed.webhooks), default=0)
        self._cursor = self._kept_cursor = max(resumed.cursor, oldest)
        self._pending = {one.delivery_id: one for one in resumed.pending if one.webhook_id in self._webhooks}
        gone = {one.webhook_id for one in resumed.pending} - self._webhooks.keys()
        if gone:
            await self._rows.forget(gone)
        self._tasks = [
            self._supervisor.spawn(self._persist(self._follow), name="webhooks: follower"),
            self._supervisor.spawn(self._persist(self._send_due), name="webhooks: sender"),
        ]

    async def stop(self) -> None:
        """Ends; what was being sent is sent again after the next start."""
        tasks = [*self._tasks, *self._under_way.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._poster is not None:
            await self._poster.close()

    async def changed(self) -> None:
        """A webhook was created or deleted: to be called after it is committed."""
        known = set(self._webhooks)
        self._take_over(await self._rows.webhooks())
        if not known and self._webhooks:
            self._cursor = min(webhook.revision for webhook in self._webhooks.values())
        gone = known - self._webhooks.keys()
        if gone:
            self._pending = {key: one for key, one in self._pending.items() if one.webhook_id not in gone}
            await self._rows.forget(gone)
        self._changed.set()

    def _take_over(self, webhooks: list[Webhook]) -> None:
        self._webhooks = {webhook.webhook_id: webhook for webhook in webhooks}

    async def _persist(self, step: Callable[[], object]) -> None:
        """Does the step over and over; what the database or the end of the log refuses is tried again."""
        while True:
            try:
                await step()  # type: ignore[misc]
            except KapellError as error:
                if error.reason != ERROR_REASON_SERVER_DRAINING:
                    _log.warning("webhooks are put off", reason=error.reason_name)
                await asyncio.sleep(_AFTER_A_FAULT)

    # -- from events to deliveries -------------------------------------------------------------

    async def _follow(self) -> None:
        """Takes up what has come, or waits for it."""
        if not self._webhooks:
            self._changed.clear()
            await self._changed.wait()
            return
        if not await self._engine.ring.wait_beyond(self._cursor, _PATIENCE):
            return
        await asyncio.sleep(_GATHER_SECONDS)
        records = await self._read()
        made = [pair for record in records for pair in self._deliveries_of(record)]
        if records:
            self._cursor = records[-1].revision
        if made or self._cursor - self._kept_cursor > _KEEP_CURSOR_EVERY:
            await self._rows.take_up(made, self._cursor)
            self._kept_cursor = self._cursor
        for delivery, _ in made:
            self._pending[delivery.delivery_id] = delivery
        if made:
            self._due.set()

    async def _read(self) -> list[Record]:
        """What follows the cursor, from the ring or the log."""
        records = self._engine.ring.after(self._cursor, _READ_LIMIT)
        if records is None and self._cursor >= self._engine.oldest_revision:
            records = await self._engine.reads.events_after(self._cursor, _READ_LIMIT)
            if records and records[0].revision == self._cursor + 1:
                return records
            records = None
        if records is None:
            oldest = max(self._engine.oldest_revision, self._cursor + 1)
            _log.warning("events were compacted before webhooks got them", after=self._cursor, until=oldest)
            self._cursor = oldest
            return []
        return records

    def _deliveries_of(self, record: Record) -> list[tuple[WebhookDelivery, bytes]]:
        wanting = [
            webhook
            for webhook in self._webhooks.values()
            if record.kind in webhook.spec.kinds and record.revision > webhook.revision
        ]
        if not wanting:
            return []
        event = Event.FromString(record.data)
        kind = EventKind.Name(record.kind)  # type: ignore[arg-type]
        name = kind.removeprefix("EVENT_KIND_").lower().replace("_", ".", 1)
        body = self._body(name, event.event_time, event)
        return [(self._new(webhook, name, record.revision), body) for webhook in wanting]

    def _body(self, name: str, time: Timestamp, event: Event | None) -> bytes:
        told = {
            "type": name,
            "revision": str(event.revision if event is not None else 0),
            "time": time.ToJsonString(),
            "log_id": self._engine.log_id,
            "event": json_format.MessageToDict(event) if event is not None else {},
        }
        return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()

    def _new(self, webhook: Webhook, name: str, revision: int) -> WebhookDelivery:
        now_ns = self._clock.now_ns()
        delivery = WebhookDelivery(
            delivery_id=self._ids.mint("delivery", now_ns),
            webhook_id=webhook.webhook_id,
            type=name,
            event_revision=revision,
            state=WEBHOOK_DELIVERY_STATE_PENDING,
        )
        stamp(delivery.create_time, now_ns)
        stamp(delivery.next_try_time, now_ns)
        return delivery

    # -- sending -----------------------------------------------------------------------------

    async def _send_due(self) -> None:
        """Begins the tries that are due, and waits for the next."""
        self._due.clear()
        now_ns = self._clock.now_ns()
        next_ns = 0
        for delivery in sorted(self._pending.values(), key=lambda one: timestamp_ns(one.next_try_time)):
            due_ns = timestamp_ns(delivery.next_try_time)
            if due_ns > now_ns:
                next_ns = due_ns
                break
            if len(self._under_way) >= _MOST_AT_ONCE:
                break
            if delivery.webhook_id not in self._under_way and delivery.webhook_id in self._webhooks:
                task = self._supervisor.spawn(self._try(delivery), name=f"webhook {delivery.webhook_id}")
                self._under_way[delivery.webhook_id] = task
        timeout = min(_PATIENCE, (next_ns - now_ns) / SECOND) if next_ns else _PATIENCE
        try:
            async with asyncio.timeout(timeout):
                await self._due.wait()
        except TimeoutError:
            pass

    async def _try(self, delivery: WebhookDelivery) -> None:
        """One try, and what follows from it. Others of the webhook wait meanwhile."""
        try:
            webhook = self._webhooks.get(delivery.webhook_id)
            body = await self._rows.body(delivery.delivery_id) if webhook is not None else None
            tried = delivery if webhook is None or body is None else await self._post(webhook, delivery, body)
            if body is None or tried.state != WEBHOOK_DELIVERY_STATE_PENDING:
                self._pending.pop(delivery.delivery_id, None)
                self._since.pop(delivery.delivery_id, None)
            elif delivery.delivery_id in self._pending:
                self._pending[delivery.delivery_id] = tried
            if body is not None:
                await self._rows.update(tried)
        except KapellError as error:
            _log.warning("a delivery could not be kept", delivery=delivery.delivery_id, reason=error.reason_name)
            await asyncio.sleep(_AFTER_A_FAULT)  # What is still due would be tried again at once.
        finally:
            del self._under_way[delivery.webhook_id]
            self._due.set()

    async def _post(self, webhook: Webhook, delivery: WebhookDelivery, body: bytes) -> WebhookDelivery:
        """The delivery after one try."""
        now_ns = self._clock.now_ns()
        headers = signing.headers(self._key(webhook), delivery.delivery_id, now_ns // SECOND, body)
        answer = await self._posting().post(webhook.spec.url, headers, body)
        tried = WebhookDelivery()
        tried.CopyFrom(delivery)
        tried.tries += 1
        tried.status_code = answer.status_code
        tried.error = answer.error
        stamp(tried.try_time, now_ns)
        tried.ClearField("next_try_time")
        if not answer.error:
            tried.state = WEBHOOK_DELIVERY_STATE_DELIVERED
            return tried
        since_ns = self._since.get(delivery.delivery_id, timestamp_ns(delivery.create_time))
        again_ns = next_try_ns(tried.tries, since_ns, self._clock.now_ns(), answer.status_code, self._random)
        if delivery.type == TEST or not again_ns:
            tried.state = WEBHOOK_DELIVERY_STATE_FAILED
        else:
            stamp(tried.next_try_time, again_ns)
        return tried

    def _posting(self) -> Poster:
        """The HTTP client: imported with the first delivery, so that the start does not wait for it."""
        if self._poster is None:
            from kapell_server.webhooks.posting import Poster

            self._poster = Poster()
        return self._poster

    def _key(self, webhook: Webhook) -> bytes:
        return self._keyring.webhook_key(webhook.webhook_id, timestamp_ns(webhook.create_time))

    def wake(self) -> None:
        """Looks at what is due, now: for tests that move the clock."""
        self._due.set()

    # -- by hand -----------------------------------------------------------------------------

    def secret(self, webhook: Webhook) -> str:
        """What the deliveries of a webhook are signed by, as its owner is given it."""
        return signing.secret_text(self._key(webhook))

    async def test(self, webhook_id: str) -> WebhookDelivery:
        """Sends an event that means nothing, once, now. Raises WEBHOOK_NOT_FOUND."""
        webhook = self._webhooks.get(webhook_id)
        if webhook is None:
            raise webhook_not_found(webhook_id)
        delivery = self._new(webhook, TEST, 0)
        body = self._body(TEST, delivery.create_time, None)
        tried = await self._post(webhook, delivery, body)
        await self._rows.take_up([(tried, body)], 0)
        return tried

    async def resend(self, webhook_id: str, delivery_id: str) -> WebhookDelivery:
        """Sends a delivery again, now, whatever became of it. Raises WEBHOOK_NOT_FOUND."""
        delivery = await self._rows.get(webhook_id, delivery_id)
        now_ns = self._clock.now_ns()
        delivery.state = WEBHOOK_DELIVERY_STATE_PENDING
        stamp(delivery.next_try_time, now_ns)
        await self._rows.update(delivery)
        if now_ns > timestamp_ns(delivery.create_time) + GIVE_UP_AFTER_NS // 2:
            self._since[delivery_id] = now_ns
        self._pending[delivery_id] = delivery
        self._due.set()
        return delivery


TEST = "webhook.test"
"""The type of an event that only tries whether a webhook works."""
