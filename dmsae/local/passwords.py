"""The generated passwords of one stack, kept in a file that only its user can read."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dmsae.errors import Conflict


@dataclass(frozen=True, repr=False)
class Passwords:
    """One password for each door of the embedded services."""

    postgres: str
    valkey: str
    s3_access_key: str
    s3_secret_key: str
    s3_jwt_write: str
    s3_jwt_read: str
    s3_jwt_filer_write: str
    s3_jwt_filer_read: str
    """With these four set, SeaweedFS' inner ports refuse whoever has no token."""
    webhooks_key: str
    """From it each webhook's secret is derived; folders made before there were webhooks get one later."""


def generate_passwords() -> Passwords:
    """Make fresh passwords."""
    return Passwords(**{field.name: secrets.token_hex(24) for field in fields(Passwords)})


def load_or_generate(path: Path) -> Passwords:
    """Read the passwords, or make them and write them with mode 0600; add one that an older file lacks.

    Raises:
        Conflict: the file is there but cannot be read as passwords.
    """
    if not path.exists():
        passwords = generate_passwords()
        write_private(path, json.dumps(asdict(passwords), indent=2))
        return passwords
    try:
        kept = json.loads(path.read_text())
        passwords = Passwords(**{"webhooks_key": secrets.token_hex(24), **kept})
    except (ValueError, TypeError) as error:
        raise Conflict(f"{path} is damaged: restore it from a backup of this data folder.") from error
    if "webhooks_key" not in kept:
        write_private(path, json.dumps(asdict(passwords), indent=2))
    return passwords


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
