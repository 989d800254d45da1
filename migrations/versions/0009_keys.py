"""What a key may do, how it is told from others, and when it was last used."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ROLES = "role IN ('reader', 'submitter', 'admin')"


def upgrade() -> None:
    for name, default in (("role", "'submitter'"), ("prefix", "''")):
        column = sa.Column(name, sa.Text(), server_default=sa.text(default), nullable=False)
        op.add_column("api_keys", column)
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(op.f("ck_api_keys_role_known"), "api_keys", ROLES)


def downgrade() -> None:
    op.drop_constraint(op.f("ck_api_keys_role_known"), "api_keys")
    for name in ("last_used_at", "prefix", "role"):
        op.drop_column("api_keys", name)
