"""Rows for the lineage's benchmark: jobs, cores and places by the million, made by the server.

Each distillation has cycles whose cores hold the same number of latents: in each cycle the oldest are dropped
and as many new ones come. Trainings of another owner are given its last core and keep most of it; a match
finds each latent of that core again in the last core of the distillation before.
"""

from dataclasses import asdict, dataclass
from typing import Any

import psycopg

from dmsae.config import SPEC_VERSION


@dataclass(frozen=True)
class Shape:
    """How large a distillation and its trainings are."""

    n_cycles: int = 50
    n_core: int = 200
    n_new: int = 20
    """Latents that each cycle but the first drops, and as many that it adds."""
    n_trainings: int = 5
    n_kept: int = 150
    """Latents of its core that a training selects again."""

    @property
    def n_latents(self) -> int:
        """Latents that a distillation learns."""
        return self.n_core + self.n_new * (self.n_cycles - 1)

    @property
    def n_rows(self) -> int:
        """Places in cores that it makes, its trainings included."""
        return self.n_cycles * self.n_core + self.n_trainings * (self.n_core + self.n_kept)


LARGE = Shape()

FUNCTIONS = """
CREATE OR REPLACE FUNCTION job(number bigint) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN 'job_' || lpad(to_hex(number), 32, '0');
CREATE OR REPLACE FUNCTION training(d bigint, t int) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN job(1000000000 + d * 10 + t);
CREATE OR REPLACE FUNCTION cycle(d bigint, number int) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN 'cycle_' || lpad(to_hex(d * 1000 + number), 32, '0');
CREATE OR REPLACE FUNCTION core(d bigint, number int) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN 'core_' || lpad(to_hex(d * 1000 + number), 32, '0');
CREATE OR REPLACE FUNCTION share(seed bigint) RETURNS double precision LANGUAGE sql IMMUTABLE
    RETURN (hashint8(seed) & 1048575) / 1048576.0 / 100;
"""
"""Ids: d counts distillations, t trainings of one; cycles and cores from 900 on are of trainings, 990 of the
match with the distillation before."""
JOBS = """
INSERT INTO jobs (id, kind, owner_id, state, spec_version, config, finished_at)
SELECT job(d), 'distillation', 'own_ada', 'succeeded', %(spec)s, '{}'::jsonb, now()
FROM generate_series(%(first)s::bigint, %(last)s) AS d
UNION ALL
SELECT training(d, t), 'training', 'own_bob', 'succeeded', %(spec)s, '{}'::jsonb, now()
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(0, %(n_trainings)s - 1) AS t
UNION ALL
SELECT training(d, %(n_trainings)s), 'probe', 'own_bob', 'succeeded', %(spec)s, '{}'::jsonb, now()
FROM generate_series(greatest(1, %(first)s::bigint), %(last)s) AS d
"""
CYCLES = """
INSERT INTO cycles (id, job_id, index, owner_id, state, resource_class, spec_version, selects_core,
    input_core_id, output_core_id)
SELECT cycle(d, c), job(d), c, 'own_ada', 'succeeded', 'cpu', %(spec)s, true,
    CASE WHEN c > 0 THEN core(d, c - 1) END, core(d, c)
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(0, %(n_cycles)s - 1) AS c
UNION ALL
SELECT cycle(d, 900 + t), training(d, t), 0, 'own_bob', 'succeeded', 'cpu', %(spec)s, true,
    core(d, 900 + t), core(d, 950 + t)
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(0, %(n_trainings)s - 1) AS t
UNION ALL
SELECT cycle(d, 990), training(d, %(n_trainings)s), 0, 'own_bob', 'succeeded', 'cpu', %(spec)s, false,
    NULL, NULL
FROM generate_series(greatest(1, %(first)s::bigint), %(last)s) AS d
"""
CORES = """
INSERT INTO cores (id, kind, cycle_id, given_cycle_id, n_latents, object_prefix)
SELECT core(d, c), 'selected', cycle(d, c), NULL, %(n_core)s, 'x'
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(0, %(n_cycles)s - 1) AS c
UNION ALL
SELECT core(d, 900 + t), 'selected', NULL, cycle(d, 900 + t), %(n_core)s, 'x'
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(0, %(n_trainings)s - 1) AS t
UNION ALL
SELECT core(d, 950 + t), 'selected', cycle(d, 900 + t), NULL, %(n_kept)s, 'x'
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(0, %(n_trainings)s - 1) AS t
"""
LATENTS = """
INSERT INTO latents (id, public_id, origin_job_id, origin_cycle, origin_index, times_selected, last_index,
    dropped_at, last_share, max_share)
OVERRIDING SYSTEM VALUE
SELECT d * %(n_latents)s + j + 1, job(d) || '.' || born || '.' || j, job(d), born, j,
    least(j / %(n_new)s, %(n_cycles)s - 1) - born + 1,
    least(j / %(n_new)s, %(n_cycles)s - 1),
    CASE WHEN j / %(n_new)s + 1 < %(n_cycles)s THEN j / %(n_new)s + 1 END,
    share(d * %(n_latents)s + j), share(d * %(n_latents)s + j) + 0.005
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(0, %(n_latents)s - 1) AS j,
    LATERAL (SELECT CASE WHEN j < %(n_core)s THEN 0 ELSE (j - %(n_core)s) / %(n_new)s + 1 END) AS birth (born)
"""
PLACES = """
INSERT INTO core_latents (core_id, core_index, latent_id, sae_index, parent_core_id, parent_core_index,
    times_selected, score, score_se, share, rank, encoder_norm, density, decoder_cosine, firing_jaccard,
    is_borderline)
SELECT core(d, c), p, d * %(n_latents)s + %(n_new)s * c + p + 1, p,
    CASE WHEN is_kept THEN core(d, c - 1) END,
    CASE WHEN is_kept THEN p + %(n_new)s END, 1 + p %% 9, share(d + c + p), 0.001, share(d + c + p), p, 1.0,
    0.1, 0.95, 0.9, false
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(0, %(n_cycles)s - 1) AS c,
    generate_series(0, %(n_core)s - 1) AS p,
    LATERAL (SELECT c > 0 AND p + %(n_new)s < %(n_core)s) AS kept (is_kept)
"""
TRAINED_PLACES = """
INSERT INTO core_latents (core_id, core_index, latent_id, sae_index, parent_core_id, parent_core_index,
    times_selected, score, share, rank)
SELECT core(d, 900 + t), p, d * %(n_latents)s + %(n_new)s * (%(n_cycles)s - 1) + p + 1, p,
    core(d, %(n_cycles)s - 1), p, NULL, NULL, NULL, NULL
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(0, %(n_trainings)s - 1) AS t,
    generate_series(0, %(n_core)s - 1) AS p
UNION ALL
SELECT core(d, 950 + t), p, d * %(n_latents)s + %(n_new)s * (%(n_cycles)s - 1) + p + 1, p,
    core(d, 900 + t), p, 2,
    0.1, 0.1, p
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(0, %(n_trainings)s - 1) AS t,
    generate_series(0, %(n_kept)s - 1) AS p
"""
ORIGINS = """
INSERT INTO cycle_origins (cycle_id, origin_job_id, origin_cycle, n_latents)
SELECT cycle(d, c), job(d), o, CASE WHEN o = 0 THEN %(n_core)s - %(n_new)s * c ELSE %(n_new)s END
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(0, %(n_cycles)s - 1) AS c,
    generate_series(greatest(0, c - %(n_core)s / %(n_new)s + 1), c) AS o
"""
DROPS = """
INSERT INTO core_drops (cycle_id, core_index, latent_id, sae_index, score, share, rank)
SELECT cycle(d, c), p, d * %(n_latents)s + %(n_new)s * (c - 1) + p + 1, p, 0.0004, 0.0003, 400 + p
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(1, %(n_cycles)s - 1) AS c,
    generate_series(0, %(n_new)s - 1) AS p
UNION ALL
SELECT cycle(d, 900 + t), p, d * %(n_latents)s + %(n_new)s * (%(n_cycles)s - 1) + p + 1, p, NULL, NULL, NULL
FROM generate_series(%(first)s::bigint, %(last)s) AS d, generate_series(0, %(n_trainings)s - 1) AS t,
    generate_series(%(n_kept)s, %(n_core)s - 1) AS p
"""
MATCHES = """
INSERT INTO latent_matches (cycle_id, a, b, a_latent_id, b_latent_id, decoder_cosine)
SELECT cycle(d, 990), 0, 1, last - %(n_latents)s, last, 0.8
FROM generate_series(greatest(1, %(first)s::bigint), %(last)s) AS d, generate_series(0, %(n_core)s - 1) AS p,
    LATERAL (SELECT d * %(n_latents)s + %(n_new)s * (%(n_cycles)s - 1) + p + 1) AS latent (last)
"""
OWNERS = "INSERT INTO owners (id, name) VALUES ('own_ada', 'ada'), ('own_bob', 'bob') ON CONFLICT DO NOTHING"
NEXT_ID = "SELECT setval(pg_get_serial_sequence('latents', 'id'), (%(last)s + 1) * %(n_latents)s)"
STATEMENTS = (OWNERS, JOBS, CYCLES, CORES, LATENTS, PLACES, TRAINED_PLACES, ORIGINS, DROPS, MATCHES, NEXT_ID)
LOOSE = """
SELECT format('ALTER TABLE core_latents DROP CONSTRAINT %I', conname),
    format('ALTER TABLE core_latents ADD CONSTRAINT %I %s', conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE conrelid = 'core_latents'::regclass AND contype = 'u'
UNION ALL
SELECT format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid)
FROM pg_index WHERE indrelid = 'core_latents'::regclass AND NOT indisunique
"""
"""What slows down writing many places -> how it is made again."""


def plant(url: str, *, n_rows: int, first: int = 0, shape: Shape = LARGE) -> int:
    """Make distillations from number `first` on until there are `n_rows` places; give how many there are.

    Written without checking foreign keys, and indexed afterwards.
    """
    last = n_rows // shape.n_rows - 1
    numbers: dict[str, Any] = {
        "first": first,
        "last": last,
        **asdict(shape),
        "n_latents": shape.n_latents,
        "spec": SPEC_VERSION,
    }
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET maintenance_work_mem = '512MB'")
        connection.execute(FUNCTIONS)
        loose = connection.execute(LOOSE).fetchall()
        for drop, _ in loose:
            connection.execute(drop)
        for statement in STATEMENTS:
            connection.execute(statement, numbers)
        for _, make in loose:
            connection.execute(make)
        connection.execute("VACUUM ANALYZE")
    return last + 1
