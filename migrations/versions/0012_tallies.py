"""What was done, counted for good: attempts by owner, class, outcome and error; what sweepers did."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

OUTCOME_KNOWN = "outcome IN ('succeeded', 'failed', 'crashed', 'handed_back', 'cancelled', 'superseded')"

TALLY_ATTEMPT = """
CREATE FUNCTION tally_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO attempt_tallies AS t (owner_id, resource_class, outcome, code, n_attempts, device_s)
    SELECT c.owner_id, c.resource_class, NEW.outcome, coalesce(NEW.error->>'code', ''), 1,
        greatest(0, extract(epoch FROM NEW.closed_at - NEW.opened_at))
    FROM cycles c WHERE c.id = NEW.cycle_id
    ON CONFLICT (owner_id, resource_class, outcome, code)
    DO UPDATE SET n_attempts = t.n_attempts + 1, device_s = t.device_s + excluded.device_s;
    RETURN NULL;
END
$$
"""

TALLYING = """
CREATE TRIGGER tally_attempt AFTER UPDATE OF outcome ON attempts FOR EACH ROW
WHEN (OLD.outcome IS NULL AND NEW.outcome IS NOT NULL) EXECUTE FUNCTION tally_attempt()
"""

COUNT_CLOSED = """
INSERT INTO attempt_tallies (owner_id, resource_class, outcome, code, n_attempts, device_s)
SELECT c.owner_id, c.resource_class, a.outcome, coalesce(a.error->>'code', ''), count(*),
    sum(greatest(0, extract(epoch FROM a.closed_at - a.opened_at)))
FROM attempts a JOIN cycles c ON c.id = a.cycle_id
WHERE a.outcome IS NOT NULL
GROUP BY c.owner_id, c.resource_class, a.outcome, coalesce(a.error->>'code', '')
"""


def upgrade() -> None:
    key = [sa.Column(name, sa.Text(), nullable=False) for name in ("resource_class", "outcome", "code")]
    op.create_table(
        "attempt_tallies",
        sa.Column("owner_id", sa.Text(), nullable=False),
        *key,
        sa.Column("n_attempts", sa.BigInteger(), nullable=False),
        sa.Column("device_s", sa.Double(), nullable=False),
        sa.CheckConstraint(OUTCOME_KNOWN, name=op.f("ck_attempt_tallies_outcome_known")),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name=op.f("fk_attempt_tallies_owner_id")),
        sa.PrimaryKeyConstraint(
            "owner_id", "resource_class", "outcome", "code", name=op.f("pk_attempt_tallies")
        ),
    )
    op.create_table(
        "action_tallies",
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("n", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("action", name=op.f("pk_action_tallies")),
    )
    for statement in (COUNT_CLOSED, TALLY_ATTEMPT, TALLYING):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER tally_attempt ON attempts")
    op.execute("DROP FUNCTION tally_attempt")
    op.drop_table("action_tallies")
    op.drop_table("attempt_tallies")
