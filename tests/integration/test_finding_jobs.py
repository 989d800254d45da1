"""Finished jobs are found among thousands by an index: identical ones, and a comparison's controls."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from bench.plans import plans_of, read_whole
from dmsae.service.comparisons import compare
from dmsae.service.database import Database
from dmsae.service.repeats import find_identical
from dmsae.service.tables import Job
from tests.conftest import RunningServices
from tests.finished import finish_cycles
from tests.serving import fresh_database
from tests.training_rows import submit_distillations

METRICS = {"prefix_widths": [131, 512], "lr_kept": 0.9, "lr_kept_per_prefix": [0.5, 0.9]}
"""Of a core of three latents beside a first block of 128."""
N_OTHERS = 6_000
OTHERS = """
INSERT INTO jobs SELECT other.* FROM jobs, generate_series(1, :n) AS number, LATERAL jsonb_populate_record(
    jobs, jsonb_build_object('id', 'job_' || number) || CASE WHEN number % 2 = 0
        THEN '{"state": "failed"}'::jsonb
        ELSE jsonb_build_object('kind', 'training', 'config_digest', md5(number::text), 'config', jobs.config
            || jsonb_build_object('core', jsonb_build_object('kind', 'none', 'n_matched', number)))
    END) AS other;
"""
"""Failed ones with the very digest, and finished controls of other widths."""
CYCLES = """
INSERT INTO cycles (id, job_id, index, owner_id, state, resource_class, spec_version, selects_core)
SELECT 'cycle_of_' || id, id, 0, owner_id, state, 'cpu', 1, false FROM jobs WHERE id NOT LIKE :done;
"""


@pytest.fixture(scope="module")
def many(services: RunningServices) -> Iterator[tuple[Database, str, str]]:
    """A database with a finished distillation among many other jobs, its id and its config's digest."""
    with fresh_database(services) as url:
        database = Database(url, wake_up=lambda _: None)
        (view,) = submit_distillations(database)
        done = view.job.id
        finish_cycles(database, **METRICS)
        with database.session_scope() as session:
            digest = session.get_one(Job, done).config_digest
            session.execute(text(OTHERS), {"n": N_OTHERS})
            session.execute(text(CYCLES), {"done": done})
            session.execute(text("ANALYZE"))
        assert digest is not None
        yield database, done, digest
        database.dispose()


def test_the_one_identical_job_that_succeeded_is_found_among_those_that_failed(
    many: tuple[Database, str, str],
) -> None:
    database, done, digest = many
    assert database.run(lambda session: find_identical(session, [digest, "none", None])) == {digest: done}
    plans = plans_of(database, lambda session: find_identical(session, [digest]))
    assert "ix_jobs_repeatable" in "".join(plans)
    assert read_whole(plans) == set()


def test_a_comparison_finds_its_controls_by_their_width_and_k(many: tuple[Database, str, str]) -> None:
    database, done, _ = many
    compared = database.run(lambda session: compare(session, [done], over="k"))
    assert sorted(job.job_id for job in compared.jobs) == sorted([done, "job_3"])
    plans = plans_of(database, lambda session: compare(session, [done], over="k"))
    assert "ix_jobs_controls" in "".join(plans)
    assert read_whole(plans) <= {"owners"}
