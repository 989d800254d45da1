"""Who asks, and for which job, on every line that is logged while a request is answered."""

from typing import Any

import structlog
from fastapi import Request

from dmsae.service.keys import Caller

LONGEST_ID = 64


def note_who_asks(request: Request, caller: Caller) -> None:
    """Put the owner and the job on every further line of this request.

    To be called in the request's own task, so that threads which answer it begin with the same context.
    """
    fields: dict[str, Any] = {"owner_id": caller.owner_id}
    if "job_id" in request.path_params:
        fields["job"] = request.path_params["job_id"][:LONGEST_ID]
    structlog.contextvars.bind_contextvars(**fields)
