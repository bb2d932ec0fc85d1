"""How what a webhook is sent is signed, as Standard Webhooks has it."""

from __future__ import annotations

import base64
import hashlib
import hmac

SECRET_PREFIX = "whsec_"


def secret_text(key: bytes) -> str:
    """The key as its owner is given it."""
    return SECRET_PREFIX + base64.b64encode(key).decode()


def headers(key: bytes, delivery_id: str, seconds: int, body: bytes) -> dict[str, str]:
    """The headers of one try, at `seconds` since 1970."""
    signed = b".".join((delivery_id.encode(), str(seconds).encode(), body))
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {
        "content-type": "application/json",
        "user-agent": "kapell-webhook/1",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": f"v1,{signature}",
    }
