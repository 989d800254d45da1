"""What the API answers about webhooks, field by field."""

from datetime import datetime
from typing import Any, Self

from api.schemas import Answer, example_of
from dmsae.service.paging import Page
from dmsae.service.webhooks import WebhookView

WEBHOOK_REQUEST: dict[str, Any] = {"url": "https://example.org/dmsae", "states": ["succeeded", "failed"]}
WEBHOOK: dict[str, Any] = {
    "id": "hook_019ab2f0c4d17c3e8a51d2f6b7e80913",
    "owner": "ada",
    "url": "https://example.org/dmsae",
    "states": ["failed", "succeeded"],
    "job_id": None,
    "created_at": "2026-11-25T16:20:41.204117Z",
}
WEBHOOK_MADE: dict[str, Any] = {**WEBHOOK, "secret": "whsec_... (50 characters)"}
WEBHOOK_LIST: dict[str, Any] = {"items": [WEBHOOK], "next_cursor": None}
WEBHOOK_SEEN: dict[str, Any] = {
    **WEBHOOK,
    "deliveries": [
        {
            "id": "msg_019ab2f1a8e37d04b2c1e5f60718293a",
            "job_id": "job_019ab2f0d1c27a5e9b30c4d5e6f70819",
            "job_state": "succeeded",
            "run": 1,
            "state": "pending",
            "n_tries": 2,
            "next_at": "2026-11-25T18:02:26Z",
            "created_at": "2026-11-25T18:02:05.120388Z",
            "ended_at": None,
            "last_status": 503,
            "last_error": "It was answered with status 503.",
        }
    ],
}


class WebhookOut(Answer):
    """An address that is told when a job has ended."""

    model_config = example_of(WEBHOOK)

    id: str
    owner: str
    url: str
    states: list[str]
    """The ends that are told."""
    job_id: str | None
    """Only this job's; null: of all jobs of its owner."""
    created_at: datetime

    @classmethod
    def of(cls, view: WebhookView, **more: Any) -> Self:
        """Show one."""
        shown = WebhookOut.model_fields.keys() - {"owner"}
        return cls(owner=view.owner, **{name: getattr(view.webhook, name) for name in shown}, **more)


class WebhookMadeOut(WebhookOut):
    """A webhook that was just made."""

    model_config = example_of(WEBHOOK_MADE)

    secret: str
    """What its deliveries are signed with (Standard Webhooks), shown now and never again."""


class DeliveryOut(Answer):
    """What is, or was, to be told of one run of a job, and what became of it."""

    id: str
    """`webhook-id` in every try."""
    job_id: str
    job_state: str
    run: int
    state: str
    """pending, delivered, or given_up after a day."""
    n_tries: int
    next_at: datetime
    """When it is tried next, while it is pending."""
    created_at: datetime
    ended_at: datetime | None
    last_status: int | None
    """What the last try was answered; null where nothing came."""
    last_error: str | None


class WebhookSeenOut(WebhookOut):
    """A webhook with its latest deliveries, the newest first."""

    model_config = example_of(WEBHOOK_SEEN)

    deliveries: list[DeliveryOut]

    @classmethod
    def seen(cls, view: WebhookView) -> Self:
        """Show one with its deliveries."""
        return cls.of(view, deliveries=[DeliveryOut.model_validate(each) for each in view.deliveries])


class WebhookList(Answer):
    """A page of webhooks, the newest first."""

    model_config = example_of(WEBHOOK_LIST)

    items: list[WebhookOut]
    next_cursor: str | None
    """Send it as `cursor` for the next page; null at the end."""

    @classmethod
    def of(cls, page: Page[WebhookView]) -> Self:
        """Show a page."""
        return cls(items=[WebhookOut.of(view) for view in page.items], next_cursor=page.next_cursor)
