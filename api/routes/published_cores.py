"""List cores, find one by its id or name, and publish one under a name."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Query

from api import core_schemas
from api.core_schemas import CoreAboutOut, CoreList
from api.dependencies import Cursor, PartsOf
from api.idempotency import Made, OnceOf
from dmsae.service import publishing
from dmsae.service.core_requests import PublishRequest
from dmsae.service.database import Transaction
from dmsae.sources import CORE_NAME

router = APIRouter(prefix="/cores", tags=["cores"])

CoreId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Id of a core.")]
NamePart = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="`lab`.")]
NameRest = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(@[1-9][0-9]{0,8})?$",
        description="`gemma-2-2b-l12@3`; without a version the last one.",
    ),
]
WhoseJob = Annotated[
    str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Given to or selected by this job.")
]
Name = Annotated[str | None, Query(pattern=f"^{CORE_NAME}$", description="Published under it, any version.")]
Published = Annotated[bool | None, Query(description="Only cores that are published, or that are not.")]
Limit = Annotated[int, Query(ge=1, le=200)]
Wanted = Annotated[PublishRequest, Body(examples=[core_schemas.PUBLISH_REQUEST])]


@router.get("")
def list_cores(
    parts: PartsOf,
    job_id: WhoseJob = None,
    name: Name = None,
    is_published: Published = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> CoreList:
    """List cores, the newest first."""
    wanted = publishing.CoreListFilter(job_id=job_id, name=name, is_published=is_published)
    with parts.database.session_scope() as session:
        return CoreList.of(publishing.list_cores(session, wanted, cursor=cursor, limit=limit))


@router.get("/{core_id}")
def read_core(core_id: CoreId, parts: PartsOf) -> CoreAboutOut:
    """Show a core: where it comes from, and under which name it is published."""
    with parts.database.session_scope() as session:
        return CoreAboutOut.of(publishing.find_core(session, core_id))


@router.get("/{lab}/{name}")
def read_published_core(lab: NamePart, name: NameRest, parts: PartsOf) -> CoreAboutOut:
    """Show a published core by its name."""
    with parts.database.session_scope() as session:
        return CoreAboutOut.of(publishing.find_core(session, f"{lab}/{name}"))


@router.post("/{core_id}/publish")
def publish_core(core_id: CoreId, body: Wanted, once: OnceOf) -> CoreAboutOut:
    """Give a core a name, and the next version of it; from then on neither it nor its job can be deleted."""
    owner_id = None if once.caller.is_admin else once.caller.owner_id

    def publish(session: Transaction) -> Made[CoreAboutOut]:
        published = publishing.publish_core(session, core_id, body.name, owner_id=owner_id)
        return Made(CoreAboutOut.of(published), 200, f"/cores/{published.published_as}")

    return once.run(publish)
