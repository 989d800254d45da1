"""The HTTP application: built from settings, nothing at import.

`python -m api` serves it; `uvicorn --factory api.main:app_from_environment` does too.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI

from api.dependencies import Parts, refuse_unknown_query
from api.document import DocumentedApi
from api.errors import PROBLEMS, add_error_handlers
from api.handbook_site import add_handbook
from api.idempotency import add_replays
from api.limits import RequestLimits
from api.metrics import Metrics
from api.request_metrics import RequestMetrics
from api.routes import (
    admin,
    distillations,
    events,
    figures,
    groups,
    health,
    jobs,
    keys,
    latents,
    metrics,
    probes,
    published_cores,
    queue,
    step_metrics,
    trainings,
    uploads,
    webhooks,
)
from api.security import identify_caller
from api.web_page import add_web_page
from dmsae.service.database import Database
from dmsae.service.event_hub import EventHub
from dmsae.service.objects import ObjectStore
from dmsae.service.prompt_wake_ups import WakeUpThread
from dmsae.service.queue import WakeUps, make_celery
from dmsae.service.settings import Settings, load_settings
from dmsae.version import VERSION

DESCRIPTION = """
Trains Distilled Matryoshka Sparse Autoencoders cycle by cycle, and tells of each core latent which cycle it
came from and what became of it. Errors are problem documents (RFC 9457) with a stable `code`.
"""


def create_app(settings: Settings) -> FastAPI:
    """Build the application; it connects to nothing before the first request."""
    wake_ups = WakeUps(make_celery(settings.broker_url))
    waking = WakeUpThread(wake_ups)
    database = Database(settings.database_url.get_secret_value(), wake_up=waking.send_wake_up)
    hub = EventHub(database, most=settings.streams_most, most_per_owner=settings.streams_per_owner)
    parts = Parts(settings=settings, database=database, store=ObjectStore(settings), hub=hub)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        app.openapi()  # each request asks for it: else the first ones at once would all build it
        yield
        hub.close()
        waking.close()
        database.dispose()
        app.state.metrics.numbers.close()
        parts.store.close()

    app = DocumentedApi(
        title="DMSAE",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=lifespan,
        dependencies=[Depends(refuse_unknown_query)],
        redirect_slashes=False,
        docs_url=None,  # FastAPI's pages load their scripts from another host
        redoc_url=None,
    )
    app.state.parts = parts
    app.state.metrics = Metrics(settings, database, wake_ups)
    app.add_middleware(RequestLimits)
    app.add_middleware(RequestMetrics, metrics=app.state.metrics)
    add_error_handlers(app)
    add_replays(app)
    known = [Depends(identify_caller)]
    app.include_router(jobs.shown, responses=PROBLEMS)
    readers = (latents, published_cores, events, step_metrics, webhooks, figures)
    for module in (jobs, distillations, trainings, probes, groups, queue, uploads, keys, admin, *readers):
        app.include_router(module.router, dependencies=known, responses=PROBLEMS)
    app.include_router(health.router)
    app.include_router(metrics.router, responses=PROBLEMS)
    add_web_page(app)
    add_handbook(app)
    return app


def app_from_environment() -> FastAPI:
    """Build the application from `DMSAE_*` variables."""
    return create_app(load_settings())
