"""The tables of uploaded files: what lies under `uploads/`, and which jobs read it."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from dmsae.service.tables import Table


class Upload(Table):
    """A file that somebody may put, or has put, into the store under a link of ours."""

    __tablename__ = "uploads"
    __table_args__ = (
        CheckConstraint("size_bytes > 0", "size_bytes_positive"),
        Index("ix_uploads_deleted_at", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("owners.id"), index=True)
    object_key: Mapped[str] = mapped_column(unique=True)
    filename: Mapped[str]
    """As its owner named it."""
    size_bytes: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    used_at: Mapped[datetime | None]
    """When a job that names it was last submitted or deleted."""
    deleted_at: Mapped[datetime | None]
    """Since when its object is to go; the row follows it."""


class UploadUse(Table):
    """A job, not deleted, whose config names an upload."""

    __tablename__ = "upload_uses"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), primary_key=True, index=True)
