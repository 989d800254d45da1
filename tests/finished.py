"""A distillation of three cycles as a worker would leave it: latents that come, stay and are dropped."""

from typing import Any

from dmsae.service.claims import Claim, StoredFile, claim_cycle
from dmsae.service.database import Database
from dmsae.service.recording import record_success
from dmsae.service.tables import Job
from tests.planting import as_result, make_lineage, plant_worker

STEPS: tuple[dict[str, list[int]], ...] = (
    {"kept": [], "new": [3, 5, 8]},
    {"kept": [0, 2], "new": [20]},
    {"kept": [0, 2], "new": []},
)
"""Rows of the core given that each cycle keeps, and the rows of its SAE that it adds.

Latents by (origin cycle, row): cycle 0 selects 0.3, 0.5, 0.8; cycle 1 drops 0.5 and adds 1.20; cycle 2 drops
0.8.
"""


def claim_of(database: Database, worker_id: str, resource_class: str = "cpu") -> Claim:
    claim = database.run(
        lambda session: claim_cycle(
            session, worker_id=worker_id, resource_class=resource_class, lease_s=30, celery_task_id="task"
        )
    )
    assert claim is not None
    return claim


def finish_cycles(
    database: Database, *, n_cycles: int = 3, worker_id: str | None = None, **metrics: Any
) -> list[Claim]:
    """Claim and record the first cycles of the one job that is queued, as `STEPS` says; by a new worker."""
    worker_id = worker_id or database.run(lambda session: plant_worker(session, "cpu"))
    claims: list[Claim] = []
    core: list[Any] = []
    for step in STEPS[:n_cycles]:
        claim = claim_of(database, worker_id)
        lineage = make_lineage(claim, core, **step)
        core = lineage["core"]
        _record(database, claim, lineage, metrics)
        claims.append(claim)
    return claims


def only_job_id(database: Database) -> str:
    with database.session_scope() as session:
        return session.query(Job.id).one()[0]


def _record(database: Database, claim: Claim, lineage: dict[str, Any], metrics: dict[str, Any]) -> None:
    name = "core/core.json"
    file = StoredFile(name, f"{claim.object_prefix}{name}", 12, "0" * 64)
    result = as_result(lineage, **metrics)
    database.run(lambda session: record_success(session, claim, artifacts=(file,), result=result))
