"""Watch a job: what happened, page by page or as it happens."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.dependencies import After, JobId, Parts, PartsOf
from api.event_streams import EVENT_STREAM, EXAMPLE, EventStream
from api.schemas import EventList
from api.security import CallerOf
from dmsae.service import jobs
from dmsae.service.paging import LARGEST_BIGINT
from dmsae.service.tables import FINAL_JOB_STATES

router = APIRouter(prefix="/jobs", tags=["jobs"])

EventLimit = Annotated[int, Query(ge=1, le=1000, description="Of a page; a stream has no limit.")]
LastEventId = Annotated[
    int | None,
    Header(
        alias="Last-Event-ID",
        ge=0,
        le=LARGEST_BIGINT,
        description="The number of the last event that arrived; it counts instead of `after`.",
    ),
]
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page, or with `Accept: text/event-stream` every event as it happens, until the job"
        " has ended; its `id` is the event's number.",
        "content": {EVENT_STREAM: {"schema": {"type": "string"}, "example": EXAMPLE}},
    },
    204: {"description": "To a stream: the job has ended, and the client has all of its events."},
}


@router.get("/{job_id}/events", response_model=EventList, responses=ANSWERS)
async def list_events(
    job_id: JobId,
    caller: CallerOf,
    parts: PartsOf,
    request: Request,
    last_event_id: LastEventId = None,
    after: After = 0,
    limit: EventLimit = 200,
) -> EventList | Response:
    """List what happened to a job behind a sequence number, in order; or stream it as it happens."""
    begin = after if last_event_id is None else last_event_id
    if EVENT_STREAM not in request.headers.get("accept", ""):
        return await run_in_threadpool(_read_page, parts, job_id, after=begin, limit=limit)
    if await run_in_threadpool(_has_ended, parts, job_id, after=begin):
        return Response(status_code=204)
    return EventStream(parts.hub.watching(job_id, owner_id=caller.owner_id, after=begin))


def _read_page(parts: Parts, job_id: str, *, after: int, limit: int) -> EventList:
    with parts.database.session_scope() as session:
        return EventList.of(jobs.list_events(session, job_id, after=after, limit=limit), after)


def _has_ended(parts: Parts, job_id: str, *, after: int) -> bool:
    with parts.database.session_scope() as session:
        job = jobs.find_job(session, job_id)
        return job.state in FINAL_JOB_STATES and job.event_seq <= after
