"""Who is told when a job has ended? Webhooks: owners make, see and delete their own."""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from dmsae.errors import Conflict, NotFound, QuotaExceeded
from dmsae.service.ids import new_id
from dmsae.service.keys import Caller
from dmsae.service.paging import Page, decode_cursor, make_page
from dmsae.service.requests import JobRef, Partial, PlainText
from dmsae.service.tables import FINAL_JOB_STATES, Job, Owner
from dmsae.service.webhook_tables import Webhook, WebhookDelivery
from dmsae.service.webhook_targets import LONGEST_URL

Ending = Literal["succeeded", "failed", "cancelled"]
MOST_WEBHOOKS = 50
"""Of one owner."""
SHOWN_DELIVERIES = 50


class WebhookRequest(Partial):
    """Who is to be told, and of what."""

    url: Annotated[PlainText, Field(min_length=1, max_length=LONGEST_URL)]
    """HTTPS, of a public address."""
    states: list[Ending] = Field(["succeeded", "failed", "cancelled"], min_length=1, max_length=3)
    """The ends that are told."""
    job_id: JobRef | None = None
    """Only this job's; else of all jobs of the key's owner."""


class WebhookView(NamedTuple):
    """A webhook, its owner's name, and what it was last to tell, the newest first."""

    webhook: Webhook
    owner: str
    deliveries: Sequence[WebhookDelivery] = ()


def make_webhook(session: Session, caller: Caller, request: WebhookRequest) -> WebhookView:
    """Make a webhook of the caller's; its URL was looked over.

    Raises:
        NotFound: there is no such job.
        Conflict: that job has ended, so nothing would ever be told.
        QuotaExceeded: the owner has as many as one may have.
    """
    if request.job_id is not None:
        _require_going_on(session, request.job_id)
    session.execute(select(Owner.id).where(Owner.id == caller.owner_id).with_for_update(key_share=True))
    there_are = select(func.count()).select_from(Webhook).where(Webhook.owner_id == caller.owner_id)
    if session.scalars(there_are).one() >= MOST_WEBHOOKS:
        raise QuotaExceeded(f"This owner has {MOST_WEBHOOKS} webhooks: delete some first.")
    webhook = Webhook(
        id=new_id("hook"),
        owner_id=caller.owner_id,
        url=request.url,
        job_id=request.job_id,
        states=sorted(set(request.states)),
    )
    session.add(webhook)
    session.flush()
    session.refresh(webhook)
    return WebhookView(webhook, caller.name)


def list_webhooks(
    session: Session, caller: Caller, *, cursor: str | None = None, limit: int = 50
) -> Page[WebhookView]:
    """List the webhooks that a caller may see, the newest first.

    Raises:
        BadRequest: the cursor is malformed.
    """
    query = select(Webhook, Owner.name).join(Owner, Owner.id == Webhook.owner_id)
    if caller.changes_of is not None:
        query = query.where(Webhook.owner_id == caller.changes_of)
    if cursor is not None:
        query = query.where(Webhook.id < decode_cursor(cursor, str)[0])
    rows = session.execute(query.order_by(Webhook.id.desc()).limit(limit + 1))
    views = [WebhookView(*row) for row in rows]
    return make_page(views, limit, last_key=[views[limit - 1].webhook.id] if len(views) > limit else None)


def view_webhook(session: Session, caller: Caller, webhook_id: str) -> WebhookView:
    """Show a webhook with its latest deliveries.

    Raises:
        NotFound: there is no such webhook, or it is another owner's.
    """
    webhook = _find(session, caller, webhook_id)
    deliveries = session.scalars(
        select(WebhookDelivery)
        .where(WebhookDelivery.webhook_id == webhook_id)
        .order_by(WebhookDelivery.created_at.desc(), WebhookDelivery.id.desc())
        .limit(SHOWN_DELIVERIES)
    )
    owner = session.scalars(select(Owner.name).where(Owner.id == webhook.owner_id)).one()
    return WebhookView(webhook, owner, list(deliveries))


def delete_webhook(session: Session, caller: Caller, webhook_id: str) -> None:
    """Delete a webhook with all its deliveries; nothing more is told, unless it is on its way.

    Raises:
        NotFound: there is no such webhook, or it is another owner's.
    """
    _find(session, caller, webhook_id)
    session.execute(delete(Webhook).where(Webhook.id == webhook_id))


def _find(session: Session, caller: Caller, webhook_id: str) -> Webhook:
    webhook = session.get(Webhook, webhook_id)
    if webhook is None or caller.changes_of not in (None, webhook.owner_id):
        raise NotFound(f"There is no webhook {webhook_id!r}.", id=webhook_id)
    return webhook


def _require_going_on(session: Session, job_id: str) -> None:
    """Refuse a job that is not there or has ended; its row stays locked."""
    job = session.execute(
        select(Job.state, Job.deleted_at).where(Job.id == job_id).with_for_update(key_share=True)
    ).one_or_none()
    if job is None or job.deleted_at is not None:
        raise NotFound(f"There is no job {job_id!r}.", id=job_id, param="job_id")
    if job.state in FINAL_JOB_STATES:
        raise Conflict(f"Job {job_id!r} has ended ({job.state}): nothing would be told of it.", id=job_id)
