"""Which API is meant, and with which key? One's own file of profiles, each a URL with its key.

`config.toml` in `$XDG_CONFIG_HOME/dmsae`, else in `~/.config/dmsae`:

    profile = "lab"

    [profiles.lab]
    url = "https://dmsae.lab.example"
    key = "..."
"""

import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dmsae.client.answers import headers_of, url_of
from dmsae.errors import BadRequest, DmsaeError, NotFound

DEFAULT_PROFILE = "default"
NAME = re.compile(r"[A-Za-z0-9_-]{1,50}")
SETTINGS = ("url", "key")


@dataclass(frozen=True)
class Profile:
    """One API and the key for it; either may be missing."""

    url: str | None = None
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Profiles:
    """What the file says."""

    path: Path
    chosen: str = DEFAULT_PROFILE
    by_name: Mapping[str, Profile] = field(default_factory=dict)

    def get(self, name: str | None) -> Profile:
        """Give a profile, by default the chosen one, which may be missing.

        Raises:
            NotFound: none is named so.
        """
        found = self.by_name.get(name or self.chosen)
        if found is None and name is not None:
            known = ", ".join(sorted(self.by_name)) or "none"
            raise NotFound(f"profile = {name!r}: {self.path} has no such profile; known: {known}.")
        return found or Profile()


def config_path(env: Mapping[str, str] = os.environ) -> Path:
    """Give where the file lies, by the rule of the XDG base directories."""
    given = Path(env.get("XDG_CONFIG_HOME") or "")
    base = given if given.is_absolute() else Path.home() / ".config"
    return base / "dmsae" / "config.toml"


def read_profiles(path: Path) -> Profiles:
    """Read the file; one that is not there says nothing.

    Raises:
        BadRequest: it is no TOML, or says what nothing reads.
        DmsaeError: it holds a key, and others could read or change it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return Profiles(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DmsaeError(f"{path}: cannot be read: {error}.") from error
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadRequest(f"{path}: must be TOML ({error}).") from error
    profiles = _parsed(path, found)
    if any(profile.key for profile in profiles.by_name.values()):
        _refuse_open_file(path)
    return profiles


def change_profile(profiles: Profiles, name: str, **changes: str) -> Profiles:
    """Give profiles of which one says otherwise.

    Raises:
        BadRequest: a name, URL or key that cannot be one.
    """
    _check_name(name)
    changed = replace(profiles.by_name.get(name, Profile()), **changes)
    _check(changed)
    return replace(profiles, by_name={**profiles.by_name, name: changed})


def write_profiles(profiles: Profiles) -> None:
    """Write the file whole, readable by its owner alone."""
    lines = [f"profile = {json.dumps(profiles.chosen)}"]
    for name, profile in profiles.by_name.items():
        said = ((setting, getattr(profile, setting)) for setting in SETTINGS)
        lines += ["", f"[profiles.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in said if value)]
    path = profiles.path
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    os.replace(made, path)


def find_api(
    url: str | None, key: str | None, *, profile: str | None = None, env: Mapping[str, str] = os.environ
) -> Profile:
    """Give the API and key that are meant: what is said here, else in the environment, else in a profile.

    A profile's key goes to that profile's URL alone, never to one that was named otherwise.

    Raises:
        NotFound: there is no such profile.
        DmsaeError: the file cannot be used.
    """
    url, key = url or env.get("DMSAE_URL") or None, key or env.get("DMSAE_API_KEY") or None
    if url is not None:
        return Profile(url, key)
    found = read_profiles(config_path(env)).get(profile or env.get("DMSAE_PROFILE") or None)
    return Profile(found.url, key or (found.key if found.url is not None else None))


def _parsed(path: Path, found: dict[str, Any]) -> Profiles:
    chosen, tables = found.pop("profile", DEFAULT_PROFILE), found.pop("profiles", {})
    if found or not isinstance(tables, dict) or not isinstance(chosen, str):
        told = ", ".join(found) or "profile"
        raise BadRequest(f"{path}: {told}: must be `profile`, a name, and tables `profiles.NAME`.")
    by_name = {}
    for name, table in tables.items():
        _check_name(name)
        if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
            raise BadRequest(f"{path}: profiles.{name}: must be a table of texts.")
        if unknown := table.keys() - set(SETTINGS):
            raise BadRequest(f"{path}: profiles.{name}: {min(unknown)} is none of url and key.")
        by_name[name] = Profile(**table)
        _check(by_name[name])
    return Profiles(path, chosen, by_name)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise BadRequest(f"profile = {name!r}: must be 1 to 50 of A-Z, a-z, 0-9, _ and -.")


def _check(profile: Profile) -> None:
    if profile.url is not None:
        url_of(profile.url)
    headers_of(profile.key)


def _refuse_open_file(path: Path) -> None:
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise DmsaeError(
            f"{path}: it holds a key, and its permissions {mode:04o} let others at it: chmod 600 {path}."
        )
    if found.st_uid != os.getuid():
        raise DmsaeError(f"{path}: it holds a key, and belongs to another user.")
