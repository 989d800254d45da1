"""`dmsae config`: which API is meant where none is named, and with which key."""

import sys
from dataclasses import replace
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmsae.client.profiles import Profiles, change_profile, config_path, read_profiles, write_profiles
from dmsae.commands.options import NAMED_PROFILE, AsJson, tell
from dmsae.errors import BadRequest

config_app = typer.Typer(help="Profiles: APIs by name, each with its key.", no_args_is_help=True)


@config_app.command("show")
def show_config(as_json: AsJson = False) -> None:
    """Show all profiles; of a key only whether there is one."""
    profiles = read_profiles(config_path())
    if as_json:
        tell(True, "", _facts(profiles))
        return
    table = Table("profile", "url", "key", title=escape(str(profiles.path)))
    for name, profile in profiles.by_name.items():
        mark = " (chosen)" if name == profiles.chosen else ""
        table.add_row(f"{name}{mark}", escape(profile.url or ""), "set" if profile.key else "")
    Console().print(table)


@config_app.command("set")
def set_config(
    setting: Annotated[
        Literal["url", "key", "profile"], typer.Argument(help="profile: which one is chosen.")
    ],
    value: Annotated[
        str | None, typer.Argument(help="Leave it out for a key: it is asked for, or read from stdin.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set the URL or key of a profile (`dmsae --profile lab config set url ...`), or choose a profile."""
    profiles = read_profiles(config_path())
    if setting == "key" and value is None:
        is_asked = sys.stdin.isatty()
        value = typer.prompt("API key", hide_input=True) if is_asked else sys.stdin.readline().strip()
    if not value:
        raise BadRequest(f"{setting}: must be given.", param=setting)
    name = NAMED_PROFILE.get() or profiles.chosen
    if setting == "profile":
        profiles.get(value)
        profiles = replace(profiles, chosen=value)
    else:
        profiles = change_profile(profiles, name, **{setting: value})
    write_profiles(profiles)
    text = f"{value} is chosen." if setting == "profile" else f"The {setting} of {name} is set."
    tell(as_json, text, _facts(profiles))


def _facts(profiles: Profiles) -> dict[str, Any]:
    shown = {name: {"url": each.url, "has_key": bool(each.key)} for name, each in profiles.by_name.items()}
    return {"path": str(profiles.path), "profile": profiles.chosen, "profiles": shown}
