"""`dmsae keys`, `dmsae owners`: who may submit, and what each owner may have."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dmsae.commands.options import DEFAULT_DATA, Data, in_database

keys_app = typer.Typer(help="API keys of owners.", no_args_is_help=True)
owners_app = typer.Typer(help="Owners of jobs.", no_args_is_help=True)

LIMIT = "a negative number takes the limit away."


@keys_app.command("create")
def create_key(
    owner: Annotated[str, typer.Argument(help="Who will submit with it.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    data: Data = DEFAULT_DATA,
) -> None:
    """Make a key and show it, once: only its hash is stored."""
    from dmsae.service import keys

    key_id, text = in_database(
        data, lambda session: (lambda made: (made[0].id, made[1]))(keys.create_key(session, owner, name=name))
    )
    typer.echo(f"{key_id}\n{text}")


@keys_app.command("list")
def list_keys(data: Data = DEFAULT_DATA) -> None:
    """List all keys; the keys themselves are stored nowhere."""
    from dmsae.service import keys

    table = Table("id", "owner", "name", "created", "expires", "revoked")
    for key, owner in in_database(data, keys.list_keys):
        times = (key.created_at, key.expires_at, key.revoked_at)
        shown = [time.isoformat(timespec="seconds") if time else "" for time in times]
        table.add_row(key.id, owner, key.name, *shown)
    Console().print(table)


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Id of the key, as `list` shows it.")],
    data: Data = DEFAULT_DATA,
) -> None:
    """End a key's validity now."""
    from dmsae.service import keys

    in_database(data, lambda session: keys.revoke_key(session, key_id))
    typer.echo(f"{key_id} is revoked.")


@owners_app.command("retention")
def set_retention(
    owner: Annotated[str, typer.Argument(help="Whose jobs.")],
    days: Annotated[
        str,
        typer.Argument(
            help="Days after its end until a job is deleted; none: never; default: the service's."
        ),
    ],
    data: Data = DEFAULT_DATA,
) -> None:
    """Say how long an owner's jobs are kept once they have ended."""
    from dmsae.service import retention

    in_database(data, lambda session: retention.set_retention(session, owner, retention.read_days(days)))
    typer.echo(f"Retention of {owner}: {days}.")


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
    data: Data = DEFAULT_DATA,
) -> None:
    """Say how much of the devices an owner may have; what is not named stays as it is."""
    from dmsae.service.queue_control import OwnerChanges, set_owner

    changes = OwnerChanges(weight, max_running, max_queued, high_quota_s)
    now = in_database(data, lambda session: set_owner(session, owner, changes))
    limits = (("weight", now.weight), ("max running", now.max_running), ("max queued", now.max_queued))
    told = ", ".join(f"{name} {'none' if value is None else f'{value:g}'}" for name, value in limits)
    quota = "the default" if now.high_quota_s is None else f"{now.high_quota_s:g} s"
    typer.echo(f"{owner}: {told}, high priority for {quota}.")
