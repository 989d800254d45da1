"""The claim as one function, what owners used, their weights and limits, and where cycles stand in line."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

IS_CLAIMABLE = "state = 'queued' AND NOT held"
INDEXES = {
    "ix_cycles_claimable": ["resource_class", "owner_id", "priority_rank", "queued_at", "id"],
    "ix_cycles_oldest": ["resource_class", "owner_id", "queued_at", "id"],
    "ix_cycles_cached": ["cache_key", "owner_id", "priority_rank", "queued_at", "id"],
    "ix_cycles_waiting": ["resource_class", "queued_at"],
}
ATTEMPT_COLUMNS = {"owner_id": sa.Text(), "priority_rank": sa.SmallInteger(), "cache_key": sa.Text()}
OWNER_COLUMNS = ("weight", "max_running", "max_queued", "high_quota_s")
OWNER_CHECKS = {
    "weight_positive": "weight > 0 AND weight <= 1000000",
    "limits_not_negative": "max_running >= 0 AND max_queued >= 0 AND high_quota_s >= 0",
}

OWNER_SHARES = """
CREATE FUNCTION owner_shares(
    p_now timestamptz, p_window_s double precision, p_least_charge_s double precision
) RETURNS TABLE (owner_id text, device_s double precision, high_s double precision, n_running bigint)
LANGUAGE sql STABLE AS $$
    SELECT used.owner_id, sum(used.device_s), sum(used.high_s), sum(used.n_running)
    FROM (
        SELECT s.owner_id, s.device_s, s.high_s, 0::bigint AS n_running
        FROM usage_slices s
        WHERE s.began_at > p_now - make_interval(secs => p_window_s)
        UNION ALL
        SELECT r.owner_id, r.seconds, CASE WHEN r.priority_rank = 0 THEN r.seconds ELSE 0 END, 1
        FROM (
            SELECT a.owner_id, a.priority_rank, greatest(p_least_charge_s, extract(epoch FROM
                p_now - greatest(a.opened_at, p_now - make_interval(secs => p_window_s)))) AS seconds
            FROM attempts a
            WHERE a.outcome IS NULL AND a.owner_id IS NOT NULL
        ) r
    ) used
    GROUP BY used.owner_id
$$
"""

SETTLE_ATTEMPT = """
CREATE FUNCTION settle_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    v_begin timestamptz := greatest(least(NEW.opened_at, NEW.closed_at - interval '1 second'),
        NEW.closed_at - interval '31 days');
    v_owner text;
    v_rank integer;
BEGIN
    SELECT c.owner_id, c.priority_rank INTO v_owner, v_rank FROM cycles c WHERE c.id = NEW.cycle_id;
    INSERT INTO usage_slices AS u (owner_id, began_at, device_s, high_s)
    SELECT v_owner, hour, seconds, CASE WHEN v_rank = 0 THEN seconds ELSE 0 END
    FROM (
        SELECT hour, extract(epoch FROM
            least(NEW.closed_at, hour + interval '1 hour') - greatest(v_begin, hour)) AS seconds
        FROM generate_series(
            date_bin('1 hour', v_begin, '2000-01-01 00:00+00'), NEW.closed_at, '1 hour') AS hour
    ) slices
    ON CONFLICT (owner_id, began_at)
    DO UPDATE SET device_s = u.device_s + excluded.device_s, high_s = u.high_s + excluded.high_s;
    IF NEW.outcome = 'succeeded' AND NEW.cache_key IS NOT NULL THEN
        UPDATE workers w SET cache_keys =
            (array_prepend(NEW.cache_key, array_remove(w.cache_keys, NEW.cache_key)))[1:16]
        WHERE w.id = NEW.worker_id;
    END IF;
    RETURN NULL;
