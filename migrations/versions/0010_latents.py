"""What finding latents and telling their stories needs; published cores, which nothing changes."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

NO_SHARE = "'-Infinity'::double precision"
SORT_KEYS = {
    "times_selected": "times_selected",
    "last_share": f"COALESCE(last_share, {NO_SHARE})",
    "max_share": f"COALESCE(max_share, {NO_SHARE})",
}
PUBLISHED_WHOLE = (
    "(name IS NULL) = (published_version IS NULL) AND (name IS NULL) = (published_at IS NULL)"
    " AND (name IS NULL) = (published_by IS NULL)"
)

KEEP_CORES = """
CREATE FUNCTION keep_published_core() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'core % is published', OLD.id
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'published_cores_stay';
END
$$
"""
KEEP_CORE = """
CREATE TRIGGER published_cores_stay BEFORE UPDATE OR DELETE ON cores
FOR EACH ROW WHEN (OLD.name IS NOT NULL) EXECUTE FUNCTION keep_published_core()
"""
KEEP_PLACES = """
CREATE FUNCTION keep_published_places() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM cores WHERE id = OLD.core_id AND name IS NOT NULL) THEN
        RAISE EXCEPTION 'core % is published', OLD.core_id
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'published_cores_stay';
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END
$$
"""
KEEP_PLACE = """
CREATE TRIGGER published_places_stay BEFORE UPDATE OR DELETE ON core_latents
FOR EACH ROW EXECUTE FUNCTION keep_published_places()
"""


def upgrade() -> None:
    _index_latents()
    _create_drops()
    _create_matches()
    op.add_column("cores", sa.Column("published_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("cores", sa.Column("published_by", sa.Text(), nullable=True))
    op.create_foreign_key(op.f("fk_cores_published_by"), "cores", "owners", ["published_by"], ["id"])
    op.create_check_constraint(op.f("ck_cores_published_whole"), "cores", PUBLISHED_WHOLE)
    op.create_index(
        "ix_cores_published", "cores", ["published_at", "id"], postgresql_where=sa.text("name IS NOT NULL")
    )
    for statement in (KEEP_CORES, KEEP_CORE, KEEP_PLACES, KEEP_PLACE):
        op.execute(statement)


def downgrade() -> None:
    for table, trigger in (("core_latents", "published_places_stay"), ("cores", "published_cores_stay")):
        op.execute(f"DROP TRIGGER {trigger} ON {table}")
    for function in ("keep_published_places", "keep_published_core"):
        op.execute(f"DROP FUNCTION {function}()")
    op.drop_index("ix_cores_published", table_name="cores")
    op.drop_constraint(op.f("ck_cores_published_whole"), "cores")
    op.drop_column("cores", "published_by")
    op.drop_column("cores", "published_at")
    op.drop_table("latent_matches")
    op.drop_table("core_drops")
    for name in SORT_KEYS:
        op.drop_index(f"ix_latents_origin_{name}", table_name="latents")
        op.drop_index(f"ix_latents_{name}", table_name="latents")
    op.drop_index("ix_latents_origin_job_id", table_name="latents")


def _index_latents() -> None:
    op.create_index("ix_latents_origin_job_id", "latents", ["origin_job_id", "id"])
    for name, key in SORT_KEYS.items():
        op.create_index(f"ix_latents_{name}", "latents", [sa.text(key), "id"])
        columns = ["origin_job_id", sa.text(key), "id"]
        op.create_index(f"ix_latents_origin_{name}", "latents", columns)


def _create_drops() -> None:
    op.create_table(
        "core_drops",
        sa.Column("cycle_id", sa.Text(), nullable=False),
        sa.Column("core_index", sa.Integer(), nullable=False),
        sa.Column("latent_id", sa.BigInteger(), nullable=False),
        sa.Column("sae_index", sa.BigInteger(), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("share", sa.Double(), nullable=True),
        sa.Column("rank", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name=op.f("fk_core_drops_cycle_id")),
        sa.ForeignKeyConstraint(["latent_id"], ["latents.id"], name=op.f("fk_core_drops_latent_id")),
        sa.PrimaryKeyConstraint("cycle_id", "core_index", name=op.f("pk_core_drops")),
    )
    op.create_index(op.f("ix_core_drops_latent_id"), "core_drops", ["latent_id"])


def _create_matches() -> None:
    sides = ("a_latent_id", "b_latent_id")
    op.create_table(
        "latent_matches",
        sa.Column("cycle_id", sa.Text(), nullable=False),
        sa.Column("a", sa.Integer(), nullable=False),
        sa.Column("b", sa.Integer(), nullable=False),
        *(sa.Column(side, sa.BigInteger(), nullable=False) for side in sides),
        sa.Column("decoder_cosine", sa.Double(), nullable=False),
        sa.Column("firing_correlation", sa.Double(), nullable=True),
        sa.Column("best_cosine", sa.Double(), nullable=True),
        sa.Column("best_cosine_random", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name=op.f("fk_latent_matches_cycle_id")),
        *(
            sa.ForeignKeyConstraint([side], ["latents.id"], name=op.f(f"fk_latent_matches_{side}"))
            for side in sides
        ),
        sa.PrimaryKeyConstraint("cycle_id", "a", "b", "a_latent_id", name=op.f("pk_latent_matches")),
        sa.CheckConstraint("a < b", name=op.f("ck_latent_matches_pair_ordered")),
    )
    for side in sides:
        op.create_index(op.f(f"ix_latent_matches_{side}"), "latent_matches", [side])
