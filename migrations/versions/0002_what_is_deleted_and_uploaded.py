"""What is deleted, and what is uploaded."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NEW_TIMES = {
    "jobs": ("expires_at", "deleted_at", "cleared_at", "purged_at"),
    "artifacts": ("deleted_at",),
    "attempts": ("cleared_at",),
}
NEW_INDEXES = {
    "ix_artifacts_attempt_id": ("artifacts", ["attempt_id"]),
    "ix_cycle_origins_origin_job_id": ("cycle_origins", ["origin_job_id"]),
    "ix_cycles_input_core_id": ("cycles", ["input_core_id"]),
    "ix_cycles_output_core_id": ("cycles", ["output_core_id"]),
}
PARTIAL_INDEXES = {
    "ix_jobs_unpurged": ("jobs", ["deleted_at"], "deleted_at IS NOT NULL AND purged_at IS NULL"),
    "ix_artifacts_deleted_at": ("artifacts", ["deleted_at"], "deleted_at IS NOT NULL"),
    "ix_attempts_uncleared": (
        "attempts",
        ["closed_at"],
        "outcome <> 'succeeded' AND cleared_at IS NULL",
    ),
}


def upgrade() -> None:
    op.add_column("owners", sa.Column("retention_days", sa.Integer(), nullable=True))
    bounds = "retention_days BETWEEN 0 AND 36500"
    op.create_check_constraint(op.f("ck_owners_retention_days_bounded"), "owners", bounds)
    for table, names in NEW_TIMES.items():
        for name in names:
            op.add_column(table, sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        op.f("ck_jobs_deleted_after_its_end"), "jobs", "deleted_at IS NULL OR finished_at IS NOT NULL"
    )
    for index, (table, columns) in NEW_INDEXES.items():
        op.create_index(index, table, columns, unique=False)
    for index, (table, columns, where) in PARTIAL_INDEXES.items():
        op.create_index(index, table, columns, unique=False, postgresql_where=sa.text(where))
    _create_uploads()


def _create_uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("object_key", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("size_bytes > 0", name=op.f("ck_uploads_size_bytes_positive")),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_uploads_owner_id"),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
        sa.UniqueConstraint("object_key", name="uq_uploads_object_key"),
    )
    op.create_index("ix_uploads_owner_id", "uploads", ["owner_id"], unique=False)
    op.create_index(
        "ix_uploads_deleted_at",
        "uploads",
        ["deleted_at"],
        unique=False,
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.create_table(
        "upload_uses",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("upload_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_upload_uses_job_id"),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name="fk_upload_uses_upload_id"),
        sa.PrimaryKeyConstraint("job_id", "upload_id", name="pk_upload_uses"),
    )
    op.create_index("ix_upload_uses_upload_id", "upload_uses", ["upload_id"], unique=False)


def downgrade() -> None:
    op.drop_table("upload_uses")
    op.drop_table("uploads")
    for index, (table, *_) in {**PARTIAL_INDEXES, **NEW_INDEXES}.items():
        op.drop_index(index, table_name=table)
    op.drop_constraint(op.f("ck_jobs_deleted_after_its_end"), "jobs")
    for table, names in NEW_TIMES.items():
        for name in names:
            op.drop_column(table, name)
    op.drop_constraint(op.f("ck_owners_retention_days_bounded"), "owners")
    op.drop_column("owners", "retention_days")
