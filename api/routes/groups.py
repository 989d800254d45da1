"""Watch jobs that were submitted as one."""

from typing import Annotated

from fastapi import APIRouter, Path

from api.dependencies import PartsOf
from api.group_schemas import GroupOut
from dmsae.service.groups import view_group

router = APIRouter(prefix="/groups", tags=["groups"])

GroupId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Id of a group.")]


@router.get("/{group_id}")
def read_group(group_id: GroupId, parts: PartsOf) -> GroupOut:
    """Show a group: its jobs, where it stands, and what the match of its chains found."""
    with parts.database.session_scope() as session:
        return GroupOut.of(view_group(session, group_id))
