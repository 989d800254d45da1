"""Who asks, and for which job, on every line that is logged while a request is answered."""

from typing import Any

import structlog
from fastapi import Request

from api.security import CallerOf

LONGEST_ID = 64


async def log_who_asks(request: Request, caller: CallerOf) -> None:
    """Put the owner and the job on every further line of this request.

    In the request's own task, so that threads which answer it begin with the same context.
    """
    fields: dict[str, Any] = {"owner_id": caller.owner_id}
    if "job_id" in request.path_params:
        fields["job"] = request.path_params["job_id"][:LONGEST_ID]
    structlog.contextvars.bind_contextvars(**fields)
