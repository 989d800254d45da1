"""Latents of the whole lab, found by every filter in every order, and the story of one."""

import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from bench.lineage_rows import Shape, plant
from bench.plans import plans_of, read_whole
from dmsae.errors import BadRequest, InvalidConfig, NotFound
from dmsae.service import latent_stories, latents
from dmsae.service.core_tables import SORT_KEYS, CoreDrop, LatentMatch
from dmsae.service.database import Database
from dmsae.service.latent_stories import JobPath, list_descendants, tell_story
from dmsae.service.latents import LatentFilter, list_latents
from dmsae.service.lineage import view_origins
from dmsae.service.tables import Core, CoreLatent, Cycle, Job, Latent
from tests.conftest import RunningServices
from tests.planting import plant_job
from tests.serving import fresh_database

KINDS = ("learned", "learned", "random_directions", "frequent")
ORDERS = ("oldest", "newest", *SORT_KEYS)
SMALL = Shape(n_cycles=5, n_core=20, n_new=4, n_trainings=2, n_kept=15)
N_ROWS = 100_000
N_JOBS = N_ROWS // SMALL.n_rows
"""Small ones, so that there are enough of them for Postgres to prefer its indexes."""


def plant_latents(database: Database, seed: int, *, n_jobs: int = 3, n_each: int = 14) -> None:
    """Jobs of three cycles with latents of every kind, one job a training around others' latents."""
    draw = random.Random(seed)
    with database.session_scope() as session:
        for _ in range(n_jobs):
            job_id = plant_job(session, "cpu")
            rows = [_random_latent(draw, job_id, row) for row in range(n_each)]
            session.execute(insert(Latent), rows)
        training = plant_job(session, "cpu", n_cycles=1)
        session.query(Job).where(Job.id == training).update({"kind": "training"})
        cycle_id = session.scalars(select(Cycle.id).where(Cycle.job_id == training)).one()
        session.add(
            Core(id=f"core_{seed}", kind="selected", given_cycle_id=cycle_id, n_latents=9, object_prefix="x")
        )
        session.flush()
        ids = draw.sample(list(session.scalars(select(Latent.id))), 9)
        places = [{"core_id": f"core_{seed}", "core_index": i, "latent_id": ids[i]} for i in range(9)]
        session.execute(insert(CoreLatent), places)


def _random_latent(draw: random.Random, job_id: str, row: int) -> dict[str, Any]:
    cycle = draw.randrange(3)
    was_selected = draw.random() < 0.8
    share = draw.choice([0.0, 0.125, 0.25, draw.random()]) if was_selected else None
    return {
        "public_id": f"{job_id}.{cycle}.{row}",
        "origin_job_id": job_id,
        "origin_cycle": cycle,
        "origin_index": row,
        "origin_kind": draw.choice(KINDS),
        "times_selected": draw.randrange(1, 4) if was_selected else 0,
        "last_index": cycle if was_selected else None,
        "dropped_at": draw.choice([None, cycle + 1]) if was_selected else None,
        "last_share": share,
        "max_share": None if share is None else share + draw.choice([0.0, 0.1]),
    }


@pytest.fixture(scope="module")
def planted(services: RunningServices) -> Iterator[Database]:
    with fresh_database(services) as url:
        database = Database(url, wake_up=lambda _: None)
        plant_latents(database, 0)
        yield database
        database.dispose()


def found_plainly(database: Database, wanted: LatentFilter, order: str) -> list[str]:
    """The plain twin: read everything, keep what is wanted, sort in Python."""
    with database.session_scope() as session:
        rows = list(session.scalars(select(Latent)))
        job = None if wanted.job_id is None else session.get_one(Job, wanted.job_id)
        query = select(CoreLatent.latent_id).join(Core, Core.id == CoreLatent.core_id)
        query = query.join(Cycle, Cycle.id.in_([Core.cycle_id, Core.given_cycle_id]))
        held = set(session.scalars(query.where(Cycle.job_id == wanted.job_id)))
    if job is not None:
        is_own = job.kind == "distillation"
        rows = [row for row in rows if (row.origin_job_id == job.id if is_own else row.id in held)]
    for name in ("origin_job_id", "origin_cycle", "origin_kind"):
        value = getattr(wanted, name)
        rows = [row for row in rows if value is None or getattr(row, name) == value]
    for name in SORT_KEYS:
        least = getattr(wanted, f"min_{name}")
        rows = [row for row in rows if least is None or _number(getattr(row, name)) >= least]
    if wanted.is_alive is not None:
        rows = [r for r in rows if (r.last_index is not None and r.dropped_at is None) == wanted.is_alive]
    rows.sort(key=lambda row: (_number(getattr(row, order, 0)), row.id), reverse=order != "oldest")
    return [row.public_id for row in rows]


