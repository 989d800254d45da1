"""Claims are made in four lanes: a few at a time, and not one after the other.

Of the claims in the other lanes, three at most, a claim does not know. That moves an owner's share by three
claims at most, and two things are held strictly all the same: while any owner has a limit on running cycles,
claims are made alone, and a claim in a lane passes such owners over; and activations that a claim in another
lane may be about to harvest are left to it, by a lock on their key. The order of claims is that of 0007, the
look at what stands that of 0013.
"""

# ruff: noqa: S608 - no value comes from outside

import runpy
from pathlib import Path

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

IS_LIMITED = "max_running IS NOT NULL"

MAY_HARVEST = """
CREATE FUNCTION may_harvest(p_cache_key text, p_worker_id text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(1684894467, hashtext(p_cache_key)) THEN
        RETURN false;
    END IF;
    RETURN NOT EXISTS (
        SELECT FROM attempts a
        WHERE a.outcome IS NULL AND a.cache_key = p_cache_key AND a.worker_id <> p_worker_id
            AND a.lease_expires_at > clock_timestamp());
END
$$
"""
"""Whether nobody else harvests these activations, or is about to: the look comes after the lock."""

QUEUED = "c.state = 'queued' AND NOT c.held AND c.resource_class = p_resource_class"
FITS = """AND c.spec_version <= p_spec_version
    AND (c.not_before IS NULL OR c.not_before <= v_now)
    AND (c.memory_bytes IS NULL OR v_memory IS NULL OR c.memory_bytes <= v_memory)"""
FREE = """(c.cache_key IS NULL OR c.queued_at <= v_free_since
    OR NOT jsonb_exists(v_elsewhere, c.cache_key))"""
RUNNABLE = "AND j.state IN ('queued', 'running') AND NOT j.held"
WHILE_OWNER_MAY = "o.max_running IS NULL OR v_is_alone AND coalesce(s.n_running, 0) < o.max_running"

SAY_WHAT_STANDS = f"""
    SELECT
        EXISTS (SELECT FROM cycles c WHERE {QUEUED} AND c.queued_at <= v_starved_since),
        EXISTS (SELECT FROM cycles c WHERE {QUEUED} AND c.priority_rank = 0),
        coalesce(jsonb_object_agg(held.key, true), '{{}}')
    INTO v_is_any_starved, v_is_any_high, v_elsewhere
    FROM (
        SELECT unnest(w.cache_keys) AS key FROM workers w
        WHERE w.id <> p_worker_id AND w.resource_class = p_resource_class AND w.cache_keys <> '{{}}'
            AND w.stopped_at IS NULL AND w.last_seen_at > v_now - make_interval(secs => p_alive_s)
        UNION ALL
        SELECT a.cache_key FROM attempts a
        WHERE a.outcome IS NULL AND a.cache_key IS NOT NULL AND a.worker_id <> p_worker_id
            AND a.lease_expires_at > v_now
    ) held
    WHERE held.key <> ALL (v_mine);
"""
"""Looked at before the wait for a lane, and not while others wait for it."""

TAKE_LANE = f"""
    v_is_alone := EXISTS (SELECT FROM owners o WHERE o.{IS_LIMITED});
    IF v_is_alone THEN
        PERFORM pg_advisory_xact_lock(1684894465);
    ELSE
        PERFORM pg_advisory_xact_lock_shared(1684894465);
        PERFORM pg_advisory_xact_lock(1684894466, pg_backend_pid() % 4);
    END IF;
"""

TAKE_STARVED = f"""
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
            WHERE {WHILE_OWNER_MAY}
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
"""
"""The oldest cycle past the bound whose owner has had no more than its share."""

