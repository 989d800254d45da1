"""The three services of one folder: PostgreSQL, Valkey and SeaweedFS, as children of this process."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dmsae.local import ports, seaweedfs
from dmsae.local.passwords import Passwords
from dmsae.local.postgres import Postgres
from dmsae.local.processes import Child
from dmsae.local.seaweedfs import SeaweedFS
from dmsae.local.valkey import Valkey

Service = Postgres | Valkey | SeaweedFS
PORTS = ("postgres", "valkey", *seaweedfs.PARTS)
"""Every port that the services need; those of SeaweedFS with their pairs."""


@dataclass(frozen=True)
class Services:
    """What serves one folder; nothing runs yet."""

    postgres: Postgres
    valkey: Valkey
    s3: SeaweedFS
    webhooks_key: str
    """No service's: API and sweeper derive the secrets of webhooks from it."""

    def env(self) -> dict[str, str]:
        """Give the settings under which API and workers reach them."""
        return {**self.postgres_env(), **self.valkey_env(), **self.s3_env()}

    def postgres_env(self) -> dict[str, str]:
        """Give the settings under which the database is reached."""
        return {"DMSAE_DATABASE_URL": self.postgres.url()}

    def valkey_env(self) -> dict[str, str]:
        """Give the settings under which the broker is reached."""
        return {"DMSAE_BROKER_URL": self.valkey.url()}

    def s3_env(self) -> dict[str, str]:
        """Give the settings under which the object store is reached."""
        return {
            "DMSAE_S3_ENDPOINT_URL": self.s3.endpoint_url(),
            "DMSAE_S3_BUCKET": seaweedfs.BUCKET,
            "DMSAE_S3_ACCESS_KEY": self.s3.passwords.s3_access_key,
            "DMSAE_S3_SECRET_KEY": self.s3.passwords.s3_secret_key,
        }


def services_in(folder: Path, *, logs: Path, numbers: Mapping[str, int], passwords: Passwords) -> Services:
    """Say how the services of a folder are run."""
    s3_ports = {name: numbers[name] for name in seaweedfs.PARTS}
    return Services(
        postgres=Postgres(
            folder / "postgres", logs / "postgres.log", numbers["postgres"], passwords.postgres
        ),
        valkey=Valkey(folder / "valkey", logs / "valkey.log", numbers["valkey"], passwords.valkey),
        s3=SeaweedFS(folder / "s3", logs / "s3.log", s3_ports, passwords),
        webhooks_key=passwords.webhooks_key,
    )


def choose_ports(remembered: Mapping[str, int], *others: str) -> dict[str, int]:
    """Choose free ports for the services and the others named, those of the last run if possible."""
    return ports.choose((*others, *PORTS), remembered, paired=seaweedfs.PARTS)


def start_service(service: Service) -> Child:
    """Prepare a service, start it and wait until it answers; on failure nothing is left running.

    Raises:
        Conflict: its data folder cannot be served.
        Unavailable: it ended, or does not answer.
    """
    service.prepare()
    child = Child(service.program())
    child.start()
    try:
        child.wait_ready()
        if isinstance(service, Postgres):
            service.ensure_database()
    except BaseException:
        child.stop()
        raise
    return child
