"""API, workers and sweeper as children: what they run, and when they answer."""

import os
import sys
from collections.abc import Mapping
from functools import partial

import httpx
import psycopg

from dmsae.local.paths import DataFolder
from dmsae.local.processes import Program

WORKER_DRAIN_S = 30.0


def api_program(folder: DataFolder, env: Mapping[str, str]) -> Program:
    """Say how the API is run."""
    return Program(
        name="api",
        command=(sys.executable, "-m", "api"),
        folder=folder.root,
        log=folder.logs / "api.log",
        env=env,
        is_ready=partial(answers, api_url(env)),
        stop_timeout_s=15,
    )


def worker_program(folder: DataFolder, env: Mapping[str, str], *, device: str) -> Program:
    """Say how the worker of one device is run; it alone sees the caller's whole environment (`HF_TOKEN`)."""
    return Program(
        name=f"worker-{device.replace(':', '-')}",
        command=(sys.executable, "-m", "worker", "--device", device),
        folder=folder.root,
        log=folder.logs / f"worker-{device.replace(':', '-')}.log",
        env={**os.environ, **env},
        is_ready=partial(_is_registered, env["DMSAE_DATABASE_URL"], device, _database_time(env)),
        stop_timeout_s=WORKER_DRAIN_S,
    )


def sweeper_program(folder: DataFolder, env: Mapping[str, str]) -> Program:
    """Say how the sweeper is run; it answers nobody."""
    return Program(
        name="sweeper",
        command=(sys.executable, "-m", "worker.sweeper"),
        folder=folder.root,
        log=folder.logs / "sweeper.log",
        env=env,
        is_ready=lambda: True,
    )


def api_url(env: Mapping[str, str]) -> str:
    """Give the address under which this machine reaches the API."""
    host = env.get("DMSAE_HOST", "127.0.0.1")
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)  # noqa: S104
    return f"http://{shown}:{env['DMSAE_PORT']}"


def answers(url: str) -> bool:
    """Tell whether the API and all that it stands on answer."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=6, trust_env=False)
        return answer.status_code == 200 and "parts" in answer.json()
    except (httpx.HTTPError, ValueError):
        return False


def _database_time(env: Mapping[str, str]) -> object:
    with _connect(env["DMSAE_DATABASE_URL"]) as connection:
        row = connection.execute("SELECT clock_timestamp()").fetchone()
        return row[0] if row else None


def _is_registered(database_url: str, device: str, since: object) -> bool:
    """Tell whether a worker of this host has started to serve a device since some time of the database."""
    query = (
        "SELECT 1 FROM workers"
        " WHERE hostname = %s AND device = %s AND started_at >= %s AND stopped_at IS NULL"
    )
    try:
        with _connect(database_url) as connection:
            return connection.execute(query, [os.uname().nodename, device, since]).fetchone() is not None
    except psycopg.OperationalError:
        return False


def _connect(database_url: str) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(database_url.replace("+psycopg", "", 1), connect_timeout=2, autocommit=True)
