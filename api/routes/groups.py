"""Watch and cancel jobs that were submitted as one."""

from typing import Annotated

from fastapi import APIRouter, Path

from api.dependencies import PartsOf
from api.group_schemas import GroupOut
from api.idempotency import Made, OnceOf
from dmsae.service.groups import cancel_group, view_group

router = APIRouter(prefix="/groups", tags=["groups"])

GroupId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Id of a group.")]


@router.get("/{group_id}")
def read_group(group_id: GroupId, parts: PartsOf) -> GroupOut:
    """Show a group: its jobs, where it stands, and what the match of its chains found."""
    with parts.database.session_scope() as session:
        return GroupOut.of(view_group(session, group_id))


@router.post("/{group_id}/cancel")
def cancel_jobs(group_id: GroupId, once: OnceOf) -> GroupOut:
    """Cancel all jobs of a group; those that have ended stay as they are. Only the group's owner may."""
    owner_id = once.caller.changes_of
    return once.run(lambda session: Made(GroupOut.of(cancel_group(session, group_id, owner_id=owner_id))))
