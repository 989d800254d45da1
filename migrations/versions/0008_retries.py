"""What a retry, a clone and a repeated request leave behind."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

JOB_COLUMNS = {
    "config_digest": sa.Text(),
    "cloned_from": sa.Text(),
    "changes": JSONB(),
    "identical_to": sa.Text(),
}
OTHER_JOBS = ("cloned_from", "identical_to")
COUNT_CRASHED = """
UPDATE cycles c SET n_crashed_attempts = counted.n
FROM (SELECT cycle_id, count(*) AS n FROM attempts WHERE outcome = 'crashed' GROUP BY cycle_id) counted
WHERE counted.cycle_id = c.id
"""


def upgrade() -> None:
    for name, kind in JOB_COLUMNS.items():
        op.add_column("jobs", sa.Column(name, kind, nullable=True))
    for name in OTHER_JOBS:
        op.create_foreign_key(op.f(f"fk_jobs_{name}"), "jobs", "jobs", [name], ["id"])
    op.create_index(
        "ix_jobs_repeatable",
        "jobs",
        ["config_digest"],
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    counter = sa.Column("n_crashed_attempts", sa.Integer(), server_default="0", nullable=False)
    op.add_column("cycles", counter)
    op.add_column("cycles", sa.Column("code_version", sa.Text(), nullable=True))
    op.execute(COUNT_CRASHED)
    _create_keys()


def downgrade() -> None:
    op.drop_table("idempotency_keys")
    op.drop_column("cycles", "code_version")
    op.drop_column("cycles", "n_crashed_attempts")
    op.drop_index("ix_jobs_repeatable", table_name="jobs")
    for name in OTHER_JOBS:
        op.drop_constraint(op.f(f"fk_jobs_{name}"), "jobs")
    for name in JOB_COLUMNS:
        op.drop_column("jobs", name)


def _create_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_hash", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("location", sa.Text(), nullable=True),
        sa.Column("answer", JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name=op.f("fk_idempotency_keys_owner_id")),
        sa.PrimaryKeyConstraint("owner_id", "method", "route", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
