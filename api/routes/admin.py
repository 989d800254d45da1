"""Run the shared queue: pauses, holds, priorities, weights and limits; for administrators."""

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path

from api import control_schemas
from api.control_schemas import OwnerList, OwnerOut, PauseOut
from api.dependencies import JobId, PartsOf
from api.schemas import JobOut
from api.security import require_admin
from dmsae.service import administration
from dmsae.service.control_requests import OwnerLimits, QueueChanges, TurnChanges
from dmsae.service.keys import OWNER_NAME
from dmsae.service.shares import list_shares

router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)])

NameOfOwner = Annotated[str, Path(pattern=f"^{OWNER_NAME.pattern}$", description="Name of an owner.")]
Pausing = Annotated[QueueChanges, Body(examples=control_schemas.QUEUE_CHANGES)]
Turn = Annotated[TurnChanges, Body(examples=control_schemas.TURN_CHANGES)]
Limits = Annotated[OwnerLimits, Body(examples=[control_schemas.OWNER_LIMITS])]


@router.get("/queue")
def read_pause(parts: PartsOf) -> PauseOut:
    """Tell whether the queue is paused."""
    with parts.database.session_scope() as session:
        return PauseOut.of(administration.find_pause(session))


@router.patch("/queue")
def change_queue(body: Pausing, parts: PartsOf) -> PauseOut:
    """Pause the queue or let it go on; what runs goes on in either case. Again is no error."""
    return PauseOut.of(parts.database.run(lambda session: administration.change_queue(session, body)))


@router.patch("/jobs/{job_id}")
def change_turn(job_id: JobId, body: Turn, parts: PartsOf) -> JobOut:
    """Hold or release a job, or give it another priority, whoever owns it."""
    view = parts.database.run(lambda session: administration.change_turn(session, job_id, body))
    return JobOut.of(view)


@router.get("/owners")
def list_owners(parts: PartsOf) -> OwnerList:
    """List all owners with their limits, and what they used of the devices in the last 24 hours."""
    with parts.database.session_scope() as session:
        return OwnerList.of(list_shares(session))


@router.patch("/owners/{name}")
def change_owner(name: NameOfOwner, body: Limits, parts: PartsOf) -> OwnerOut:
    """Change an owner's weight and limits; what is left out stays."""
    share = parts.database.run(lambda session: administration.change_owner(session, name, body))
    return OwnerOut.model_validate(share)