def _number(value: float | None) -> float:
    return float("-inf") if value is None else value


def read_all(database: Database, wanted: LatentFilter, order: Any, limit: int) -> list[str]:
    seen: list[str] = []
    cursor = None
    while True:
        with database.session_scope() as session:
            page = list_latents(session, wanted, order=order, cursor=cursor, limit=limit)
        assert len(page.items) <= limit
        seen += [latent.public_id for latent in page.items]
        cursor = page.next_cursor
        if cursor is None:
            return seen


@st.composite
def filters(draw: st.DrawFn) -> dict[str, Any]:
    """Filters, with places of jobs instead of their ids."""
    maybe = lambda values: st.none() | values  # noqa: E731
    origin = draw(maybe(st.integers(0, 3)))
    return {
        "job_id": draw(maybe(st.integers(0, 3))),
        "origin_job_id": origin,
        "origin_cycle": None if origin is None else draw(maybe(st.integers(0, 3))),
        "origin_kind": draw(maybe(st.sampled_from(KINDS))),
        "min_times_selected": draw(maybe(st.integers(0, 4))),
        "min_last_share": draw(maybe(st.sampled_from([0.0, 0.125, 0.3, 2.0]))),
        "min_max_share": draw(maybe(st.sampled_from([0.0, 0.25, 0.9]))),
        "is_alive": draw(maybe(st.booleans())),
    }


@pytest.mark.parametrize("stretch", [3, 1000])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=filters(), order=st.sampled_from(ORDERS), limit=st.sampled_from([2, 5, 17, 200]))
def test_every_filter_in_every_order_gives_what_a_plain_search_gives(
    planted: Database, monkeypatch: pytest.MonkeyPatch, stretch: int, chosen: Any, order: str, limit: int
) -> None:
    monkeypatch.setattr(latents, "STRETCH", stretch)
    with planted.session_scope() as session:
        jobs = list(session.scalars(select(Job.id).order_by(Job.id)))
    named = {
        name: jobs[value] if name.endswith("job_id") and value is not None else value
        for name, value in chosen.items()
    }
    wanted = LatentFilter(**named)
    assert read_all(planted, wanted, order, limit) == found_plainly(planted, wanted, order)


def test_a_page_is_of_its_order_and_a_cycle_is_of_a_job(planted: Database) -> None:
    with planted.session_scope() as session:
        cursor = list_latents(session, LatentFilter(), order="max_share", limit=3).next_cursor
        for order in ("newest", "times_selected", "last_share"):
            with pytest.raises(BadRequest):
                list_latents(session, LatentFilter(), order=order, cursor=cursor)
        with pytest.raises(InvalidConfig, match="origin_job_id"):
            list_latents(session, LatentFilter(origin_cycle=1))
        with pytest.raises(NotFound):
            list_latents(session, LatentFilter(job_id="job_none"))


