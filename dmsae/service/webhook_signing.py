"""How does a receiver know that a webhook is ours? By HMAC-SHA256 over its id, time and body.

A webhook's secret is derived from the service's key and its id, so nothing secret is stored.

Source: https://www.standardwebhooks.com, "Signature scheme" and "Webhook headers".
"""

import base64
import hashlib
import hmac

PREFIX = "whsec_"


def derive_secret(key: str, webhook_id: str) -> str:
    """Give the secret of a webhook, as its receiver is to keep it."""
    derived = hmac.digest(key.encode(), f"dmsae webhook {webhook_id}".encode(), hashlib.sha256)
    return PREFIX + base64.b64encode(derived).decode()


def sign(secret: str, delivery_id: str, sent_at: int, body: bytes) -> dict[str, str]:
    """Give the headers that go with a body; `sent_at` in seconds since 1970."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = f"{delivery_id}.{sent_at}.".encode() + body
    signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": str(sent_at),
        "webhook-signature": f"v1,{signature}",
    }
