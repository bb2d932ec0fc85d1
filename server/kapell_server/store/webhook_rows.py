"""Rows of where webhooks are sent to."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.store.bulk import Bulk
from kapell_server.store.schema import webhook_targets

_delete = Bulk(sa.delete(webhook_targets).where(webhook_targets.c.webhook_id == bindparam("key")), "key")
_insert = Bulk(sa.insert(webhook_targets), "webhook_id", "url")


def load_webhook_urls(connection: Connection) -> dict[str, str]:
    """The whole URL of each webhook."""
    return {row.webhook_id: row.url for row in connection.execute(sa.select(webhook_targets))}


def write_webhook_urls(connection: Connection, urls: Mapping[str, str | None]) -> None:
    """Puts each in the place of what was there; None deletes."""
    _delete.execute(connection, [(webhook_id,) for webhook_id in urls])
    _insert.execute(connection, [(webhook_id, url) for webhook_id, url in urls.items() if url is not None])
