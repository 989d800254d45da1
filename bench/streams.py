"""Are jobs taken, and is life told of, as fast as ever while many event streams are open?

Services of their own and one real process of the API, as `dmsae up` starts them; `N_STREAMS` streams follow
jobs of which each tells an event a second, through Postgres, as workers do; `POST /distillations` comes
`RATE` times a second for `LOAD_S` seconds, and `GET /healthz` `HEALTH_RATE` times beside it. Rows:

- `streams.submit`: 99th percentile of `POST /distillations`, in ms;
- `streams.healthz`: the same of `GET /healthz`;
- `streams.told`: events that streams got, over those that they were to get.

Each says whether its bar `holds`.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.asking import Asker
from bench.percentiles import p99_row
from dmsae.local.passwords import generate_passwords
from dmsae.local.processes import Child, Program
from dmsae.local.programs import answers
from dmsae.local.services import choose_ports, services_in, start_service
from dmsae.service.database import Database
from dmsae.service.events import append_event
from dmsae.service.logs import configure_logs
from dmsae.service.migrating import migrate
from dmsae.service.objects import ObjectStore
from dmsae.service.settings import settings_from

N_STREAMS = 200
N_FOLLOWED = 20
RATE = 50.0
HEALTH_RATE = 10.0
LOAD_S = 20.0
WARM_S = 3.0
BARS_MS = {"submit": 50.0, "healthz": 20.0}
BODY = {"preset": "demo"}
CHECKOUT = Path(__file__).parents[1]


class Loaded(NamedTuple):
    """What was seen under load."""

    seconds: dict[str, list[float]]
    """Of each kind of request, from when it was due to its answer."""
    n_told: int
    n_to_tell: int


def stream_rows(is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Give all rows, from one load."""
    if not is_wanted("streams"):
        return
    with tempfile.TemporaryDirectory(prefix="dmsae-bench-") as folder, ExitStack() as stack:
        api = started(Path(folder), stack)
        url = api.database_url.replace("postgresql://", "postgresql+psycopg://")
        database = Database(url, wake_up=str, pool_size=1)
        stack.callback(database.dispose)
        loaded = asyncio.run(put_under_load(api.url, database))
    for name, bar_ms in BARS_MS.items():
        yield p99_row(f"streams.{name}", loaded.seconds[name], bar_ms=bar_ms)
    yield {
        "name": "streams.told",
        "value": loaded.n_told,
        "unit": "events",
        "against": loaded.n_to_tell,
        "ratio": round(loaded.n_told / loaded.n_to_tell, 3),
        "holds": loaded.n_told == loaded.n_to_tell,
    }


class Started(NamedTuple):
    """An API that answers, and its database."""

    url: str
    database_url: str
    """psycopg's."""
    env: Mapping[str, str]
    """Under which it runs."""


def started(folder: Path, stack: ExitStack) -> Started:
    """Start services and an API that last as long as the stack."""
    configure_logs("WARNING")
    numbers = choose_ports({}, "api")
    parts = services_in(folder, logs=folder, numbers=numbers, passwords=generate_passwords())
    stack.callback(parts.s3.remove_sockets)
    for part in (parts.postgres, parts.valkey, parts.s3):
        stack.callback(start_service(part).stop)
    env = {**parts.env(), "DMSAE_PORT": str(numbers["api"]), "DMSAE_RATE_PER_S": "0"}
    settings = settings_from(env)
    migrate(settings.database_url.get_secret_value())
    with closing(ObjectStore(settings)) as store:
        store.ensure_bucket()
    url = f"http://127.0.0.1:{numbers['api']}"
    api = Child(
        Program(
            name="api",
            command=(sys.executable, "-m", "api"),
            folder=CHECKOUT,
            log=folder / "api.log",
            env=env,
            is_ready=partial(answers, url),
            stop_timeout_s=15,
        )
    )
    stack.callback(api.stop)
    api.start()
    api.wait_ready(60)
    return Started(url, settings.database_url.get_secret_value().replace("+psycopg", ""), env)


async def put_under_load(url: str, database: Database) -> Loaded:
    """Open the streams, ask by the clock, and end the jobs that are followed: so each stream ends."""
    async with Asker(url) as asker:
        submission = asker.request("POST", "/distillations", BODY)
        job_ids = [json.loads(await asker.ask(submission))["id"] for _ in range(N_FOLLOWED)]
        opened = asyncio.Semaphore(0)
        streams = [
            asyncio.create_task(asker.follow(job_ids[i % N_FOLLOWED], opened)) for i in range(N_STREAMS)
        ]
        for _ in streams:
            await opened.acquire()
        await asker.ask_by_the_clock(submission, rate=RATE, for_s=WARM_S)
        submits, healths, _ = await asyncio.gather(
            asker.ask_by_the_clock(submission, rate=RATE, for_s=LOAD_S),
            asker.ask_by_the_clock(asker.request("GET", "/healthz"), rate=HEALTH_RATE, for_s=LOAD_S),
            tell_events(database, job_ids, for_s=LOAD_S),
        )
        for job_id in job_ids:
            await asker.ask_for_json("POST", f"/jobs/{job_id}/cancel")
        n_told = sum(await asyncio.gather(*streams))
        pages = [await asker.ask_for_json("GET", f"/jobs/{job_id}/events?limit=1000") for job_id in job_ids]
    n_to_tell = sum(len(pages[i % N_FOLLOWED]["items"]) for i in range(N_STREAMS))
    return Loaded({"submit": submits, "healthz": healths}, n_told, n_to_tell)


async def tell_events(database: Database, job_ids: list[str], *, for_s: float) -> None:
    """Let one job after the other tell an event, as their workers do: each about once a second."""
    begun = time.perf_counter()
    for number in range(int(for_s * len(job_ids))):
        await asyncio.sleep(max(0.0, begun + number / len(job_ids) - time.perf_counter()))
        tell = partial(append_event, job_id=job_ids[number % len(job_ids)], kind="told", message=f"{number}")
        await asyncio.to_thread(database.run, tell)