END
$$
"""

NOTE_OPEN = """
UPDATE attempts a SET owner_id = c.owner_id, priority_rank = c.priority_rank, cache_key = c.cache_key
FROM cycles c WHERE c.id = a.cycle_id AND a.outcome IS NULL
"""

SETTLING = """
CREATE TRIGGER settle_attempt AFTER UPDATE OF outcome ON attempts FOR EACH ROW
WHEN (OLD.outcome IS NULL AND NEW.outcome IS NOT NULL) EXECUTE FUNCTION settle_attempt()
"""

QUEUED = "c.state = 'queued' AND NOT c.held AND c.resource_class = p_resource_class"
FITS = """AND c.spec_version <= p_spec_version
    AND (c.not_before IS NULL OR c.not_before <= v_now)
    AND (c.memory_bytes IS NULL OR v_memory IS NULL OR c.memory_bytes <= v_memory)"""
FREE = """(c.cache_key IS NULL OR c.queued_at <= v_free_since
    OR NOT jsonb_exists(v_elsewhere, c.cache_key))"""
RUNNABLE = "AND j.state IN ('queued', 'running') AND NOT j.held"

CLAIM_CYCLE = f"""
CREATE FUNCTION claim_cycle(
    p_worker_id text, p_resource_class text, p_spec_version integer,
    p_attempt_id text, p_celery_task_id text, p_lease_s double precision,
    p_window_s double precision, p_least_charge_s double precision, p_alive_s double precision,
    p_affinity_wait_s double precision, p_starvation_s double precision, p_high_quota_s double precision
) RETURNS TABLE (
    job_id text, cycle_id text, cycle_index integer, attempt_number integer, fence bigint,
    resource_class text, spec_version integer, config jsonb, input_core_id text, cache_key text
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
    v_memory bigint;
    v_mine text[];
    v_elsewhere jsonb;
    v_free_since timestamptz;
    v_starved_since timestamptz;
    v_is_paused boolean;
    v_is_any_starved boolean;
    v_owner record;
    v_owner_id text;
    v_rank smallint;
    v_cycle_id text;
    v_job_id text;
    v_job_state text;
    v_is_first boolean;
    v_seq bigint;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT w.memory_bytes, w.cache_keys INTO v_memory, v_mine FROM workers w WHERE w.id = p_worker_id;
    v_mine := coalesce(v_mine, '{{}}');
    PERFORM pg_advisory_xact_lock(1684894465);
    v_now := clock_timestamp();
    v_starved_since := v_now - make_interval(secs => p_starvation_s);
    v_free_since := v_now - make_interval(secs => least(p_affinity_wait_s, p_starvation_s));
    SELECT
        EXISTS (SELECT FROM queue_pauses),
        EXISTS (SELECT FROM cycles c WHERE {QUEUED} AND c.queued_at <= v_starved_since),
        coalesce(jsonb_object_agg(held.key, true), '{{}}')
    INTO v_is_paused, v_is_any_starved, v_elsewhere
    FROM (
        SELECT unnest(w.cache_keys) AS key FROM workers w
        WHERE w.id <> p_worker_id AND w.resource_class = p_resource_class AND w.cache_keys <> '{{}}'
            AND w.stopped_at IS NULL AND w.last_seen_at > v_now - make_interval(secs => p_alive_s)
        UNION
        SELECT a.cache_key FROM attempts a
        WHERE a.outcome IS NULL AND a.cache_key IS NOT NULL AND a.worker_id <> p_worker_id
            AND a.lease_expires_at > v_now
    ) held
    WHERE held.key <> ALL (v_mine);
    IF v_is_paused THEN
        RETURN;
    END IF;

    IF v_is_any_starved THEN
        FOR v_owner IN
            SELECT waiting.owner_id
            FROM (
                SELECT o.id AS owner_id, oldest.queued_at, coalesce(s.device_s, 0) / o.weight AS ratio,
                    avg(coalesce(s.device_s, 0) / o.weight) OVER () AS mean_ratio
                FROM owners o
                JOIN LATERAL (
                    SELECT c.queued_at FROM cycles c WHERE {QUEUED} AND c.owner_id = o.id
                        {FITS}
                    ORDER BY c.queued_at, c.id LIMIT 1
                ) oldest ON true
                LEFT JOIN owner_shares(v_now, p_window_s, p_least_charge_s) s ON s.owner_id = o.id
                WHERE o.max_running IS NULL OR coalesce(s.n_running, 0) < o.max_running
            ) waiting
            WHERE waiting.queued_at <= v_starved_since AND waiting.ratio <= waiting.mean_ratio * 1.000001
            ORDER BY waiting.queued_at, waiting.owner_id
        LOOP
            SELECT c.id, j.id, j.state INTO v_cycle_id, v_job_id, v_job_state
            FROM cycles c JOIN jobs j ON j.id = c.job_id
            WHERE {QUEUED} AND c.owner_id = v_owner.owner_id AND c.queued_at <= v_starved_since
                {FITS}
                {RUNNABLE}
            ORDER BY c.queued_at, c.id LIMIT 1
            FOR NO KEY UPDATE OF j, c SKIP LOCKED;
            EXIT WHEN v_cycle_id IS NOT NULL;
        END LOOP;
    END IF;

    FOR v_owner IN
        SELECT o.id AS owner_id, head.priority_rank
        FROM owners o
        JOIN LATERAL (
            SELECT c.priority_rank, c.queued_at
            FROM (
                SELECT c.priority_rank, c.queued_at, c.id, c.cache_key FROM cycles c
                WHERE {QUEUED} AND c.owner_id = o.id
                    {FITS}
                ORDER BY c.priority_rank, c.queued_at, c.id LIMIT 256
            ) c
            WHERE {FREE}
            ORDER BY c.priority_rank, c.queued_at, c.id LIMIT 1
        ) head ON true
        LEFT JOIN owner_shares(v_now, p_window_s, p_least_charge_s) s ON s.owner_id = o.id
        WHERE v_cycle_id IS NULL AND (o.max_running IS NULL OR coalesce(s.n_running, 0) < o.max_running)
        ORDER BY
            CASE WHEN head.priority_rank = 0
                AND coalesce(s.high_s, 0) >= coalesce(o.high_quota_s, p_high_quota_s)
            THEN 1 ELSE head.priority_rank END,
            coalesce(s.device_s, 0) / o.weight, head.queued_at, o.id
    LOOP
        IF v_mine <> '{{}}' THEN
            SELECT c.id, j.id, j.state INTO v_cycle_id, v_job_id, v_job_state
            FROM cycles c JOIN jobs j ON j.id = c.job_id
            WHERE c.id = (
                    SELECT best.id FROM unnest(v_mine) AS mine (key)
                    JOIN LATERAL (
                        SELECT c.id, c.queued_at FROM cycles c
                        WHERE c.state = 'queued' AND NOT c.held AND c.cache_key = mine.key
                            AND c.resource_class = p_resource_class AND c.owner_id = v_owner.owner_id
                            AND c.priority_rank = v_owner.priority_rank
                            {FITS}
                        ORDER BY c.queued_at, c.id LIMIT 1
                    ) best ON true
                    ORDER BY best.queued_at, best.id LIMIT 1)
                AND c.state = 'queued' {RUNNABLE}
            FOR NO KEY UPDATE OF j, c SKIP LOCKED;
        END IF;
        IF v_cycle_id IS NULL THEN
            SELECT c.id, j.id, j.state INTO v_cycle_id, v_job_id, v_job_state
            FROM cycles c JOIN jobs j ON j.id = c.job_id
            WHERE {QUEUED} AND c.owner_id = v_owner.owner_id
                {FITS}
                AND {FREE}
                {RUNNABLE}
            ORDER BY c.priority_rank, c.queued_at, c.id LIMIT 1
            FOR NO KEY UPDATE OF j, c SKIP LOCKED;
        END IF;
        EXIT WHEN v_cycle_id IS NOT NULL;
    END LOOP;
    IF v_cycle_id IS NULL THEN
        RETURN;
    END IF;

    UPDATE cycles c SET
        state = 'running', state_reason = NULL, not_before = NULL, started_at = coalesce(c.started_at, v_now)
    WHERE c.id = v_cycle_id
    RETURNING c.id, c.job_id, c.index, c.resource_class, c.spec_version, c.input_core_id, c.cache_key,
        c.owner_id, c.priority_rank
    INTO cycle_id, job_id, cycle_index, resource_class, spec_version, input_core_id, cache_key,
        v_owner_id, v_rank;
    INSERT INTO attempts (id, cycle_id, number, fence, worker_id, celery_task_id, opened_at, lease_expires_at,
        owner_id, priority_rank, cache_key)
    VALUES (p_attempt_id, v_cycle_id,
        (SELECT coalesce(max(a.number), 0) + 1 FROM attempts a WHERE a.cycle_id = v_cycle_id),
        nextval('fencing_numbers'), p_worker_id, p_celery_task_id,
        v_now, v_now + make_interval(secs => p_lease_s), v_owner_id, v_rank, cache_key)
    RETURNING attempts.number, attempts.fence INTO attempt_number, fence;
    v_is_first := v_job_state = 'queued';
    UPDATE jobs j SET
        state = 'running',
        state_reason = CASE WHEN v_is_first THEN NULL ELSE j.state_reason END,
        started_at = CASE WHEN v_is_first THEN coalesce(j.started_at, v_now) ELSE j.started_at END,
        version = j.version + CASE WHEN v_is_first THEN 3 ELSE 1 END,
        event_seq = j.event_seq + CASE WHEN v_is_first THEN 2 ELSE 1 END
    WHERE j.id = v_job_id
    RETURNING j.event_seq, j.config INTO v_seq, config;
    INSERT INTO events (job_id, seq, kind, message, cycle_index, attempt_number, data)
    SELECT v_job_id, told.seq, told.kind, told.message, cycle_index, attempt_number, told.data
    FROM (VALUES
        (v_seq - 1, 'job_started', 'The job runs.', '{{}}'::jsonb),
        (v_seq, 'attempt_opened',
            format('Attempt %s at cycle %s began on %s.', attempt_number, cycle_index, p_worker_id),
            jsonb_build_object('worker_id', p_worker_id, 'fence', fence))
    ) AS told (seq, kind, message, data)
    WHERE v_is_first OR told.seq = v_seq;
    RETURN NEXT;
END
$$
"""  # noqa: S608 - no value comes from outside


def upgrade() -> None:
    _add_columns()
    _create_tables()
    op.drop_index("ix_cycles_claimable", table_name="cycles")
    for name, columns in INDEXES.items():
        op.create_index(name, "cycles", columns, postgresql_where=sa.text(IS_CLAIMABLE))
    for statement in (OWNER_SHARES, SETTLE_ATTEMPT, SETTLING, CLAIM_CYCLE):
        op.execute(statement)


def downgrade() -> None:
    for statement in (
        "DROP FUNCTION claim_cycle",
        "DROP TRIGGER settle_attempt ON attempts",
        "DROP FUNCTION settle_attempt",
        "DROP FUNCTION owner_shares",
    ):
        op.execute(statement)
    for name in INDEXES:
        op.drop_index(name, table_name="cycles")
    op.create_index(
        "ix_cycles_claimable",
        "cycles",
        ["owner_id", "priority_rank", "queued_at"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    for table in ("queue_snapshots", "queue_pauses", "usage_slices"):
        op.drop_table(table)
    for name in OWNER_CHECKS:
        op.drop_constraint(op.f(f"ck_owners_{name}"), "owners")
    for name in OWNER_COLUMNS:
        op.drop_column("owners", name)
    for name in ATTEMPT_COLUMNS:
        op.drop_column("attempts", name)
    op.drop_column("cycles", "held")
    op.drop_column("cycles", "memory_bytes")


def _add_columns() -> None:
    op.add_column("cycles", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
    op.add_column("cycles", sa.Column("held", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.execute("UPDATE cycles c SET held = true FROM jobs j WHERE j.id = c.job_id AND j.held")
    for name, kind in ATTEMPT_COLUMNS.items():
        op.add_column("attempts", sa.Column(name, kind, nullable=True))
    op.execute(NOTE_OPEN)
    weight = sa.Column("weight", sa.Double(), server_default=sa.text("1"), nullable=False)
    limits = [sa.Column(name, sa.Integer(), nullable=True) for name in ("max_running", "max_queued")]
    for column in (weight, *limits, sa.Column("high_quota_s", sa.Double(), nullable=True)):
        op.add_column("owners", column)
    for name, rule in OWNER_CHECKS.items():
        op.create_check_constraint(op.f(f"ck_owners_{name}"), "owners", rule)


def _create_tables() -> None:
    time = sa.DateTime(timezone=True)
    op.create_table(
        "usage_slices",
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("began_at", time, nullable=False),
        sa.Column("device_s", sa.Double(), nullable=False),
        sa.Column("high_s", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["owners.id"], name=op.f("fk_usage_slices_owner_id")),
        sa.PrimaryKeyConstraint("owner_id", "began_at", name=op.f("pk_usage_slices")),
    )
    op.create_table(
        "queue_pauses",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("paused_at", time, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_queue_pauses_only_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queue_pauses")),
    )
    op.create_table(
        "queue_snapshots",
        sa.Column("resource_class", sa.Text(), nullable=False),
        sa.Column("taken_at", time, nullable=False),
        sa.Column("n_queued", sa.Integer(), nullable=False),
        sa.Column("cycle_ids", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("starts_in_s", sa.ARRAY(sa.Double()), nullable=False),
        sa.PrimaryKeyConstraint("resource_class", name=op.f("pk_queue_snapshots")),
    )
