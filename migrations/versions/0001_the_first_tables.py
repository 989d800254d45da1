"""The first tables."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("fencing_numbers", data_type=sa.BigInteger())))
    op.create_table(
        "owners",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_owners"),
        sa.UniqueConstraint("name", name="uq_owners_name"),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("resource_class", sa.Text(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("cache_keys", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "last_seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("stopped_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_api_keys_owner_id"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("key_hash", name="uq_api_keys_key_hash"),
    )
    op.create_index("ix_api_keys_owner_id", "api_keys", ["owner_id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("version", sa.BigInteger(), server_default="1", nullable=False),
        sa.Column("event_seq", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("run", sa.Integer(), server_default="1", nullable=False),
        sa.Column("held", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("priority", sa.Text(), server_default="normal", nullable=False),
        sa.Column("spec_version", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("notes", sa.Text(), nullable=True),
        sa.Column("preset", sa.Text(), nullable=True),
        sa.Column("config", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))",
            name=op.f("ck_jobs_finished"),
        ),
        sa.CheckConstraint("kind IN ('distillation', 'training', 'probe')", name=op.f("ck_jobs_kind_known")),
        sa.CheckConstraint("priority IN ('low', 'normal', 'high')", name=op.f("ck_jobs_priority_known")),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_jobs_state_known"),
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_jobs_owner_id"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index("ix_jobs_created_at_id", "jobs", ["created_at", "id"], unique=False)
    op.create_index("ix_jobs_group_id", "jobs", ["group_id"], unique=False)
    op.create_index("ix_jobs_owner_id_created_at", "jobs", ["owner_id", "created_at"], unique=False)
    op.create_index("ix_jobs_tags", "jobs", ["tags"], unique=False, postgresql_using="gin")
    op.create_table(
        "cycles",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("index", sa.Integer(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("priority_rank", sa.SmallInteger(), server_default="1", nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("resource_class", sa.Text(), nullable=False),
        sa.Column("spec_version", sa.Integer(), nullable=False),
        sa.Column("cache_key", sa.Text(), nullable=True),
        sa.Column("n_failed_attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("input_core_id", sa.Text(), nullable=True),
        sa.Column("output_core_id", sa.Text(), nullable=True),
        sa.Column("metrics", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.CheckConstraint(
            "(state = 'succeeded') = (output_core_id IS NOT NULL)", name=op.f("ck_cycles_succeeded_with_core")
        ),
        sa.CheckConstraint(
            "state IN ('waiting', 'queued', 'running', 'succeeded', 'failed', 'cancelled', 'skipped')",
            name=op.f("ck_cycles_state_known"),
        ),
        sa.CheckConstraint('"index" >= 0', name=op.f("ck_cycles_index_not_negative")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_cycles_job_id"),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name="fk_cycles_owner_id"),
        sa.PrimaryKeyConstraint("id", name="pk_cycles"),
        sa.UniqueConstraint("job_id", "index", name="uq_cycles_job_id_index"),
    )
    op.create_index(
        "ix_cycles_claimable",
        "cycles",
        ["owner_id", "priority_rank", "queued_at"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_table(
        "events",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("cycle_index", sa.Integer(), nullable=True),
        sa.Column("attempt_number", sa.Integer(), nullable=True),
        sa.Column(
            "data", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_events_job_id"),
        sa.PrimaryKeyConstraint("job_id", "seq", name="pk_events"),
    )
    op.create_table(
        "latents",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("public_id", sa.Text(), nullable=False),
        sa.Column("origin_job_id", sa.Text(), nullable=False),
        sa.Column("origin_cycle", sa.Integer(), nullable=False),
        sa.Column("origin_index", sa.BigInteger(), nullable=False),
        sa.Column("origin_kind", sa.Text(), server_default="learned", nullable=False),
        sa.Column("times_selected", sa.Integer(), nullable=False),
        sa.Column("last_index", sa.Integer(), nullable=False),
        sa.Column("dropped_at", sa.Integer(), nullable=True),
        sa.Column("last_share", sa.Double(), nullable=False),
        sa.Column("max_share", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "origin_kind IN ('learned', 'selected', 'filtered', 'random_directions', 'random_latents', "
            "'frequent', 'energy')",
            name=op.f("ck_latents_origin_kind_known"),
        ),
        sa.ForeignKeyConstraint(["origin_job_id"], ["jobs.id"], name="fk_latents_origin_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_latents"),
        sa.UniqueConstraint(
            "origin_job_id",
            "origin_cycle",
            "origin_index",
            name="uq_latents_origin_job_id_origin_cycle_origin_index",
        ),
        sa.UniqueConstraint("public_id", name="uq_latents_public_id"),
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("cycle_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("celery_task_id", sa.Text(), nullable=True),
        sa.Column("phase", sa.Text(), server_default="starting", nullable=False),
        sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("progress_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("log_tail", sa.Text(), server_default="", nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("error", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("opened_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('succeeded', 'failed', 'crashed', 'handed_back', 'cancelled', 'superseded')",
            name=op.f("ck_attempts_outcome_known"),
        ),
        sa.CheckConstraint(
            "phase IN ('starting', 'loading', 'harvesting', 'training', 'attributing', 'evaluating', "
            "'uploading')",
            name=op.f("ck_attempts_phase_known"),
        ),
        sa.CheckConstraint("(outcome IS NULL) = (closed_at IS NULL)", name=op.f("ck_attempts_closed")),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_attempts_cycle_id"),
        sa.ForeignKeyConstraint(["worker_id"], ["workers.id"], name="fk_attempts_worker_id"),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sa.UniqueConstraint("cycle_id", "number", name="uq_attempts_cycle_id_number"),
        sa.UniqueConstraint("fence", name="uq_attempts_fence"),
    )
    op.create_index(
        "ix_attempts_open_lease",
        "attempts",
        ["lease_expires_at"],
        unique=False,
        postgresql_where=sa.text("outcome IS NULL"),
    )
    op.create_index("ix_attempts_closed_at", "attempts", ["closed_at"], unique=False)
    op.create_index("ix_attempts_worker_id", "attempts", ["worker_id"], unique=False)
    op.create_index(
        "uq_attempts_open", "attempts", ["cycle_id"], unique=True, postgresql_where=sa.text("outcome IS NULL")
    )
    op.create_table(
        "cores",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("cycle_id", sa.Text(), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("n_latents", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("published_version", sa.Integer(), nullable=True),
        sa.Column("object_prefix", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "kind IN ('selected', 'filtered', 'random_directions', 'random_latents', 'frequent', 'energy')",
            name=op.f("ck_cores_kind_known"),
        ),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_cores_cycle_id"),
        sa.PrimaryKeyConstraint("id", name="pk_cores"),
        sa.UniqueConstraint("cycle_id", name="uq_cores_cycle_id"),
        sa.UniqueConstraint("name", "published_version", name="uq_cores_name_published_version"),
    )
    op.create_foreign_key("fk_cycles_input_core_id", "cycles", "cores", ["input_core_id"], ["id"])
    op.create_foreign_key("fk_cycles_output_core_id", "cycles", "cores", ["output_core_id"], ["id"])
    op.create_table(
        "cycle_origins",
        sa.Column("cycle_id", sa.Text(), nullable=False),
        sa.Column("origin_job_id", sa.Text(), nullable=False),
        sa.Column("origin_cycle", sa.Integer(), nullable=False),
        sa.Column("n_latents", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_cycle_origins_cycle_id"),
        sa.ForeignKeyConstraint(["origin_job_id"], ["jobs.id"], name="fk_cycle_origins_origin_job_id"),
        sa.PrimaryKeyConstraint("cycle_id", "origin_job_id", "origin_cycle", name="pk_cycle_origins"),
    )
    op.create_table(
        "metric_points",
        sa.Column("cycle_id", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("n_tokens", sa.BigInteger(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=True),
        sa.Column("aux_loss", sa.Double(), nullable=True),
        sa.Column("l0", sa.Double(), nullable=True),
        sa.Column("l0_core", sa.Double(), nullable=True),
        sa.Column("explained_variance", sa.Double(), nullable=True),
        sa.Column("explained_variance_first", sa.Double(), nullable=True),
        sa.Column("dead_fraction", sa.Double(), nullable=True),
        sa.Column("clipped_fraction", sa.Double(), nullable=True),
        sa.Column("lr", sa.Double(), nullable=True),
        sa.Column("tokens_per_s", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_metric_points_cycle_id"),
        sa.PrimaryKeyConstraint("cycle_id", "step", name="pk_metric_points"),
    )
    op.create_table(
        "artifacts",
        sa.Column("object_key", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("cycle_id", sa.Text(), nullable=False),
        sa.Column("attempt_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_artifacts_attempt_id"),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_artifacts_cycle_id"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_artifacts_job_id"),
        sa.PrimaryKeyConstraint("object_key", name="pk_artifacts"),
        sa.UniqueConstraint("cycle_id", "name", name="uq_artifacts_cycle_id_name"),
    )
    op.create_index("ix_artifacts_job_id", "artifacts", ["job_id"], unique=False)
    op.create_table(
        "checkpoints",
        sa.Column("attempt_id", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("cycle_id", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("object_prefix", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempts.id"], name="fk_checkpoints_attempt_id"),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name="fk_checkpoints_cycle_id"),
        sa.PrimaryKeyConstraint("attempt_id", "step", name="pk_checkpoints"),
    )
    op.create_index("ix_checkpoints_cycle_id", "checkpoints", ["cycle_id"], unique=False)
    op.create_table(
        "core_latents",
        sa.Column("core_id", sa.Text(), nullable=False),
        sa.Column("core_index", sa.Integer(), nullable=False),
        sa.Column("latent_id", sa.BigInteger(), nullable=False),
        sa.Column("sae_index", sa.BigInteger(), nullable=False),
        sa.Column("parent_core_id", sa.Text(), nullable=True),
        sa.Column("parent_core_index", sa.Integer(), nullable=True),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("score_se", sa.Double(), nullable=True),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("encoder_norm", sa.Double(), nullable=False),
        sa.Column("density", sa.Double(), nullable=False),
        sa.Column("decoder_cosine", sa.Double(), nullable=True),
        sa.Column("firing_jaccard", sa.Double(), nullable=True),
        sa.Column("is_borderline", sa.Boolean(), nullable=False),
        sa.CheckConstraint(
            "(parent_core_id IS NULL) = (parent_core_index IS NULL)",
            name=op.f("ck_core_latents_parent_whole"),
        ),
        sa.ForeignKeyConstraint(["core_id"], ["cores.id"], name="fk_core_latents_core_id"),
        sa.ForeignKeyConstraint(["latent_id"], ["latents.id"], name="fk_core_latents_latent_id"),
        sa.ForeignKeyConstraint(
            ["parent_core_id", "parent_core_index"],
            ["core_latents.core_id", "core_latents.core_index"],
            name="fk_core_latents_parent_core_id_parent_core_index",
        ),
        sa.PrimaryKeyConstraint("core_id", "core_index", name="pk_core_latents"),
        sa.UniqueConstraint("core_id", "latent_id", name="uq_core_latents_core_id_latent_id"),
        sa.UniqueConstraint("core_id", "sae_index", name="uq_core_latents_core_id_sae_index"),
    )
    op.create_index("ix_core_latents_latent_id", "core_latents", ["latent_id"], unique=False)
    op.create_index(
        "ix_core_latents_parent", "core_latents", ["parent_core_id", "parent_core_index"], unique=False
    )


def downgrade() -> None:
    op.drop_constraint("fk_cycles_input_core_id", "cycles")
    op.drop_constraint("fk_cycles_output_core_id", "cycles")
    op.drop_table("core_latents")
    op.drop_table("checkpoints")
    op.drop_table("artifacts")
    op.drop_table("metric_points")
    op.drop_table("cycle_origins")
    op.drop_table("cores")
    op.drop_table("attempts")
    op.drop_table("latents")
    op.drop_table("events")
    op.drop_table("cycles")
    op.drop_table("jobs")
    op.drop_table("api_keys")
    op.drop_table("workers")
    op.drop_table("owners")
    op.execute(sa.schema.DropSequence(sa.Sequence("fencing_numbers")))
