"""Are jobs taken, and is life told of, as fast as ever while many event streams are open?

Services of their own and one real process of the API, as `dmsae up` starts them; `N_STREAMS` streams follow
jobs that go on telling events; `POST /distillations` comes `RATE` times a second for `LOAD_S` seconds, and
`GET /healthz` `HEALTH_RATE` times beside it. Each answer is timed from when it was due, so whoever makes it
wait is seen. Rows:

- `streams.submit`: 99th percentile of `POST /distillations`, in ms;
- `streams.healthz`: the same of `GET /healthz`;
- `streams.told`: events that streams got, over those that they were to get.

Each says whether its bar `holds`.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from bench.percentiles import p99_row
from dmsae.local.passwords import generate_passwords
from dmsae.local.processes import Child, Program
from dmsae.local.programs import answers
from dmsae.local.services import choose_ports, services_in, start_service
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
        url = started(Path(folder), stack)
        loaded = asyncio.run(put_under_load(url))
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


def started(folder: Path, stack: ExitStack) -> str:
    """Start services and an API that last as long as the stack; give the API's URL."""
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
    return url


async def put_under_load(url: str) -> Loaded:
    """Open the streams, ask by the clock, and end the jobs that are followed: so each stream ends."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, limits=limits) as http:
        job_ids = [await submit(http) for _ in range(N_FOLLOWED)]
        opened = asyncio.Semaphore(0)
        streams = [
            asyncio.create_task(follow(http, job_ids[i % N_FOLLOWED], opened)) for i in range(N_STREAMS)
        ]
        for _ in streams:
            await opened.acquire()
        await by_the_clock(partial(submit, http), rate=RATE, for_s=WARM_S)
        submits, healths, _ = await asyncio.gather(
            by_the_clock(partial(submit, http), rate=RATE, for_s=LOAD_S),
            by_the_clock(partial(ask_health, http), rate=HEALTH_RATE, for_s=LOAD_S),
            change_notes(http, job_ids, for_s=LOAD_S / 2),
        )
        for job_id in job_ids:
            (await http.post(f"/jobs/{job_id}/cancel")).raise_for_status()
        n_told = sum(await asyncio.gather(*streams))
        pages = [(await http.get(f"/jobs/{job_id}/events?limit=1000")).json() for job_id in job_ids]
    n_to_tell = sum(len(pages[i % N_FOLLOWED]["items"]) for i in range(N_STREAMS))
    return Loaded({"submit": submits, "healthz": healths}, n_told, n_to_tell)


async def by_the_clock(ask: Callable[[], Awaitable[Any]], *, rate: float, for_s: float) -> list[float]:
    """Ask so many times a second, whatever the answers take; give what each took from when it was due."""
    begun = time.perf_counter()

    async def timed(due: float) -> float:
        await ask()
        return time.perf_counter() - due

    asked = []
    for number in range(int(rate * for_s)):
        due = begun + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.append(asyncio.create_task(timed(due)))
    return list(await asyncio.gather(*asked))


async def submit(http: httpx.AsyncClient) -> str:
    """Submit a distillation, which must be taken."""
    answer = await http.post("/distillations", json=BODY)
    answer.raise_for_status()
    return str(answer.json()["id"])


async def ask_health(http: httpx.AsyncClient) -> None:
    """Ask whether the process lives, which it must."""
    (await http.get("/healthz")).raise_for_status()


async def follow(http: httpx.AsyncClient, job_id: str, opened: asyncio.Semaphore) -> int:
    """Read a stream to its end; give the number of events."""
    n_told = 0
    headers = {"Accept": "text/event-stream"}
    async with http.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
        answer.raise_for_status()
        opened.release()
        async for line in answer.aiter_lines():
            n_told += line.startswith("data: ")
    return n_told


async def change_notes(http: httpx.AsyncClient, job_ids: list[str], *, for_s: float) -> None:
    """Let one job after the other tell an event, so that each does so about once a second."""
    n_changes = int(for_s * len(job_ids))
    for number in range(n_changes):
        answer = await http.patch(f"/jobs/{job_ids[number % len(job_ids)]}", json={"notes": f"{number}"})
        answer.raise_for_status()
        await asyncio.sleep(for_s / n_changes)
