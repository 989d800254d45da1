"""`dmsae owners`: what each owner may have, in the database or, where an API is named, over HTTP."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from dmsae.commands.options import (
    DEFAULT_DATA,
    Api,
    AsJson,
    Data,
    Key,
    in_database,
    is_over_http,
    over_http,
    tell,
)

owners_app = typer.Typer(help="Owners of jobs.", no_args_is_help=True)

LIMITS = ("weight", "max_running", "max_queued", "high_quota_s")
LIMIT = "a negative number takes the limit away."


@owners_app.command("retention")
def set_retention(
    owner: Annotated[str, typer.Argument(help="Whose jobs.")],
    days: Annotated[
        str,
        typer.Argument(
            help="Days after its end until a job is deleted; none: never; default: the service's."
        ),
    ],
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Say how long an owner's jobs are kept once they have ended."""
    from dmsae.service import retention

    in_database(data, lambda session: retention.set_retention(session, owner, retention.read_days(days)))
    tell(as_json, f"Retention of {owner}: {days}.", {"owner": owner, "retention_days": days})


@owners_app.command("set")
def set_owner(
    owner: Annotated[str, typer.Argument(help="Whose turns.")],
    weight: Annotated[
        float | None, typer.Option("--weight", help="Share of the devices beside the others'; default 1.")
    ] = None,
    max_running: Annotated[
        int | None, typer.Option("--max-running", help=f"Most cycles at once; {LIMIT}")
    ] = None,
    max_queued: Annotated[
        int | None, typer.Option("--max-queued", help=f"Most jobs that wait for their first claim; {LIMIT}")
    ] = None,
    high_quota_s: Annotated[
        float | None,
        typer.Option("--high-quota-s", help=f"Device-seconds at high priority in 24 hours; {LIMIT}"),
    ] = None,
    url: Api = None,
    key: Key = None,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Say how much of the devices an owner may have; what is not named stays as it is."""
    given = dict(zip(LIMITS, (weight, max_running, max_queued, high_quota_s), strict=True))
    now = _set_over_http(url, key, owner, given) if is_over_http(url) else _set_stored(data, owner, given)
    names = (("weight", "weight"), ("max running", "max_running"), ("max queued", "max_queued"))
    told = ", ".join(f"{said} {'none' if now[name] is None else f'{now[name]:g}'}" for said, name in names)
    quota = "the default" if now["high_quota_s"] is None else f"{now['high_quota_s']:g} s"
    tell(as_json, f"{owner}: {told}, high priority for {quota}.", {"owner": owner, **now})


def _set_stored(data: Path, owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from dmsae.service.queue_control import OwnerChanges, set_owner

    now = in_database(data, lambda session: set_owner(session, owner, OwnerChanges(**given)))
    return {name: getattr(now, name) for name in LIMITS}


def _set_over_http(url: str | None, key: str | None, owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Set them; a limit that is to go is null there."""
    named = {name: value for name, value in given.items() if value is not None}
    body = {name: value if name == "weight" or value >= 0 else None for name, value in named.items()}
    now = over_http(url, key, "PATCH", f"/admin/owners/{owner}", body=body)
    return {name: now[name] for name in LIMITS}
