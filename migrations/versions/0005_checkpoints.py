"""Which manifest a checkpoint ends with, and which workers are to take nothing new."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("manifest_sha256", sa.Text(), nullable=True))
    op.create_index(
        "ix_checkpoints_superseded_at",
        "checkpoints",
        ["superseded_at"],
        postgresql_where=sa.text("superseded_at IS NOT NULL"),
    )
    op.add_column("workers", sa.Column("draining_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "draining_at")
    op.drop_index("ix_checkpoints_superseded_at", table_name="checkpoints")
    op.drop_column("checkpoints", "manifest_sha256")
