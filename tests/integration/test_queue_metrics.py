"""What the metrics ask of the database costs by what waits and runs, not by what ever did."""

import time
from collections.abc import Iterator

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from bench.claim_rows import plant
from dmsae.service.database import Database
from dmsae.service.queue_metrics import CLOSED, DONE, RUNNING, WAITING, WORKERS, read_numbers

N_QUEUED = 10_000
N_ENDED = 20_000
ENDED = """
WITH made AS (
    INSERT INTO jobs (id, kind, owner_id, spec_version, config, state, finished_at)
    SELECT 'old_' || i, 'distillation', (SELECT min(id) FROM owners), 1, '{}', 'failed', now()
    FROM generate_series(1, :n) AS i RETURNING id, owner_id
), cycled AS (
    INSERT INTO cycles
        (id, job_id, index, owner_id, state, resource_class, spec_version, queued_at, started_at)
    SELECT 'cyc_' || id, id, 0, owner_id, 'failed', 'cpu', 1, now(), now() FROM made RETURNING id
)
INSERT INTO attempts (id, cycle_id, number, fence, worker_id, lease_expires_at, outcome, closed_at)
SELECT 'att_' || id, id, 1, row_number() OVER (), (SELECT min(id) FROM workers), now(), 'failed', now()
FROM cycled
"""

TRIED = "UPDATE cycles SET started_at = now() WHERE state = 'queued' AND right(id, 1) = '0'"


@pytest.fixture
def long_queue(database: Database, database_url: str) -> Iterator[Session]:
    plain_url = database_url.replace("+psycopg", "")
    plant(plain_url, n_owners=20, n_workers=64, n_cycles=N_QUEUED)
    with database.session_scope() as session:
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text(ENDED), {"n": N_ENDED})
        session.execute(text(TRIED))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    with Session(database.engine) as session:
        yield session


def scans(session: Session, query: TextClause, **given: float) -> set[tuple[str, str]]:
    plan = session.execute(text(f"EXPLAIN (FORMAT JSON) {query.text}"), given).scalar_one()[0]["Plan"]
    found: set[tuple[str, str]] = set()
    nodes = [plan]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if "Relation Name" in node:
            found.add((node["Relation Name"], node["Node Type"]))
    return found


def test_ten_thousand_queued_cycles_are_counted_at_once_without_reading_what_has_ended(
    database: Database, long_queue: Session
) -> None:
    for query in (WAITING, RUNNING, CLOSED, DONE):
        for table, how in scans(long_queue, query):
            assert table not in ("cycles", "attempts", "jobs") or how != "Seq Scan", query.text
    assert ("attempts", "Seq Scan") not in scans(long_queue, WORKERS, alive_s=60.0)
    long_queue.rollback()
    took_s = []
    for _ in range(5):
        began = time.perf_counter()
        numbers = database.run(read_numbers)
        took_s.append(time.perf_counter() - began)
    assert sum(found.n for found in numbers.waiting) == N_QUEUED
    assert min(took_s) < 0.5