OWNERS_IN_TURN = f"""
    SELECT array_agg(o.id) AS owner_ids,
        array_agg(o.id) FILTER (WHERE s.high_s >= coalesce(o.high_quota_s, p_high_quota_s)) AS spent_ids
    FROM owners o
    LEFT JOIN owner_shares(v_now, p_window_s, p_least_charge_s) s ON s.owner_id = o.id
    WHERE {WHILE_OWNER_MAY}
    GROUP BY coalesce(s.device_s, 0) / o.weight
    ORDER BY coalesce(s.device_s, 0) / o.weight
"""
"""The owners whose turn it is, those of the same use together, and who of them used up its quota of high."""

OWNERS_OF_TURN = f"""
    SELECT o.id AS owner_id, head.priority_rank
    FROM unnest(v_turn.owner_ids) AS o (id)
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
    WHERE v_level =
        CASE WHEN head.priority_rank = 0 AND o.id = ANY (v_turn.spent_ids) THEN 1 ELSE head.priority_rank END
    ORDER BY head.queued_at, o.id
"""
"""Of these, whose next cycle is of the level in hand, the one that has waited longest first."""

TAKE_OF_OWNER = f"""
    LOOP
        IF v_mine <> '{{}}' THEN
            SELECT c.id, j.id, j.state, c.cache_key, c.queued_at
            INTO v_cycle_id, v_job_id, v_job_state, v_cache_key, v_queued_at
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
            SELECT c.id, j.id, j.state, c.cache_key, c.queued_at
            INTO v_cycle_id, v_job_id, v_job_state, v_cache_key, v_queued_at
            FROM cycles c JOIN jobs j ON j.id = c.job_id
            WHERE {QUEUED} AND c.owner_id = v_owner.owner_id
                {FITS}
                AND {FREE}
                {RUNNABLE}
            ORDER BY c.priority_rank, c.queued_at, c.id LIMIT 1
            FOR NO KEY UPDATE OF j, c SKIP LOCKED;
        END IF;
        EXIT WHEN v_cycle_id IS NULL OR v_cache_key IS NULL OR v_cache_key = ANY (v_mine)
            OR v_queued_at <= v_free_since OR may_harvest(v_cache_key, p_worker_id);
        v_elsewhere := v_elsewhere || jsonb_build_object(v_cache_key, true);
        v_cycle_id := NULL;
    END LOOP;
"""
"""Its next cycle, first of those whose activations lie here; none whose activations another is to harvest."""

OPEN_ATTEMPT = """
    WITH claimed AS (
        UPDATE cycles c SET state = 'running', state_reason = NULL, not_before = NULL,
            started_at = coalesce(c.started_at, v_now)
        WHERE c.id = v_cycle_id
        RETURNING c.*
    ), opened AS (
        INSERT INTO attempts (id, cycle_id, number, fence, worker_id, celery_task_id, opened_at,
            lease_expires_at, owner_id, priority_rank, cache_key)
        SELECT p_attempt_id, claimed.id,
            (SELECT coalesce(max(a.number), 0) + 1 FROM attempts a WHERE a.cycle_id = v_cycle_id),
            nextval('fencing_numbers'), p_worker_id, p_celery_task_id, v_now,
            v_now + make_interval(secs => p_lease_s), claimed.owner_id, claimed.priority_rank,
            claimed.cache_key
        FROM claimed
        RETURNING number, fence
    ), started AS (
        UPDATE jobs j SET
            state = 'running',
            state_reason = CASE WHEN v_is_first THEN NULL ELSE j.state_reason END,
            started_at = CASE WHEN v_is_first THEN coalesce(j.started_at, v_now) ELSE j.started_at END,
            version = j.version + CASE WHEN v_is_first THEN 3 ELSE 1 END,
            event_seq = j.event_seq + CASE WHEN v_is_first THEN 2 ELSE 1 END
        WHERE j.id = v_job_id
        RETURNING j.event_seq, j.config
    ), told AS (
        INSERT INTO events (job_id, seq, kind, message, cycle_index, attempt_number, data)
        SELECT v_job_id, told.seq, told.kind, told.message, claimed.index, opened.number, told.data
        FROM claimed, opened, started, LATERAL (VALUES
            (started.event_seq - 1, 'job_started', 'The job runs.', '{}'::jsonb),
            (started.event_seq, 'attempt_opened',
                format('Attempt %s at cycle %s began on %s.', opened.number, claimed.index, p_worker_id),
                jsonb_build_object('worker_id', p_worker_id, 'fence', opened.fence))
        ) AS told (seq, kind, message, data)
        WHERE v_is_first OR told.seq = started.event_seq
    )
    SELECT v_job_id, claimed.id, claimed.index, opened.number, opened.fence, claimed.resource_class,
        claimed.spec_version, started.config, claimed.input_core_id, claimed.cache_key
    FROM claimed, opened, started
"""

