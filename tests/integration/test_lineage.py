"""Which cycle a latent came from, and what became of it."""

from collections.abc import Callable

import pytest

from dmsae.errors import BadRequest, NotFound
from dmsae.service.database import Database
from dmsae.service.lineage import CoreFilter, CoreView, list_lineage, view_core, view_origins
from tests.finished import finish_cycles
from tests.planting import plant_job


@pytest.fixture
def job_id(database: Database) -> str:
    job_id = database.run(lambda session: plant_job(session, "cpu"))
    finish_cycles(database)
    return job_id


@pytest.fixture
def core_of(database: Database, job_id: str) -> Callable[..., CoreView]:
    def core_of(*, cursor: str | None = None, limit: int = 1000, **wanted: int) -> CoreView:
        with database.session_scope() as session:
            return view_core(session, job_id, CoreFilter(**wanted), cursor=cursor, limit=limit)

    return core_of


def rows(core: CoreView) -> list[tuple[int, int, int]]:
    members = ((member.latent, member.place) for member in core.members.items)
    return [(latent.origin_cycle, latent.origin_index, place.times_selected) for latent, place in members]


def test_the_core_is_the_last_cycles_in_the_order_of_its_rows(
    core_of: Callable[..., CoreView],
) -> None:
    core = core_of()
    assert (core.cycle_index, core.n_latents) == (2, 2)
    assert rows(core) == [(0, 3, 3), (1, 20, 2)]
    assert [member.place.parent_core_index for member in core.members.items] == [0, 2]


def test_an_earlier_core_counts_selections_up_to_then(core_of: Callable[..., CoreView]) -> None:
    assert rows(core_of(cycle_index=1)) == [(0, 3, 2), (0, 8, 2), (1, 20, 1)]
    assert rows(core_of(cycle_index=0)) == [(0, 3, 1), (0, 5, 1), (0, 8, 1)]


def test_min_selected_keeps_what_was_selected_in_so_many_unbroken_cycles(
    core_of: Callable[..., CoreView],
) -> None:
    assert rows(core_of(min_selected=2)) == [(0, 3, 3), (1, 20, 2)]
    assert rows(core_of(min_selected=3)) == [(0, 3, 3)]
    assert rows(core_of(min_selected=4)) == []
    assert core_of(min_selected=3).n_latents == 2


def test_a_core_is_read_in_pages(core_of: Callable[..., CoreView]) -> None:
    first = core_of(cycle_index=1, limit=2)
    second = core_of(cycle_index=1, limit=2, cursor=first.members.next_cursor)
    assert rows(first) + rows(second) == rows(core_of(cycle_index=1))
    assert second.members.next_cursor is None
    for cursor in ("x", "WzFd!", "W10", "WyJhIl0", "é", "WzE4NDQ2NzQ0MDczNzA5NTUxNjE2XQ"):
        with pytest.raises(BadRequest):
            core_of(cursor=cursor)


def test_lineage_tells_every_latents_path_and_when_it_was_dropped(database: Database, job_id: str) -> None:
    with database.session_scope() as session:
        page = list_lineage(session, job_id)
        story = {
            path.latent.public_id.removeprefix(job_id): (
                [place.cycle_index for place in path.places],
                path.latent.dropped_at,
                path.latent.times_selected,
            )
            for path in page.items
        }
    assert story == {
        ".0.3": ([0, 1, 2], None, 3),
        ".0.5": ([0], 1, 1),
        ".0.8": ([0, 1], 2, 2),
        ".1.20": ([1, 2], None, 2),
    }


def test_lineage_is_read_in_pages_without_gaps(database: Database, job_id: str) -> None:
    seen: list[str] = []
    cursor = None
    with database.session_scope() as session:
        for _ in range(4):
            page = list_lineage(session, job_id, cursor=cursor, limit=1)
            seen += [path.latent.public_id for path in page.items]
            cursor = page.next_cursor
    assert cursor is None
    assert len(set(seen)) == 4


def test_origins_is_the_matrix_of_cycle_and_origin(database: Database, job_id: str) -> None:
    with database.session_scope() as session:
        found = view_origins(session, job_id)
    assert found.origins == [(job_id, 0), (job_id, 1), (job_id, 2)]
    assert found.matrix == [[3, 0, 0], [2, 1, 0], [1, 1, 0]]


def test_a_distillation_without_a_finished_cycle_has_no_core(database: Database) -> None:
    job_id = database.run(lambda session: plant_job(session, "cpu"))
    with database.session_scope() as session:
        with pytest.raises(NotFound):
            view_core(session, job_id)
        assert view_origins(session, job_id).matrix == []
        assert list_lineage(session, job_id).items == []


def test_what_is_no_distillation_is_not_found(database: Database) -> None:
    job_id = database.run(lambda session: plant_job(session, "cpu"))
    with database.session_scope() as session:
        for unknown in ("job_none", job_id + "x"):
            with pytest.raises(NotFound):
                list_lineage(session, unknown)
