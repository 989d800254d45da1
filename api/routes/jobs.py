"""Watch jobs, change what is about them, cancel and delete them."""

from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api import examples
from api.dependencies import Cursor, JobId, PartsOf, parts_of
from api.idempotency import Made, OnceOf
from api.long_polls import has_changed, names_version
from api.schemas import ArtifactList, ArtifactOut, JobList, JobOut, LogList, LogOut
from api.security import CallerOf, QuestionOf
from dmsae.service import deleting, jobs
from dmsae.service.jobs import JobFilter
from dmsae.service.progress import JobView
from dmsae.service.requests import JobChanges, PlainText

router = APIRouter(prefix="/jobs", tags=["jobs"])
shown = APIRouter(prefix="/jobs", tags=["jobs"])
"""Whose route finds out with its own question who asks."""
JSON = {"Content-Type": "application/json"}

State = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
Kind = Literal["distillation", "training", "probe"]
Word = Annotated[PlainText | None, Query(min_length=1, max_length=200)]
Limit = Annotated[int, Query(ge=1, le=200)]
Wait = Annotated[
    float | None,
    Query(ge=0, le=60, description="Seconds to wait for another version than that of `If-None-Match`."),
]
Changes = Annotated[JobChanges, Body(examples=[examples.CHANGES])]


def job_filter(
    state: State | None = None,
    kind: Kind | None = None,
    group_id: Word = None,
    owner: Word = None,
    tag: Word = None,
    model: Word = None,
    text: Word = None,
) -> JobFilter:
    """Narrow a list of jobs; `text` is part of the name or the notes, `model` of the model's name."""
    names = {"owner": owner, "tag": tag, "model": model, "text": text}
    return JobFilter(state=state, kind=kind, group_id=group_id, **names)


@router.get("")
def list_jobs(
    wanted: Annotated[JobFilter, Depends(job_filter)],
    parts: PartsOf,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> JobList:
    """List jobs, the newest first."""
    with parts.database.session_scope() as session:
        return JobList.of(jobs.list_jobs(session, wanted, cursor=cursor, limit=limit))


@shown.get(
    "/{job_id}", response_model=JobOut, responses={304: {"description": "Unchanged since `If-None-Match`."}}
)
async def read_job(job_id: JobId, question: QuestionOf, request: Request, wait: Wait = None) -> Response:
    """Show a job: where it stands, its resolved config, links. Its `ETag` is its version.

    With `wait` and `If-None-Match` it is answered when the version changes, with 304 if it does not.
    """
    look = partial(jobs.view_job, job_id=job_id)
    caller, view = await question.ask(look)
    is_known = _is_known(view, request)
    if wait is not None and names_version(request, view.job.version):
        parts = parts_of(request)
        is_known = not await has_changed(request, parts.hub, view.job, owner_id=caller.owner_id, wait_s=wait)
        view = view if is_known else await run_in_threadpool(parts.database.run_alone, look)
    if is_known:
        return Response(status_code=304, headers=_etag(view.job.version))
    return Response(JobOut.of(view).model_dump_json(), headers=JSON | _etag(view.job.version))


@router.patch("/{job_id}")
def change_job(job_id: JobId, body: Changes, caller: CallerOf, parts: PartsOf, response: Response) -> JobOut:
    """Change name, tags, notes or priority; only the job's owner may."""
    view = parts.database.run(
        lambda session: jobs.change_job(session, job_id, owner_id=caller.changes_of, changes=body)
    )
    response.headers.update(_etag(view.job.version))
    return JobOut.of(view)


@router.post("/{job_id}/cancel")
def cancel_job(job_id: JobId, once: OnceOf) -> JobOut:
    """Cancel a job; one that has ended stays as it is. Only the job's owner may."""
    owner_id = once.caller.changes_of
    job = once.run(lambda session: Made(JobOut.of(jobs.cancel_job(session, job_id, owner_id=owner_id))))
    once.response.headers.update(_etag(job.version))
    return job


@router.post("/{job_id}/retry")
def retry_job(job_id: JobId, once: OnceOf) -> JobOut:
    """Queue a failed job again, from its failed cycle on; one that was retried and has not ended stays as it
    is. Only the job's owner may.
    """
    owner_id = once.caller.changes_of
    job = once.run(lambda session: Made(JobOut.of(jobs.retry_job(session, job_id, owner_id=owner_id))))
    once.response.headers.update(_etag(job.version))
    return job


@router.delete("/{job_id}", status_code=204)
def delete_job(job_id: JobId, caller: CallerOf, parts: PartsOf) -> None:
    """Delete a job that has ended, with all that it stored; again is no error. Only the job's owner may."""
    parts.database.run(lambda session: deleting.delete_job(session, job_id, owner_id=caller.changes_of))


@router.get("/{job_id}/logs")
def list_logs(job_id: JobId, parts: PartsOf) -> LogList:
    """Show the end of what each attempt's trainer printed, secrets removed."""
    with parts.database.session_scope() as session:
        return LogList(items=[LogOut.of(view) for view in jobs.list_attempts(session, job_id)])


@router.get("/{job_id}/artifacts")
def list_artifacts(job_id: JobId, parts: PartsOf) -> ArtifactList:
    """List the stored files of the finished cycles, each with a link that works for a while."""
    with parts.database.session_scope() as session:
        views = jobs.list_artifacts(session, job_id)
    presign = parts.store.presign
    links = [presign(view.artifact.object_key, filename=view.filename) for view in views]
    return ArtifactList(items=[ArtifactOut.of(*pair) for pair in zip(views, links, strict=True)])


def _etag(version: int) -> dict[str, str]:
    return {"ETag": f'"{version}"', "Cache-Control": "no-cache"}


def _is_known(view: JobView, request: Request) -> bool:
    """Whether the client has this very answer; a place in the queue changes without the job's version."""
    if "if-none-match" not in request.headers:
        return False
    return view.is_decided_by_version and names_version(request, view.job.version)