CLAIM_CYCLE = f"""
CREATE OR REPLACE FUNCTION claim_cycle(
    p_worker_id text, p_resource_class text, p_spec_version integer,
    p_attempt_id text, p_celery_task_id text, p_lease_s double precision,
    p_window_s double precision, p_least_charge_s double precision, p_alive_s double precision,
    p_affinity_wait_s double precision, p_starvation_s double precision, p_high_quota_s double precision
) RETURNS TABLE (
    job_id text, cycle_id text, cycle_index integer, attempt_number integer, fence bigint,
    resource_class text, spec_version integer, config jsonb, input_core_id text, cache_key text
) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz;
    v_memory bigint;
    v_mine text[];
    v_elsewhere jsonb;
    v_free_since timestamptz;
    v_starved_since timestamptz;
    v_is_alone boolean;
    v_is_any_starved boolean;
    v_is_any_high boolean;
    v_turn record;
    v_owner record;
    v_cycle_id text;
    v_cache_key text;
    v_queued_at timestamptz;
    v_job_id text;
    v_job_state text;
    v_is_first boolean;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT w.memory_bytes, w.cache_keys INTO v_memory, v_mine FROM workers w WHERE w.id = p_worker_id;
    v_mine := coalesce(v_mine, '{{}}');
    v_now := clock_timestamp();
    v_starved_since := v_now - make_interval(secs => p_starvation_s);
    {SAY_WHAT_STANDS}
    {TAKE_LANE}
    IF EXISTS (SELECT FROM queue_pauses) THEN
        RETURN;
    END IF;
    v_now := clock_timestamp();
    v_starved_since := v_now - make_interval(secs => p_starvation_s);
    v_free_since := v_now - make_interval(secs => least(p_affinity_wait_s, p_starvation_s));
    IF v_is_any_starved THEN
        {TAKE_STARVED}
    END IF;
    FOR v_level IN CASE WHEN v_is_any_high THEN 0 ELSE 1 END .. 2 LOOP
        EXIT WHEN v_cycle_id IS NOT NULL;
        FOR v_turn IN {OWNERS_IN_TURN} LOOP
            FOR v_owner IN {OWNERS_OF_TURN} LOOP
                {TAKE_OF_OWNER}
                EXIT WHEN v_cycle_id IS NOT NULL;
            END LOOP;
            EXIT WHEN v_cycle_id IS NOT NULL;
        END LOOP;
    END LOOP;
    IF v_cycle_id IS NULL THEN
        RETURN;
    END IF;
    v_is_first := v_job_state = 'queued';
    RETURN QUERY {OPEN_ATTEMPT};
END
$$
"""


def upgrade() -> None:
    op.create_index("ix_owners_limited", "owners", ["id"], postgresql_where=sa.text(IS_LIMITED))
    for statement in (MAY_HARVEST, CLAIM_CYCLE):
        op.execute(statement)


def downgrade() -> None:
    before = runpy.run_path(str(Path(__file__).with_name("0013_less_under_the_lock.py")))
    op.execute(before["claim_cycle"]())
    op.execute("DROP FUNCTION may_harvest")
    op.drop_index("ix_owners_limited", table_name="owners")
