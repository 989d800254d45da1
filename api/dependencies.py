"""What routes are given: the parts built at start, and who is asking.

What asks no other part is asynchronous: then the framework calls it at once, where it would hand each other
one to a thread and back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from anyio import CapacityLimiter
from fastapi import Depends, Path, Query, Request

from api.drawings import Drawings
from api.rates import Buckets
from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.service.database import Database
from dmsae.service.event_hub import EventHub
from dmsae.service.objects import ObjectStore
from dmsae.service.paging import LARGEST_BIGINT
from dmsae.service.settings import Settings


@dataclass(frozen=True)
class Parts:
    """What one application holds for as long as it runs."""

    settings: Settings
    database: Database
    store: ObjectStore
    hub: EventHub
    health_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(4))
    """Threads of their own for health checks: they answer while all others wait for a part that hangs."""
    drawings: Drawings = field(default_factory=Drawings)
    """The figures that were drawn last; they are drawn one after the other."""
    buckets: Buckets = field(default_factory=Buckets)
    """How much each key may still ask of this process."""


def parts_of(request: Request) -> Parts:
    """Give the parts of the application that serves this request."""
    return cast("Parts", request.app.state.parts)


async def get_parts(request: Request) -> Parts:
    """Give them to a route."""
    return parts_of(request)


async def refuse_unknown_query(request: Request) -> None:
    """Refuse query parameters that the route does not know, and any that is given twice.

    A typo must not pass for a default, and of two values none may be dropped in silence.

    Raises:
        InvalidConfig: naming each.
    """
    if not request.scope["query_string"]:
        return
    call = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()]
    known = {given["name"]: given for given in call.get("parameters", []) if given["in"] == "query"}
    rule = f"there is no such parameter; known: {', '.join(sorted(known)) or 'none'}"
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        raise InvalidConfig([FieldProblem(name[:200], None, rule, "unknown_field") for name in unknown[:20]])
    given = {name: request.query_params.getlist(name) for name in known}
    single = [name for name in known if not _is_list(known[name]["schema"])]
    doubled = [FieldProblem(name, given[name][:2], "may be given once") for name in single if given[name][1:]]
    if doubled:
        raise InvalidConfig(doubled)


def _is_list(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") == "array" or any(map(_is_list, schema.get("anyOf", ())))


PartsOf = Annotated[Parts, Depends(get_parts)]
JobId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="Id of a job.")]
Cursor = Annotated[
    str | None, Query(max_length=500, description="`next_cursor` of the page before; leave out to begin.")
]
After = Annotated[
    int, Query(ge=0, le=LARGEST_BIGINT, description="Sequence number behind which to begin; 0: all.")
]
