"""The tables of the queue: what owners used, whether it is paused, and where each cycle stands in line."""

from datetime import datetime

from sqlalchemy import ARRAY, CheckConstraint, Double, ForeignKey, Index, Integer, func
from sqlalchemy.orm import Mapped, mapped_column

from dmsae.service.tables import Table


class UsageSlice(Table):
    """Device time that an owner's closed attempts took within one hour; a trigger adds to it at closing."""

    __tablename__ = "usage_slices"
    __table_args__ = (Index("ix_usage_slices_began_at", "began_at"),)

    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"), primary_key=True)
    began_at: Mapped[datetime] = mapped_column(primary_key=True)
    device_s: Mapped[float]
    high_s: Mapped[float]
    """Of these, for cycles of high priority."""


class QueuePause(Table):
    """While its one row is there nothing is claimed."""

    __tablename__ = "queue_pauses"
    __table_args__ = (CheckConstraint("id = 1", "only_one"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    reason: Mapped[str | None]
    paused_at: Mapped[datetime] = mapped_column(server_default=func.now())


class QueueSnapshot(Table):
    """Who waits for one class of devices, in the order of claims, as the sweeper last worked it out."""

    __tablename__ = "queue_snapshots"

    resource_class: Mapped[str] = mapped_column(primary_key=True)
    taken_at: Mapped[datetime]
    n_queued: Mapped[int] = mapped_column(Integer)
    """All that wait; only the first of them have a place."""
    cycle_ids: Mapped[list[str]]
    """In the order in which they would be claimed if nothing else came."""
    starts_in_s: Mapped[list[float | None]] = mapped_column(ARRAY(Double))
    """When each would begin, as far as that can be told."""
