"""Webhooks, and what was told through them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

FINAL = "IN ('succeeded', 'failed', 'cancelled')"
MOMENT = sa.DateTime(timezone=True)
DELIVERY_INDEXES = (
    ("ix_webhook_deliveries_pending", "next_at", "state = 'pending'"),
    ("ix_webhook_deliveries_ended_at", "ended_at", "ended_at IS NOT NULL"),
)


def upgrade() -> None:
    _create_webhooks()
    _create_deliveries()


def downgrade() -> None:
    op.drop_table("webhook_deliveries")
    op.drop_table("webhooks")


def _create_webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("states", ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("states <> '{}'", name=op.f("ck_webhooks_states_given")),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name=op.f("fk_webhooks_owner_id")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_webhooks_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    op.create_index(op.f("ix_webhooks_owner_id"), "webhooks", ["owner_id"])
    op.create_index(op.f("ix_webhooks_job_id"), "webhooks", ["job_id"])


def _create_deliveries() -> None:
    op.create_table(
        "webhook_deliveries",
        *(
            sa.Column(name, kind, nullable=False)
            for name, kind in (
                ("id", sa.Text()),
                ("webhook_id", sa.Text()),
                ("job_id", sa.Text()),
                ("run", sa.Integer()),
                ("job_state", sa.Text()),
                ("body", JSONB()),
            )
        ),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("n_tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("created_at", MOMENT, server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", MOMENT, nullable=True),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('pending', 'delivered', 'given_up')", name=op.f("ck_webhook_deliveries_state_known")
        ),
        sa.CheckConstraint(f"job_state {FINAL}", name=op.f("ck_webhook_deliveries_job_state_known")),
        sa.CheckConstraint(
            "(state = 'pending') = (ended_at IS NULL)", name=op.f("ck_webhook_deliveries_ended")
        ),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name=op.f("fk_webhook_deliveries_webhook_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_webhook_deliveries_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_deliveries")),
        sa.UniqueConstraint(
            "webhook_id", "job_id", "run", name=op.f("uq_webhook_deliveries_webhook_id_job_id_run")
        ),
    )
    for name, column, where in DELIVERY_INDEXES:
        op.create_index(name, "webhook_deliveries", [column], postgresql_where=sa.text(where))
