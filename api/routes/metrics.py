"""What Prometheus reads: where queue, attempts, workers, sweepers and this process stand, in numbers."""

import anyio
from fastapi import APIRouter, Depends, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from api.metrics import MetricsOf
from api.metrics_access import admit_scraper

router = APIRouter(tags=["health"], dependencies=[Depends(admit_scraper)])

EXAMPLE = """# HELP dmsae_queued_cycles Cycles that wait to be claimed; those of held jobs are not counted.
# TYPE dmsae_queued_cycles gauge
dmsae_queued_cycles{resource_class="gpu",priority="normal"} 3.0
"""


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": EXAMPLE}}}},
    openapi_extra={"security": [{}]},  # beside a key's: none is needed from a trusted network
)
async def read_metrics(metrics: MetricsOf) -> Response:
    """Tell all numbers in Prometheus's text format; while Postgres is away, those of this process."""
    body = await anyio.to_thread.run_sync(metrics.text, limiter=metrics.limiter)
    return Response(body, media_type=CONTENT_TYPE_LATEST)
