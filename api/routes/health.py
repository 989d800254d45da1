"""Does this process live, and do the parts that it stands on answer? Asked without a key."""

import anyio
from fastapi import APIRouter, Response

from api.dependencies import PartsOf
from api.schemas import AliveOut, ReadinessOut
from dmsae.service.health import check_parts

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def read_health() -> AliveOut:
    """Answer as long as the process does, whatever else is away."""
    return AliveOut(status="ok")


@router.get("/readyz", responses={503: {"model": ReadinessOut, "description": "Some part is away."}})
async def read_readiness(parts: PartsOf, response: Response) -> ReadinessOut:
    """Ask Postgres, its migrations, Redis and S3; 503 while any of them is away."""
    found = await anyio.to_thread.run_sync(
        check_parts, parts.settings, parts.database, parts.store, limiter=parts.health_limiter
    )
    answer = ReadinessOut.of(found)
    if answer.status != "ok":
        response.status_code = 503
    return answer
