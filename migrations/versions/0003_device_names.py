"""What a worker's device is called by its maker."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("device_name", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "device_name")
