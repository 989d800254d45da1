"""Cores that are given, what travels with a core, and cycles that start from other jobs' cycles."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NOT_MEASURED = {
    "core_latents": ("sae_index", "score", "share", "rank", "encoder_norm", "density", "is_borderline"),
    "latents": ("last_index", "last_share", "max_share"),
}
"""Columns that are null where no cycle has measured or selected a latent."""

COUNT_SELECTIONS = """
UPDATE core_latents AS place SET times_selected = counted.n
FROM (
    SELECT place.core_id, place.core_index,
        row_number() OVER (PARTITION BY cycle.job_id, place.latent_id ORDER BY cycle.index) AS n
    FROM core_latents AS place
    JOIN cores AS core ON core.id = place.core_id
    JOIN cycles AS cycle ON cycle.id = core.cycle_id
) AS counted
WHERE counted.core_id = place.core_id AND counted.core_index = place.core_index
"""


def upgrade() -> None:
    op.add_column(
        "cycles", sa.Column("selects_core", sa.Boolean(), server_default=sa.text("true"), nullable=False)
    )
    _require_core("(state = 'succeeded' AND selects_core) = (output_core_id IS NOT NULL)")
    for name, kind in {
        "given_cycle_id": sa.Text(),
        "provenance": JSONB(),
        "overlap": sa.Double(),
        "is_weak_control": sa.Boolean(),
    }.items():
        op.add_column("cores", sa.Column(name, kind, nullable=True))
    op.create_unique_constraint(op.f("uq_cores_given_cycle_id"), "cores", ["given_cycle_id"])
    op.create_foreign_key(op.f("fk_cores_given_cycle_id"), "cores", "cycles", ["given_cycle_id"], ["id"])
    op.add_column("core_latents", sa.Column("times_selected", sa.Integer(), nullable=True))
    op.execute(COUNT_SELECTIONS)
    _set_nullable(True)
    op.create_table(
        "cycle_sources",
        sa.Column("cycle_id", sa.Text(), nullable=False),
        sa.Column("source_cycle_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name=op.f("fk_cycle_sources_cycle_id")),
        sa.ForeignKeyConstraint(
            ["source_cycle_id"], ["cycles.id"], name=op.f("fk_cycle_sources_source_cycle_id")
        ),
        sa.PrimaryKeyConstraint("cycle_id", "source_cycle_id", name=op.f("pk_cycle_sources")),
    )
    op.create_index(op.f("ix_cycle_sources_source_cycle_id"), "cycle_sources", ["source_cycle_id"])


def downgrade() -> None:
    op.drop_table("cycle_sources")
    _set_nullable(False)
    op.drop_column("core_latents", "times_selected")
    for name in ("is_weak_control", "overlap", "provenance", "given_cycle_id"):
        op.drop_column("cores", name)
    _require_core("(state = 'succeeded') = (output_core_id IS NOT NULL)")
    op.drop_column("cycles", "selects_core")


def _require_core(rule: str) -> None:
    op.drop_constraint(op.f("ck_cycles_succeeded_with_core"), "cycles")
    op.create_check_constraint(op.f("ck_cycles_succeeded_with_core"), "cycles", rule)


def _set_nullable(is_nullable: bool) -> None:
    for table, columns in NOT_MEASURED.items():
        for column in columns:
            op.alter_column(table, column, nullable=is_nullable)
