"""`dmsae keys`: make, list and end API keys, in the database or, where an API is named, over HTTP."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dmsae.commands.options import (
    DEFAULT_DATA,
    Api,
    AsJson,
    Data,
    Key,
    connect,
    in_database,
    is_over_http,
    over_http,
    tell,
)

keys_app = typer.Typer(
    help="API keys of owners: in the database (the first key, say), or over HTTP with --url or --profile.",
    no_args_is_help=True,
)

COLUMNS = ("id", "owner", "name", "role", "prefix", "state", "created", "expires", "last used")


@keys_app.command("create")
def create_key(
    owner: Annotated[str, typer.Argument(help="Who will submit with it.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    role: Annotated[str, typer.Option(help="reader, submitter or admin.")] = "submitter",
    expires_days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Days that it is valid; default: for ever.")
    ] = None,
    url: Api = None,
    key: Key = None,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Make a key and show it, once: only its hash is stored."""
    if is_over_http(url):
        body = {"owner": owner, "name": name, "role": role, "expires_in_days": expires_days}
        answer = over_http(url, key, "POST", "/keys", body=body)
        tell(as_json, f"{answer['id']}\n{answer['key']}", answer)
        return
    from dmsae.service import keys

    expires_at = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    made, text = in_database(
        data, lambda session: keys.create_key(session, owner, name=name, role=role, expires_at=expires_at)
    )
    facts = {"id": made.id, "key": text, "owner": owner, "name": name, "role": role}
    tell(as_json, f"{made.id}\n{text}", facts)


@keys_app.command("list")
def list_keys(url: Api = None, key: Key = None, as_json: AsJson = False, data: Data = DEFAULT_DATA) -> None:
    """List keys; the keys themselves are stored nowhere."""
    rows = _answered_keys(url, key) if is_over_http(url) else _stored_keys(data)
    if as_json:
        names = [name.replace(" ", "_") for name in COLUMNS]
        for row in rows:
            typer.echo(json.dumps(dict(zip(names, (value or None for value in row), strict=True))))
        return
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="Id of the key, as `list` shows it.")],
    url: Api = None,
    key: Key = None,
    as_json: AsJson = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """End a key's validity now."""
    if is_over_http(url):
        over_http(url, key, "DELETE", f"/keys/{key_id}")
    else:
        from dmsae.service import keys

        in_database(data, lambda session: keys.revoke_key(session, key_id))
    tell(as_json, f"{key_id} is revoked.", {"id": key_id, "state": "revoked"})


def _stored_keys(data: Path) -> list[list[str]]:
    from dmsae.service import keys

    def read(session: Any) -> list[list[str]]:
        return [
            [key.id, owner, key.name, key.role, key.prefix, state]
            + [_moment(str(time or "")) for time in (key.created_at, key.expires_at, key.last_used_at)]
            for key, owner, state in keys.list_keys(session)
        ]

    rows: list[list[str]] = in_database(data, read)
    return rows


def _answered_keys(url: str | None, key: str | None) -> list[list[str]]:
    with connect(url, key, DEFAULT_DATA) as client:
        return [
            [found[name] for name in ("id", "owner", "name", "role", "prefix", "state")]
            + [_moment(found[name]) for name in ("created_at", "expires_at", "last_used_at")]
            for found in client.pages("/keys")
        ]


def _moment(time: str | None) -> str:
    """Give a time to the second, in UTC as both sources tell it."""
    return (time or "")[: len("2026-11-25T16:20:41")]
