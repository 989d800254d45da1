"""The tables of webhooks: who is to be told about which jobs, and what became of each telling."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, Integer, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from dmsae.service.table_base import one_of
from dmsae.service.tables import FINAL_JOB_STATES, Table

DELIVERY_STATES = ("pending", "delivered", "given_up")
IS_PENDING = text("state = 'pending'")


class Webhook(Table):
    """An address that is told when a job has ended: any of its owner's, or one."""

    __tablename__ = "webhooks"
    __table_args__ = (CheckConstraint("states <> '{}'", "states_given"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    """Its secret is derived from it: nothing secret is stored."""
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"), index=True)
    url: Mapped[str]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    """The one job; null: all of its owner's."""
    states: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebhookDelivery(Table):
    """One telling, written in the transaction in which the job ended: one for each run of it."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        UniqueConstraint("webhook_id", "job_id", "run"),
        one_of("state", DELIVERY_STATES),
        one_of("job_state", FINAL_JOB_STATES),
        CheckConstraint("(state = 'pending') = (ended_at IS NULL)", "ended"),
        Index("ix_webhook_deliveries_pending", "next_at", postgresql_where=IS_PENDING),
        Index("ix_webhook_deliveries_ended_at", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """The same in every try: by it a receiver knows what it was told already."""
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    run: Mapped[int] = mapped_column(Integer)
    job_state: Mapped[str]
    body: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(server_default="pending")
    n_tries: Mapped[int] = mapped_column(Integer, server_default="0")
    next_at: Mapped[datetime] = mapped_column(server_default=func.now())
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]
    last_status: Mapped[int | None] = mapped_column(Integer)
    """What the last try was answered; null where nothing came."""
    last_error: Mapped[str | None]
