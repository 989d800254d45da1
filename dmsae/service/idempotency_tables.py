"""The table of keys under which clients repeat a POST without doing it twice."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer, func
from sqlalchemy.orm import Mapped, mapped_column

from dmsae.service.tables import Table


class IdempotencyKey(Table):
    """A POST that was answered, and what it is answered again; written with what the POST did."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)

    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"), primary_key=True)
    method: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    """The path as it was asked for, without its query."""
    key: Mapped[str] = mapped_column(primary_key=True)
    body_hash: Mapped[str]
    """Of the parsed body and the query."""
    status: Mapped[int | None] = mapped_column(Integer)
    """Null only within the transaction that does it."""
    location: Mapped[str | None]
    answer: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
