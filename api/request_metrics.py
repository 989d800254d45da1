"""How many requests does this process answer, how, and how fast? Plain ASGI, around everything else."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import OTHER, Metrics

METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
UNMATCHED = "unmatched"
"""The route of what was refused before one was found."""
WAITING = b"wait="
"""In the query of a request that asked to be answered late."""


class RequestMetrics:
    """Counts and times each request under its route's template, never under its path."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        is_answered = False

        async def send_counted(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                self._count(scope, str(message["status"]), time.monotonic() - began)
            await send(message)

        with self._metrics.in_progress.track_inprogress():
            try:
                await self._app(scope, receive, send_counted)
            except Exception:
                if not is_answered:
                    self._count(scope, "500", time.monotonic() - began)
                raise

    def _count(self, scope: Scope, status: str, seconds: float) -> None:
        method = scope["method"] if scope["method"] in METHODS else OTHER
        route = getattr(scope.get("route"), "path", UNMATCHED)
        self._metrics.requests.labels(method, route, status).inc()
        if WAITING not in scope["query_string"]:
            self._metrics.seconds.labels(method, route).observe(seconds)
