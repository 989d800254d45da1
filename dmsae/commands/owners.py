"""`dmsae owners`: what each owner may have, straight in the database, for those who run it."""

from typing import Annotated

import typer

from dmsae.commands.options import DEFAULT_DATA, AsJson, Data, in_database, tell

owners_app = typer.Typer(help="Owners of jobs.", no_args_is_help=True)

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
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Say how much of the devices an owner may have; what is not named stays as it is."""
    from dmsae.service.queue_control import OwnerChanges, set_owner

    changes = OwnerChanges(weight, max_running, max_queued, high_quota_s)
    now = in_database(data, lambda session: set_owner(session, owner, changes))
    limits = (("weight", now.weight), ("max running", now.max_running), ("max queued", now.max_queued))
    told = ", ".join(f"{name} {'none' if value is None else f'{value:g}'}" for name, value in limits)
    quota = "the default" if now.high_quota_s is None else f"{now.high_quota_s:g} s"
    facts = {name: getattr(now, name) for name in ("weight", "max_running", "max_queued", "high_quota_s")}
    tell(as_json, f"{owner}: {told}, high priority for {quota}.", {"owner": owner, **facts})
