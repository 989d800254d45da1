"""Which parts the environment replaces by real ones, and what the service's own processes are told."""

import os
from collections.abc import Mapping
from pathlib import Path

from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.local.paths import DataFolder
from dmsae.local.services import Services

REPLACED_BY = {
    "postgres": "DMSAE_DATABASE_URL",
    "valkey": "DMSAE_BROKER_URL",
    "s3": "DMSAE_S3_ENDPOINT_URL",
}
"""A service is not started where its variable is set."""
S3_KEYS = ("DMSAE_S3_ACCESS_KEY", "DMSAE_S3_SECRET_KEY")


def embedded_names(environ: Mapping[str, str]) -> list[str]:
    """Name the services that have to be started here.

    Raises:
        InvalidConfig: the object store is a real one, but its keys are missing.
    """
    if environ.get(REPLACED_BY["s3"]):
        missing = [
            FieldProblem(name, None, f"is required with {REPLACED_BY['s3']}", "missing")
            for name in S3_KEYS
            if not environ.get(name)
        ]
        if missing:
            raise InvalidConfig(missing)
    return [name for name, variable in REPLACED_BY.items() if not environ.get(variable)]


def service_environment(
    folder: DataFolder, services: Services, names: list[str], *, checkout: Path, port: int
) -> dict[str, str]:
    """Give what API, workers and sweeper see: the caller's `DMSAE_*`, and over it what was started here."""
    env = {name: value for name, value in os.environ.items() if name.startswith("DMSAE_") and value}
    started = {
        "postgres": services.postgres_env(),
        "valkey": services.valkey_env(),
        "s3": services.s3_env(),
    }
    if "s3" in names:
        env.pop("DMSAE_S3_PUBLIC_ENDPOINT_URL", None)
    for name in names:
        env |= started[name]
    search_path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    own = {**folder.env(), "DMSAE_WEBHOOKS_KEY": services.webhooks_key}
    return {**own, **env, "DMSAE_PORT": str(port), "PYTHONPATH": search_path}
