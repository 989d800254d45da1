"""How does an answer wait until a job has changed? Holding no thread, connection or transaction meanwhile."""

import time

from fastapi import Request

from api.event_streams import until_gone
from dmsae.errors import BadRequest
from dmsae.service.event_hub import EventHub, Watcher
from dmsae.service.paging import LARGEST_BIGINT
from dmsae.service.tables import Job


def names_version(request: Request, version: int) -> bool:
    """Tell whether `If-None-Match` names a version, or any.

    Raises:
        BadRequest: there is none, so there is nothing to wait for.
    """
    if "if-none-match" not in request.headers:
        rule = "needs `If-None-Match`, with the `ETag` of the answer that is known already"
        raise BadRequest(f"wait: {rule}.", param="wait")
    given = {tag.strip().removeprefix("W/") for tag in request.headers["if-none-match"].split(",")}
    return not given.isdisjoint({f'"{version}"', "*"})


async def has_changed(request: Request, hub: EventHub, job: Job, *, owner_id: str, wait_s: float) -> bool:
    """Wait until a job has another version; false if the time is over, or the client gone, before.

    Raises:
        QuotaExceeded: the owner waits for, and streams, as much as it may.
        Unavailable: so does this process, or it is about to end.
    """
    with hub.watching(job.id, owner_id=owner_id, after=LARGEST_BIGINT) as watcher:
        return bool(await until_gone(request.receive, _wait_for_change(watcher, job.version, wait_s)))


async def _wait_for_change(watcher: Watcher, version: int, wait_s: float) -> bool:
    ends_at = time.monotonic() + wait_s
    while watcher.head is None or watcher.head.version == version:
        left_s = ends_at - time.monotonic()
        if left_s <= 0 or watcher.is_closed:
            return False
        await watcher.wait(left_s)
    return True
