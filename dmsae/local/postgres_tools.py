"""`pg_dump` and `pg_restore`: found in the server's own version, and told no secret in their arguments."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dmsae.errors import Unavailable
from dmsae.local.postgres import find_binary
from dmsae.service.logs import redact

NOT_OURS = ("PG", "DMSAE_")
"""What of the caller's environment the programs do not see: other databases' settings, and secrets."""


def find_tool(name: str, version: int) -> Path:
    """Find a program of one major version of PostgreSQL: in the wheel, else on PATH.

    Raises:
        Unavailable: there is none of this version; the message names those that there are.
    """
    found = {path: _version_of(path) for path in _candidates(name)}
    for path, number in found.items():
        if number == version:
            return path
    seen = "; ".join(f"{path} is of version {number}" for path, number in found.items()) or "none was found"
    raise Unavailable(
        f"The database is PostgreSQL {version}, so {name} of version {version} is needed: {seen}. "
        f"Put one first on PATH (package postgresql-client-{version})."
    )


def dump_command(tool: Path, *, snapshot_id: str, target: Path) -> list[str]:
    """Say how a database is dumped as it stands in a snapshot that is open elsewhere."""
    return [
        str(tool), "--format=custom", "--no-owner", "--no-privileges", "--no-password",
        "--lock-wait-timeout=30s", f"--snapshot={snapshot_id}", f"--file={target}",
    ]  # fmt: skip


def restore_command(tool: Path, *, source: Path, database: str) -> list[str]:
    """Say how a dump is restored, whole or not at all."""
    return [
        str(tool), "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges",
        "--no-password", f"--dbname={database}", str(source),
    ]  # fmt: skip


def run_tool(command: Sequence[str], connection: Mapping[str, str]) -> None:
    """Run one of the programs; `connection` are libpq's variables, the password among them.

    Raises:
        Unavailable: it failed; the message ends with what it said last.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    done = subprocess.run(
        command,
        env={**kept, "PGCONNECT_TIMEOUT": "10", **connection},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        said = redact(done.stderr.strip()[-2000:]) or f"status {done.returncode}"
        raise Unavailable(f"{Path(command[0]).name} failed: {said}")


def _candidates(name: str) -> list[Path]:
    on_path = shutil.which(name)
    try:
        in_wheel = [find_binary(name)]
    except Unavailable:
        in_wheel = []
    return [path for path in (*in_wheel, *([Path(on_path)] if on_path else [])) if path.exists()]


def _version_of(path: Path) -> int | None:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    number = re.search(r"(\d+)(\.\d+)?", done.stdout)
    return int(number[1]) if number else None
