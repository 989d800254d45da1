"""What of a job's end is to be told, and what became of it? Deliveries, written with that end.

How one is sent is the business of `webhook_posting.py`, when that of `worker/webhooks.py`.
"""

from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from dmsae.service.ids import new_id
from dmsae.service.tables import Job
from dmsae.service.webhook_tables import Webhook, WebhookDelivery

GIVEN_UP_AFTER = timedelta(days=1)
KEPT = timedelta(days=30)
"""How long a delivery is shown after its end."""
TOLD = ("kind", "group_id", "run", "state", "state_reason", "error")
"""Of a job: nothing that people wrote about it, which goes when it is deleted."""
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 3600.0


class Due(NamedTuple):
    """A delivery that is to be tried."""

    id: str
    webhook_id: str
    url: str
    body: dict[str, Any]
    n_tries: int


def queue_deliveries(session: Session, job_id: str) -> None:
    """Write what is to be told of a job that ends in this transaction."""
    job = session.execute(
        select(Job.owner_id, Job.kind, Job.group_id, Job.run, Job.state, Job.state_reason, Job.error)
        .add_columns(Job.finished_at)
        .where(Job.id == job_id)
    ).one()
    whose = or_(Webhook.job_id == job_id, (Webhook.job_id.is_(None)) & (Webhook.owner_id == job.owner_id))
    is_wanted = Webhook.states.contains([job.state])
    wanted = (
        select(Webhook.id)
        .where(whose, is_wanted)
        .order_by(Webhook.id)
        .with_for_update(read=True, key_share=True)
    )
    finished_at = job.finished_at.isoformat()
    data = {name: getattr(job, name) for name in TOLD}
    body = {
        "type": f"job.{job.state}",
        "timestamp": finished_at,
        "data": {"id": job_id, **data, "finished_at": finished_at},
    }
    for webhook_id in session.scalars(wanted):
        session.add(
            WebhookDelivery(
                id=new_id("msg"),
                webhook_id=webhook_id,
                job_id=job_id,
                run=job.run,
                job_state=job.state,
                body=body,
            )
        )
    session.flush()


def find_due(session: Session, *, limit: int) -> list[Due]:
    """List deliveries that are to be tried now, those that wait longest first."""
    rows = session.execute(
        select(WebhookDelivery.id, Webhook.id, Webhook.url, WebhookDelivery.body, WebhookDelivery.n_tries)
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .where(WebhookDelivery.state == "pending", WebhookDelivery.next_at <= func.clock_timestamp())
        .order_by(WebhookDelivery.next_at)
        .limit(limit)
    )
    return [Due(*row) for row in rows]


def note_try(session: Session, due: Due, *, status: int | None, error: str | None) -> str | None:
    """Note what a try came to, and when the next one is; give the delivery's state, None if it is gone."""
    wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 3.0 ** min(due.n_tries, 20))
    now = func.clock_timestamp()
    is_over = session.scalar(
        select(WebhookDelivery.created_at + GIVEN_UP_AFTER < now).where(WebhookDelivery.id == due.id)
    )
    state = "delivered" if error is None else "given_up" if is_over else "pending"
    return session.scalar(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == due.id, WebhookDelivery.state == "pending")
        .values(
            state=state,
            n_tries=WebhookDelivery.n_tries + 1,
            next_at=now + timedelta(seconds=wait_s),
            ended_at=None if state == "pending" else now,
            last_status=status,
            last_error=error,
        )
        .returning(WebhookDelivery.state)
        .execution_options(synchronize_session=False)
    )


def forget_old(session: Session, *, limit: int) -> int:
    """Delete deliveries that ended long ago; say how many."""
    old = (
        select(WebhookDelivery.id)
        .where(WebhookDelivery.ended_at < func.now() - KEPT)
        .order_by(WebhookDelivery.ended_at)
        .limit(limit)
    )
    gone = delete(WebhookDelivery).where(WebhookDelivery.id.in_(old)).returning(WebhookDelivery.id)
    return len(session.execute(gone.execution_options(synchronize_session=False)).all())
