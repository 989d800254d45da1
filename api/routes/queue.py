"""Look at the shared queue."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.dependencies import PartsOf
from api.queue_schemas import QueueOut
from dmsae.service import queue_view

router = APIRouter(prefix="/queue", tags=["queue"])

Limit = Annotated[int, Query(ge=1, le=500, description="How many of each class are shown.")]


@router.get("")
def read_queue(parts: PartsOf, limit: Limit = 50) -> QueueOut:
    """Show what waits, in the order of claims, and why; workers and what they run; shares of owners."""
    with parts.database.session_scope() as session:
        return QueueOut.of(queue_view.view_queue(session, limit=limit))
