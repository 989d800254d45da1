"""Rows for the queue's benchmark: owners, workers and queued cycles by the thousand, made by the server."""

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import psycopg

from dmsae.config import SPEC_VERSION
from dmsae.presets import PRESETS
from dmsae.service.claims import CLAIM, LEAST_CHARGE_S, USAGE_WINDOW, QueueRules
from dmsae.service.workers import ALIVE

N_KEYS_HELD = 8
WAITED = "extract(epoch FROM clock_timestamp() - c.queued_at)::float8"

FINISH = """
WITH closed AS (
    UPDATE attempts SET outcome = 'failed', closed_at = clock_timestamp() WHERE id = %(attempt)s
    RETURNING cycle_id
), ended AS (
    UPDATE cycles SET state = 'failed', finished_at = clock_timestamp() FROM closed
    WHERE cycles.id = closed.cycle_id RETURNING job_id
)
UPDATE jobs SET state = 'failed', finished_at = clock_timestamp() FROM ended WHERE jobs.id = ended.job_id
"""
"""Ends an attempt, its cycle and its job, in a transaction of its own."""

JOBS = """
INSERT INTO jobs (id, kind, owner_id, priority, spec_version, config, created_at)
SELECT 'job_' || %(tag)s || lpad(i::text, 7, '0'), 'distillation',
    (%(owners)s::text[])[1 + i %% cardinality(%(owners)s::text[])], %(priority)s, %(spec_version)s,
    %(config)s, clock_timestamp()
FROM generate_series(0, %(n)s - 1) AS i
"""
CYCLES = """
INSERT INTO cycles
    (id, job_id, index, owner_id, priority_rank, state, resource_class, spec_version, queued_at, cache_key,
    memory_bytes)
SELECT 'cyc_' || substr(id, 5), id, 0, owner_id, CASE priority WHEN 'low' THEN 2 ELSE 1 END, 'queued', 'cpu',
    spec_version, created_at,
    CASE WHEN %(n_keys)s > 0 THEN 'key' || right(id, 7)::bigint %% %(n_keys)s END, 1000000000
FROM jobs WHERE id LIKE 'job_' || %(tag)s || '%%'
RETURNING id
"""
WORKERS = """
INSERT INTO workers (id, hostname, device, resource_class, memory_bytes, cache_keys)
SELECT id, 'host', 'cpu:0', 'cpu', 64000000000,
    CASE WHEN %(n_keys)s > 0 THEN ARRAY(
        SELECT 'key' || (number * %(held)s + k) %% %(n_keys)s FROM generate_series(0, %(held)s - 1) AS k)
    ELSE '{}' END
FROM unnest(%(workers)s::text[]) WITH ORDINALITY AS w (id, number)
"""


@dataclass
class Planted:
    """What was made."""

    weights: dict[str, float] = field(default_factory=dict)
    """Owner -> weight."""
    workers: list[str] = field(default_factory=list)
    cycles: list[str] = field(default_factory=list)

    @property
    def n_cycles(self) -> int:
        """Count the cycles."""
        return len(self.cycles)

    def claim(self, worker: str) -> dict[str, Any]:
        """Give what a claim of this worker says beside the rules."""
        return {"worker_id": worker, "attempt_id": f"att_{uuid.uuid4().hex}"}


def claim_statement(rules: QueueRules) -> str:
    """Give the service's own statement, with its parameters but worker and attempt filled in."""
    fixed = {
        "resource_class": "'cpu'",
        "spec_version": SPEC_VERSION,
        "celery_task_id": "NULL",
        "lease_s": 30.0,
        "window_s": USAGE_WINDOW.total_seconds(),
        "least_charge_s": LEAST_CHARGE_S,
        "alive_s": ALIVE.total_seconds(),
        **rules.arguments(),
    }
    text = CLAIM.text
    for name, value in fixed.items():
        text = text.replace(f":{name}", str(value))
    for name in ("worker_id", "attempt_id"):
        text = text.replace(f":{name}", f"%({name})s")
    return text


def told_claim_statement(rules: QueueRules) -> str:
    """Give the same, asking for attempt, owner, cycle and the seconds that it waited."""
    looked_up = "SELECT {} FROM cycles c WHERE c.id = got.cycle_id"
    owner, waited = (looked_up.format(what) for what in ("c.owner_id", WAITED))
    got = claim_statement(rules)
    return f"SELECT %(attempt_id)s, ({owner}), got.cycle_id, ({waited}) FROM ({got}) AS got"  # noqa: S608


def pgbench_script(rules: QueueRules) -> str:
    """Give what each of pgbench's clients does again and again: claim, then close; `n` counts its claims."""
    attempt = "('att_' || :client_id || '_' || :n)"
    claim = claim_statement(rules).replace("%(worker_id)s", "'worker-' || :client_id")
    claim = claim.replace("%(attempt_id)s", attempt)
    finish = FINISH.replace("%(attempt)s", attempt).strip().replace("\n", " ")
    return f"\\set n :n + 1\n{claim};\n{finish};\n"


def plant(
    url: str,
    *,
    n_owners: int,
    n_workers: int,
    n_cycles: int,
    weights: list[int] | None = None,
    owners: list[str] | None = None,
    n_keys: int = 0,
    priority: str = "normal",
) -> Planted:
    """Make owners (or take those given), workers, and cycles dealt to the owners in turn."""
    planted = Planted(workers=[f"worker-{i}" for i in range(n_workers)])
    with psycopg.connect(url, autocommit=True) as connection:
        for i in range(n_owners):
            owner, weight = f"own_{i:03}", float(weights[i]) if weights else 1.0
            planted.weights[owner] = weight
            connection.execute(
                "INSERT INTO owners (id, name, weight) VALUES (%s, %s, %s)", [owner, owner, weight]
            )
        given = {
            "tag": uuid.uuid4().hex[:12],
            "owners": owners or list(planted.weights),
            "priority": priority,
            "spec_version": SPEC_VERSION,
            "config": json.dumps(PRESETS["demo"]),
            "n": n_cycles,
            "n_keys": n_keys,
            "held": N_KEYS_HELD,
            "workers": planted.workers,
        }
        connection.execute(JOBS, given)
        planted.cycles = [row[0] for row in connection.execute(CYCLES, given)]
        connection.execute(WORKERS, given)
        if n_workers:
            connection.execute("ANALYZE")
    return planted
