"""Watch jobs, change what is about them, cancel and delete them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Body, Depends, Query, Request, Response

from api import examples
from api.dependencies import After, Cursor, JobId, PartsOf
from api.idempotency import Made, OnceOf
from api.schemas import ArtifactList, ArtifactOut, EventList, JobList, JobOut, LogList, LogOut
from api.security import CallerOf
from dmsae.service import deleting, jobs
from dmsae.service.jobs import JobFilter
from dmsae.service.progress import JobView
from dmsae.service.requests import JobChanges, PlainText

router = APIRouter(prefix="/jobs", tags=["jobs"])

State = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
Kind = Literal["distillation", "training", "probe"]
Word = Annotated[PlainText | None, Query(min_length=1, max_length=200)]
Limit = Annotated[int, Query(ge=1, le=200)]
EventLimit = Annotated[int, Query(ge=1, le=1000)]
Changes = Annotated[JobChanges, Body(examples=[examples.CHANGES])]


def job_filter(
    state: State | None = None,
    kind: Kind | None = None,
    group_id: Word = None,
    owner: Word = None,
    tag: Word = None,
    text: Word = None,
) -> JobFilter:
    """Narrow a list of jobs; `text` is part of the name or the notes."""
    return JobFilter(state=state, owner=owner, tag=tag, kind=kind, group_id=group_id, text=text)


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


@router.get(
    "/{job_id}", response_model=JobOut, responses={304: {"description": "Unchanged since `If-None-Match`."}}
)
def read_job(job_id: JobId, parts: PartsOf, request: Request, response: Response) -> JobOut | Response:
    """Show a job: where it stands, its resolved config, links. Its `ETag` is its version."""
    with parts.database.session_scope() as session:
        view = jobs.view_job(session, job_id)
    headers = _etag(view.job.version)
    if _is_known(view, request):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return JobOut.of(view)


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


@router.get("/{job_id}/events")
def list_events(job_id: JobId, parts: PartsOf, after: After = 0, limit: EventLimit = 200) -> EventList:
    """List what happened to a job behind a sequence number, in order."""
    with parts.database.session_scope() as session:
        return EventList.of(jobs.list_events(session, job_id, after=after, limit=limit), after)


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
    given = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    return view.is_decided_by_version and not given.isdisjoint({f'"{view.job.version}"', "*"})
