"""How long does it take to ask what became of a latent, and which latents there are, among millions?

A PostgreSQL of its own, as `dmsae up` starts it, with a tenth of `DMSAE_BENCH_LINEAGE_ROWS` (10,000,000)
places in cores, then with all. Each row is the 99th percentile of what the API does for one answer, from the
use case to its JSON, over random latents, jobs and pages:

- `lineage.story.N`: one latent's whole story;
- `lineage.origins.N`: the matrix of a distillation of 50 cycles;
- `lineage.page.N`: a page of `GET /latents`, random filters, every order, from the front or deep inside;
- `lineage.plans.N`: how many plans, of 200 of each of these questions, read a table from end to end;
- `lineage.scans.N`: how often Postgres read the tables of latents, places or origins from end to end;
- `lineage.flat`: the largest growth of a median from the tenth to all.
"""

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.orm import Session

from api.latent_schemas import LatentList, StoryOut
from api.lineage_schemas import OriginsOut
from bench.claims import database as make_database
from bench.lineage_rows import LARGE, plant
from bench.percentiles import p99_row
from bench.plans import plans_of, read_whole
from dmsae.local.passwords import generate_passwords
from dmsae.local.services import choose_ports, services_in, start_service
from dmsae.service.database import Database
from dmsae.service.latent_stories import tell_story
from dmsae.service.latents import LatentFilter, Order, list_latents
from dmsae.service.lineage import view_origins
from dmsae.service.paging import encode_cursor

N_ROWS = 10_000_000
N_ASKED = 1000
N_EXPLAINED = 200
Question = Callable[[Session], str]
BARS_MS = {"story": 5.0, "origins": 5.0, "page": 20.0}
SCANS = """
SELECT sum(seq_scan)::bigint FROM pg_stat_user_tables
WHERE relname IN ('latents', 'core_latents', 'cycle_origins')
"""


def lineage_rows(is_wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Give all rows, from one database that grows."""
    if not is_wanted("lineage"):
        return
    n_rows = int(os.environ.get("DMSAE_BENCH_LINEAGE_ROWS", N_ROWS))
    with tempfile.TemporaryDirectory(prefix="dmsae-bench-") as folder:
        parts = services_in(
            Path(folder), logs=Path(folder), numbers=choose_ports({}), passwords=generate_passwords()
        )
        server = start_service(parts.postgres)
        try:
            url, n_jobs, medians = make_database(parts.postgres, "lineage"), 0, []
            for size in (n_rows // 10, n_rows):
                begun = time.monotonic()
                n_jobs = plant(url, n_rows=size, first=n_jobs)
                yield built(size, time.monotonic() - begun)
                rows = list(measured(url, size, n_jobs))
                medians.append({row["name"].split(".")[1]: row["median_ms"] for row in rows[:3]})
                yield from rows
            growth = {name: medians[1][name] / medians[0][name] for name in BARS_MS}
            yield {"name": "lineage.flat", "value": round(max(growth.values()), 2), "unit": "x", "against": 1}
        finally:
            server.stop()


def built(size: int, seconds: float) -> dict[str, Any]:
    """Say how long it took to make the rows."""
    return {"name": f"lineage.built.{size}", "value": round(seconds, 1), "unit": "s"}


def measured(url: str, size: int, n_jobs: int) -> Iterator[dict[str, Any]]:
    """Ask at random, each kind of question by itself."""
    draw = random.Random(7)  # noqa: S311 - which rows are asked for
    database = Database(url.replace("postgresql://", "postgresql+psycopg://"), wake_up=lambda _: None)
    with psycopg.connect(url, autocommit=True) as connection:
        ids = [f"job_{draw.randrange(n_jobs):032x}" for _ in range(N_ASKED)]
        before = connection.execute(SCANS).fetchone()
        asked: dict[str, Callable[[int], Question]] = {
            "story": lambda _: story(latent_id(draw, n_jobs)),
            "origins": lambda number: origins(ids[number]),
            "page": lambda number: page(draw, ids[number], n_jobs * LARGE.n_latents),
        }
        for name, ask in asked.items():
            yield timed(f"lineage.{name}.{size}", database, ask, bar_ms=BARS_MS[name])
        yield explained(size, database, asked)
        database.dispose()
        time.sleep(2)  # Postgres tells of its scans a second late
        after = connection.execute(SCANS).fetchone()
    assert before is not None and after is not None  # noqa: S101, PT018 - sums have one row
    yield {"name": f"lineage.scans.{size}", "value": after[0] - before[0], "unit": "scans", "against": 0}


def explained(
    size: int, database: Database, asked: Mapping[str, Callable[[int], Question]]
) -> dict[str, Any]:
    """Count the plans that read a table from end to end, beside that of owners, which is a page long."""
    plans = [
        plan
        for ask in asked.values()
        for number in range(N_EXPLAINED)
        for plan in plans_of(database, ask(number))
    ]
    whole = [plan for plan in plans if read_whole([plan]) - {"owners"}]
    row = {"name": f"lineage.plans.{size}", "value": len(whole), "unit": "plans", "against": 0}
    return row | {"n_explained": len(plans), "worst": whole[:1]}


def latent_id(draw: random.Random, n_jobs: int) -> str:
    """Name some latent."""
    row = draw.randrange(LARGE.n_latents)
    born = max(0, (row - LARGE.n_core) // LARGE.n_new + 1)
    return f"job_{draw.randrange(n_jobs):032x}.{born}.{row}"


def story(latent_id: str) -> Question:
    """Tell one latent's story."""
    return lambda session: StoryOut.of_story(tell_story(session, latent_id)).model_dump_json()


def origins(job_id: str) -> Question:
    """Give a distillation's matrix."""
    return lambda session: OriginsOut.of(view_origins(session, job_id)).model_dump_json()


def page(draw: random.Random, job_id: str, n_latents: int) -> Question:
    """Give one page of latents."""
    order: Order = draw.choice(["oldest", "newest", "times_selected", "last_share", "max_share"])
    keys = {"times_selected": [draw.randrange(1, 10)], "last_share": [draw.random() / 100]}
    key = {**keys, "max_share": [0.01 + draw.random() / 100]}.get(order, [])
    cursor = draw.choice([None, encode_cursor([order, *key, draw.randrange(n_latents)])])
    wanted = LatentFilter(
        job_id=draw.choice([None, None, job_id]),
        origin_kind=draw.choice([None, "learned", "frequent"]),
        min_times_selected=draw.choice([None, 5, 11]),
        min_last_share=draw.choice([None, 0.009]),
        is_alive=draw.choice([None, True, False]),
    )

    def read(session: Session) -> str:
        found = list_latents(session, wanted, order=order, cursor=cursor)
        return LatentList.of(found).model_dump_json()

    return read


def timed(name: str, database: Database, ask: Callable[[int], Question], *, bar_ms: float) -> dict[str, Any]:
    """Ask again and again, and give the 99th percentile, the first tenth left out as warming up."""
    seconds = []
    for number in range(N_ASKED):
        question = ask(number)
        begun = time.perf_counter()
        with database.session_scope() as session:
            question(session)
        seconds.append(time.perf_counter() - begun)
    return p99_row(name, seconds[N_ASKED // 10 :], bar_ms=bar_ms)
