"""Finished jobs are found by what they were asked for: identical ones, and controls by their width and k.

Among identical jobs only those that succeeded are wanted, however many others wait or failed. A comparison
looks for its controls in the whole lab, which read all of its jobs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

IS_CONTROL = (
    "kind = 'training' AND state = 'succeeded' AND deleted_at IS NULL AND config #>> '{core,kind}' = 'none'"
)


def upgrade() -> None:
    _index_repeatable(["config_digest", "finished_at", "id"], "state = 'succeeded' AND deleted_at IS NULL")
    op.create_index(
        "ix_jobs_controls",
        "jobs",
        [sa.text("((config #>> '{core,n_matched}')::integer)"), sa.text("((config #>> '{sae,k}')::integer)")],
        postgresql_where=sa.text(IS_CONTROL),
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_controls", table_name="jobs")
    _index_repeatable(["config_digest"], "deleted_at IS NULL")


def _index_repeatable(columns: list[str], condition: str) -> None:
    op.drop_index("ix_jobs_repeatable", table_name="jobs")
    op.create_index("ix_jobs_repeatable", "jobs", columns, postgresql_where=sa.text(condition))