def test_every_latent_stands_in_one_page_while_others_are_added(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "STRETCH", 4)
    plant_latents(database, 0)
    wanted, seeds = LatentFilter(is_alive=True), count(1)
    for order in ORDERS:
        before = found_plainly(database, wanted, order)
        seen: list[str] = []
        cursor = None
        for number in range(1000):
            with database.session_scope() as session:
                page = list_latents(session, wanted, order=order, cursor=cursor, limit=3)
            seen += [latent.public_id for latent in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
            if number < 5:
                plant_latents(database, next(seeds), n_jobs=1, n_each=4)
        assert len(set(seen)) == len(seen)
        assert [name for name in seen if name in set(before)] == before


@pytest.fixture(scope="module")
def many(services: RunningServices) -> Iterator[Database]:
    with fresh_database(services) as url:
        plant(url.replace("+psycopg", ""), n_rows=N_ROWS, shape=SMALL)
        database = Database(url, wake_up=lambda _: None)
        yield database
        database.dispose()


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_is_read_along_its_index(many: Database, order: Any) -> None:
    job_id = f"job_{3:032x}"
    index = {"oldest": "pk_latents", "newest": "pk_latents"}.get(order, f"ix_latents_{order}")
    own = "latents_origin_"
    """Any that begins with the job: of a small one's latents it may be cheaper to sort them."""
    with many.session_scope() as session:
        cursor = list_latents(session, LatentFilter(), order=order).next_cursor
    for wanted, used in (
        (LatentFilter(), index),
        (LatentFilter(min_times_selected=9, is_alive=True, min_max_share=0.01), index),
        (LatentFilter(origin_job_id=job_id, is_alive=False), own),
    ):
        for after in (None, cursor):
            (plan,) = plans_of(
                many,
                lambda session: list_latents(session, wanted, order=order, cursor=after, limit=20),  # noqa: B023
            )
            assert used in plan
            assert "Seq Scan on latents" not in plan


def test_a_story_a_matrix_and_a_trainings_latents_are_read_by_index_alone(many: Database) -> None:
    job_id, training = f"job_{5:032x}", f"job_{1_000_000_051:032x}"
    story = plans_of(many, lambda session: tell_story(session, f"{job_id}.4.35"))
    origins = plans_of(many, lambda session: view_origins(session, job_id))
    held = plans_of(many, lambda session: list_latents(session, LatentFilter(job_id=training)))
    descendants = plans_of(many, lambda session: list_descendants(session, f"{job_id}.4.35"))
    assert (len(story), len(origins), len(descendants)) == (3, 2, 2)
    for index in ("core_latents_latent_id", "core_drops_latent_id", "latent_matches_a_latent_id"):
        assert f"ix_{index}" in "".join(story)
    assert "pk_cycle_origins" in "".join(origins)
    assert "uq_core_latents_core_id_latent_id" in "".join(held)
    for plan in (*story, *origins, *held, *descendants):
        assert read_whole([plan]) <= {"owners"}


def told_plainly(session: Session, public_id: str) -> dict[str, Any]:
    """The plain twin of a story: each row by itself."""
    latent = session.scalars(select(Latent).where(Latent.public_id == public_id)).one()
    jobs: dict[str, Any] = {}
    for place in session.scalars(select(CoreLatent).where(CoreLatent.latent_id == latent.id)):
        core = session.get_one(Core, place.core_id)
        cycle = session.get_one(Cycle, core.cycle_id or core.given_cycle_id)
        kind = "selected" if core.cycle_id else "given"
        entry = (kind, cycle.index, core.id, core.kind, place.core_index, place.rank, place.share)
        jobs.setdefault(cycle.job_id, []).append(entry)
    for drop in session.scalars(select(CoreDrop).where(CoreDrop.latent_id == latent.id)):
        cycle = session.get_one(Cycle, drop.cycle_id)
        jobs[cycle.job_id].append(("drop", cycle.index, drop.score, drop.share, drop.rank))
    matches = list(
        session.scalars(
            select(LatentMatch).where(
                (LatentMatch.a_latent_id == latent.id) | (LatentMatch.b_latent_id == latent.id)
            )
        )
    )
    ids = [match.a_latent_id + match.b_latent_id - latent.id for match in matches]
    alike = sorted(session.get_one(Latent, number).public_id for number in ids)
    return {"jobs": {job_id: sorted(jobs[job_id], key=str) for job_id in jobs}, "alike": alike}


def entries_of(path: JobPath) -> list[tuple[Any, ...]]:
    given = [] if path.given is None else [("given", path.given)]
    places = given + [("selected", selection) for selection in path.selections]
    entries: list[tuple[Any, ...]] = [
        (kind, at.cycle_index, at.core_id, at.core_kind, at.core_index, at.rank, at.share)
        for kind, at in places
    ]
    return sorted(entries + [("drop", *drop) for drop in path.drops], key=str)


@pytest.mark.parametrize("row", [0, 3, 19, 20, 27, 31, 35])
def test_a_story_is_what_a_plain_search_finds(many: Database, row: int) -> None:
    born = max(0, (row - SMALL.n_core) // SMALL.n_new + 1)
    for number in (0, 5, N_JOBS - 1):
        public_id = f"job_{number:032x}.{born}.{row}"
        with many.session_scope() as session:
            plainly = told_plainly(session, public_id)
            story = tell_story(session, public_id)
        paths = [story.own, *story.descendants.items]
        assert {path.job.job_id: entries_of(path) for path in paths} == plainly["jobs"]
        assert [path.job.job_id for path in paths] == sorted(plainly["jobs"])
        assert sorted(alike.latent_id for alike in story.matches) == plainly["alike"]
        assert [at.cycle_index for at in story.own.selections] == sorted(
            at.cycle_index for at in story.own.selections
        )


def test_a_story_tells_so_many_descendants_and_the_others_follow_in_pages(
    many: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    public_id = f"job_{5:032x}.4.35"
    with many.session_scope() as session:
        whole = tell_story(session, public_id)
        monkeypatch.setattr(latent_stories, "DESCENDANTS", 1)
        story = tell_story(session, public_id)
        rest = list_descendants(session, public_id, cursor=story.descendants.next_cursor, limit=1)
    assert whole.descendants.next_cursor is None
    assert story.descendants.items + rest.items == whole.descendants.items
    assert (len(story.descendants.items), len(rest.items), rest.next_cursor) == (1, 1, None)
    assert story.own == whole.own
