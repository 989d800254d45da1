"""The tables of what was done, counted for good: no row that goes elsewhere lowers these numbers."""

from datetime import datetime

from sqlalchemy import ForeignKey, func, text
from sqlalchemy.orm import Mapped, mapped_column

from dmsae.service.table_base import Table, one_of
from dmsae.service.tables import OUTCOMES


class AttemptTally(Table):
    """Attempts that were closed, and what they took of their devices; a trigger adds to it at closing."""

    __tablename__ = "attempt_tallies"
    __table_args__ = (one_of("outcome", OUTCOMES),)

    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"), primary_key=True)
    resource_class: Mapped[str] = mapped_column(primary_key=True)
    outcome: Mapped[str] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(primary_key=True)
    """Of the attempt's error; empty where it had none."""
    n_attempts: Mapped[int]
    device_s: Mapped[float]


class ActionTally(Table):
    """What the sweeper and the workers did, and when last."""

    __tablename__ = "action_tallies"

    action: Mapped[str] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(server_default=text("0"))
    last_at: Mapped[datetime] = mapped_column(server_default=func.now())
