"""Be told when jobs have ended: webhooks, each owner's own, for administrators everybody's."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query

from api import webhook_schemas
from api.dependencies import Cursor, PartsOf
from api.idempotency import Made, OnceOf
from api.security import CallerOf
from api.webhook_schemas import WebhookList, WebhookMadeOut, WebhookSeenOut
from dmsae.errors import Conflict
from dmsae.service import webhooks
from dmsae.service.database import Transaction
from dmsae.service.settings import Settings
from dmsae.service.webhook_signing import derive_secret
from dmsae.service.webhook_targets import find_target

router = APIRouter(prefix="/webhooks", tags=["webhooks"])

WebhookId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Id of a webhook.")]
Limit = Annotated[int, Query(ge=1, le=200)]
Wanted = Annotated[webhooks.WebhookRequest, Body(examples=[webhook_schemas.WEBHOOK_REQUEST])]


@router.get("")
def list_webhooks(caller: CallerOf, parts: PartsOf, cursor: Cursor = None, limit: Limit = 50) -> WebhookList:
    """List webhooks, the newest first: one's own, or for administrators everybody's."""
    with parts.database.session_scope() as session:
        return WebhookList.of(webhooks.list_webhooks(session, caller, cursor=cursor, limit=limit))


@router.post("", status_code=201)
def make_webhook(body: Wanted, once: OnceOf) -> WebhookMadeOut:
    """Have an address told when a job ends; its secret is shown in this answer and never again."""
    settings = once.parts.settings
    key = _require_key(settings)
    find_target(body.url, allow_private=settings.webhooks_allow_private)

    def make(session: Transaction) -> Made[WebhookMadeOut]:
        view = webhooks.make_webhook(session, once.caller, body)
        secret = derive_secret(key, view.webhook.id)
        location = f"/webhooks/{view.webhook.id}"
        return Made(WebhookMadeOut.of(view, secret=secret), 201, location, hidden=("secret",))

    once.response.headers["Cache-Control"] = "no-store"
    return once.run(make)


@router.get("/{webhook_id}")
def read_webhook(webhook_id: WebhookId, caller: CallerOf, parts: PartsOf) -> WebhookSeenOut:
    """Show a webhook, and what became of what it was to tell last."""
    with parts.database.session_scope() as session:
        return WebhookSeenOut.seen(webhooks.view_webhook(session, caller, webhook_id))


@router.delete("/{webhook_id}", status_code=204)
def delete_webhook(webhook_id: WebhookId, caller: CallerOf, parts: PartsOf) -> None:
    """Delete a webhook with its deliveries; what was not told is told no more."""
    parts.database.run(lambda session: webhooks.delete_webhook(session, caller, webhook_id))


def _require_key(settings: Settings) -> str:
    if settings.webhooks_key is None:
        raise Conflict("This service sends no webhooks: its DMSAE_WEBHOOKS_KEY is not set.")
    return settings.webhooks_key.get_secret_value()
