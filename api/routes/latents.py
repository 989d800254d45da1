"""Find latents of the whole lab, ask what became of one, and see at which texts it fires."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query

from api.dependencies import Cursor, PartsOf
from api.latent_schemas import DescendantList, LatentList, LatentQuery, LatentRow, StoryOut
from api.row_streams import BATCH, ROW_ANSWERS, Rows, refuse_paging, stream_rows
from api.snippet_schemas import SnippetsOut
from dmsae.service import latent_stories, latents, snippets
from dmsae.service.database import Transaction

router = APIRouter(prefix="/latents", tags=["latents"])

LatentId = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}\.[0-9]{1,9}\.[0-9]{1,18}$", description="Id of a latent.")
]
CoreQuery = Annotated[
    str | None,
    Query(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="A core that holds it; by default the latest one."),
]
Wanted = Annotated[LatentQuery, Query()]
Limit = Annotated[int, Query(ge=1, le=200)]


@router.get("", response_model=LatentList, responses=ROW_ANSWERS)
def list_latents(wanted: Wanted, parts: PartsOf) -> Any:
    """List latents by job, origin, share or selections, in one of a few orders."""
    refuse_paging(wanted.format, cursor=wanted.cursor, limit=wanted.limit)
    narrowed, order = wanted.filter(), wanted.order

    def read(session: Transaction, cursor: str | None) -> tuple[Rows, str | None]:
        page = latents.list_latents(session, narrowed, order=order, cursor=cursor, limit=BATCH)
        return [LatentRow.of(latent) for latent in page.items], page.next_cursor

    if wanted.format != "json":
        return stream_rows(parts, LatentRow, read, kind=wanted.format, name="latents")
    limit, cursor = wanted.limit or 100, wanted.cursor
    with parts.database.session_scope() as session:
        return LatentList.of(latents.list_latents(session, narrowed, order=order, cursor=cursor, limit=limit))


@router.get("/{latent_id}")
def read_latent(latent_id: LatentId, parts: PartsOf) -> StoryOut:
    """Tell one latent's whole story: origin, selections, who descends from it, and who matches it."""
    with parts.database.session_scope() as session:
        return StoryOut.of_story(latent_stories.tell_story(session, latent_id))


@router.get("/{latent_id}/descendants")
def list_descendants(
    latent_id: LatentId, parts: PartsOf, cursor: Cursor = None, limit: Limit = 50
) -> DescendantList:
    """List the jobs beside its own whose cores carry its encoder vector, the oldest first."""
    with parts.database.session_scope() as session:
        page = latent_stories.list_descendants(session, latent_id, cursor=cursor, limit=limit)
        return DescendantList.of(page)


@router.get("/{latent_id}/snippets")
def read_snippets(latent_id: LatentId, parts: PartsOf, core: CoreQuery = None) -> SnippetsOut:
    """Show texts at which a latent fires, token by token, its density, and the tokens that it promotes."""
    with parts.database.session_scope() as session:
        place = snippets.find_snippets(session, latent_id, core_id=core)
    return SnippetsOut.of(place, snippets.read_snippets(parts.store, place))
