"""Ask something of a finished core by a short job, and read what it found."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query

from api.dependencies import JobId, PartsOf
from api.idempotency import Made, Once, OnceOf
from api.probe_schemas import PROBE, PROBE_DRY_RUN, PROBE_SUBMISSIONS, ProbeDryRunOut, ProbeOut
from dmsae.service import jobs, probes
from dmsae.service.database import Transaction
from dmsae.service.probe_requests import ProbeRequest
from dmsae.service.probes import ProbePlan

router = APIRouter(prefix="/probes", tags=["probes"])

Submission = Annotated[ProbeRequest, Body(examples=PROBE_SUBMISSIONS)]
DryRun = Annotated[bool, Query(description="Only say what it would be: 200, and nothing is stored.")]


def _shown(value: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"example": value}}


PROBE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"model": ProbeDryRunOut, "description": "With `dry_run`.", "content": _shown(PROBE_DRY_RUN)},
    202: {"model": ProbeOut, "description": "The probe, queued.", "content": _shown(PROBE)},
}


@router.post("", status_code=202, responses=PROBE_ANSWERS)
def submit_probe(body: Submission, once: OnceOf, dry_run: DryRun = False) -> ProbeOut | ProbeDryRunOut:
    """Queue a probe of a finished core: a logit lens, a match with other latents, or a prompt of one's own.

    It waits, runs and ends like any other job; `GET /probes/{job_id}` shows what it found.
    """
    parts = once.parts
    roots, prefixes = parts.settings.allowed_roots, parts.settings.data_prefixes
    plan = parts.database.run(lambda session: probes.plan_probe(session, body, allowed_roots=roots))
    plan = probes.pin_objects(plan, parts.store, prefixes=prefixes)
    if dry_run:
        once.response.status_code = 200
        return ProbeDryRunOut.of(plan)
    return once.run(lambda session: _made(session, once, body, plan))


def _made(session: Transaction, once: Once, body: ProbeRequest, plan: ProbePlan) -> Made[ProbeOut]:
    view = probes.submit_probe(session, once.caller.owner_id, request=body, plan=plan)
    return Made(ProbeOut.with_result(view, None), 202, f"/probes/{view.job.id}")


@router.get("/{job_id}")
def read_probe(job_id: JobId, parts: PartsOf) -> ProbeOut:
    """Show a probe, with what it found once it has succeeded; a match of chains is one too."""
    with parts.database.session_scope() as session:
        view = jobs.view_job(session, job_id, kind="probe")
        return ProbeOut.with_result(view, probes.find_result(session, job_id))
