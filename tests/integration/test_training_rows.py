"""What a training leaves in the database: the core that it was given, and latents that stay who they are."""

from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import delete as delete_rows
from sqlalchemy import func, select, update

from dmsae.errors import Conflict, CycleFailed
from dmsae.service import purging
from dmsae.service.claims import Claim
from dmsae.service.database import Database
from dmsae.service.deleting import delete_job, is_given_to_unfinished
from dmsae.service.lineage import view_core, view_origins
from dmsae.service.settings import Settings
from dmsae.service.source_tables import CycleSource
from dmsae.service.states import move_job
from dmsae.service.tables import Artifact, Attempt, Core, CoreLatent, Cycle, Job, Latent
from tests.finished import claim_of, finish_cycles
from tests.planting import cycle_states, job_state, plant_worker
from tests.serving import served
from tests.training_rows import given_entry, record, submit_distillations, submit_trainings, training_lineage


class Around(NamedTuple):
    """A training that was claimed, beside the distillation that its core comes from."""

    database: Database
    owner_id: str
    worker_id: str
    source: str
    """Its last core: 0.3 (selected three times) and 1.20 (twice)."""
    training: str
    claim: Claim

    def given(self) -> list[dict[str, Any]]:
        """The entries of the whole core given."""
        return [
            given_entry(0, f"{self.source}.0.3", parent_core_index=0, sae_index=0, score=0.5, rank=0),
            given_entry(1, f"{self.source}.1.20", parent_core_index=1, sae_index=1, score=0.4, rank=1),
        ]


def around(database: Database, *, kind: str = "selected", **fields: Any) -> Around:
    worker_id = database.run(lambda session: plant_worker(session, "cpu"))
    (source,) = submit_distillations(database)
    finish_cycles(database, worker_id=worker_id)
    core = {"kind": kind, "cycle": {"job_id": source.job.id}, **fields}
    (training,) = submit_trainings(database, core=core)
    claim = claim_of(database, worker_id)
    return Around(database, source.job.owner_id, worker_id, source.job.id, training.job.id, claim)


def kept_columns(database: Database, job_id: str) -> dict[str, tuple[Any, ...]]:
    with database.session_scope() as session:
        found = session.scalars(select(Latent).where(Latent.origin_job_id == job_id))
        names = ("times_selected", "last_index", "dropped_at", "last_share", "max_share", "origin_kind")
        return {latent.public_id: tuple(getattr(latent, name) for name in names) for latent in found}


def test_a_claim_names_the_files_of_the_cycle_that_its_core_comes_from(database: Database) -> None:
    found = around(database)
    folder = f"{found.source}.2"
    assert [file.name for file in found.claim.source_files] == [f"{folder}/core/core.json"]
    assert found.claim.input_files == ()
    assert found.claim.spec["config"]["core"]["cycle"] == {"job_id": found.source, "cycle_index": 2}
    record(database, found.claim, training_lineage(found.claim, found.given(), kept=[0, 1], new=[]))
    submit_trainings(database, core={"kind": "energy", "cycle": {"job_id": found.training}})
    names = {file.name for file in claim_of(database, found.worker_id).source_files}
    wanted = {"core/core.json", "core/core.safetensors", "lineage.json", "sae/cfg.json", "scores.safetensors"}
    assert names == {f"{found.training}.0/{name}" for name in wanted}


def test_a_training_records_the_core_given_and_leaves_its_latents_as_they_were(
    database: Database, settings: Settings
) -> None:
    found = around(database)
    before = kept_columns(database, found.source)
    lineage = training_lineage(found.claim, found.given(), kept=[0], new=[40])
    lineage["core"][0]["times_selected"] = 4
    assert record(database, found.claim, lineage) == "succeeded"
    assert kept_columns(database, found.source) == before
    with database.session_scope() as session:
        assert (job_state(session, found.training), cycle_states(session, found.training)) == (
            "succeeded",
            ["succeeded"],
        )
        cycle = session.scalars(select(Cycle).where(Cycle.job_id == found.training)).one()
        given = session.get_one(Core, cycle.input_core_id)
        assert (given.kind, given.n_latents, given.overlap, given.is_weak_control) == (
            "selected",
            2,
            1.0,
            False,
        )
        assert given.object_prefix.endswith("/given/")
        assert given.provenance == session.get_one(Core, cycle.output_core_id).provenance
        source_core = view_core(session, found.source).core_id
        places = session.scalars(
            select(CoreLatent).where(CoreLatent.core_id == given.id).order_by("core_index")
        )
        assert [(p.parent_core_id, p.parent_core_index, p.score) for p in places] == [
            (source_core, 0, 0.5),
            (source_core, 1, 0.4),
        ]
        members = view_core(session, found.training).members.items
        assert [(m.latent.public_id, m.place.parent_core_id, m.place.times_selected) for m in members] == [
            (f"{found.source}.0.3", given.id, 4),
            (f"{found.training}.0.40", None, 1),
        ]
        origins = view_origins(session, found.training)
        assert origins.origins == [(found.training, 0), (found.source, 0)]
        assert origins.matrix == [[1, 1]]
    with served(settings) as api:
        check_answers(api, found)


def check_answers(api: httpx.Client, found: Around) -> None:
    shown = api.get(f"/trainings/{found.training}").json()
    assert (shown["given"]["kind"], shown["given"]["n_latents"], shown["given"]["overlap"]) == (
        "selected",
        2,
        1.0,
    )
    assert shown["given"]["core_id"] == shown["cycles"][0]["input_core_id"]
    assert shown["core_id"] == shown["cycles"][0]["output_core_id"]
    latents = api.get(f"/trainings/{found.training}/lineage").json()["items"]
    told = {row["latent_id"]: (row["given"] is not None, len(row["path"])) for row in latents}
    assert told == {
        f"{found.source}.0.3": (True, 1),
        f"{found.source}.1.20": (True, 0),
        f"{found.training}.0.40": (False, 1),
    }
    often = api.get(f"/trainings/{found.training}/core", params={"min_selected": 2}).json()["items"]
    assert [latent["latent_id"] for latent in often] == [f"{found.source}.0.3"]


def test_random_directions_are_latents_of_the_training_itself(database: Database) -> None:
    found = around(database, kind="random_directions", seed=5)
    names = [f"{found.training}.0.{place}" for place in (0, 1)]
    given = [
        given_entry(place, name, origin_kind="random_directions", encoder_norm=1.1)
        for place, name in enumerate(names)
    ]
    about = {"kind": "random_directions", "seed": 5, "overlap": None, "is_weak_control": False}
    record(database, found.claim, training_lineage(found.claim, given, kept=[1], new=[9], **about))
    columns = kept_columns(database, found.training)
    assert columns[names[0]] == (0, None, 0, None, None, "random_directions")
    assert columns[names[1]] == (1, 0, None, 0.25, 0.25, "random_directions")


def test_other_latents_of_the_same_sae_become_known_and_were_never_selected(database: Database) -> None:
    found = around(database, kind="random_latents")
    given = [
        given_entry(0, f"{found.source}.2.700", sae_index=700, density=0.1),
        given_entry(1, f"{found.source}.1.20", sae_index=1, density=0.2, parent_core_index=1),
    ]
    about = {"kind": "random_latents", "seed": 0, "overlap": 0.5}
    record(database, found.claim, training_lineage(found.claim, given, kept=[0], new=[], **about))
    assert kept_columns(database, found.source)[f"{found.source}.2.700"][:4] == (0, None, None, None)


def test_a_core_given_that_contradicts_the_cycle_it_comes_from_is_refused_whole(database: Database) -> None:
    found = around(database)
    swapped = found.given()
    swapped[0]["parent_core_index"], swapped[1]["parent_core_index"] = 1, 0
    foreign = [given_entry(0, f"{found.source}.0.99", sae_index=99)]
    gap = [{**entry, "core_index": entry["core_index"] + 1} for entry in found.given()]
    for given in (swapped, foreign, gap, [found.given()[0], {**found.given()[0], "core_index": 1}]):
        with pytest.raises(CycleFailed, match="core given"):
            record(database, found.claim, training_lineage(found.claim, given, kept=[], new=[50]))
    untold = training_lineage(found.claim, [], kept=[], new=[50])
    with pytest.raises(CycleFailed, match="of none where there was one"):
        record(database, found.claim, {**untold, "given": None})
    with database.session_scope() as session:
        assert job_state(session, found.training) == "running"
        assert session.scalars(select(Core).where(Core.given_cycle_id.is_not(None))).all() == []


def test_what_a_training_starts_from_is_not_deleted_before_it_has_ended(database: Database) -> None:
    found = around(database)

    def delete(job_id: str) -> None:
        database.run(lambda session: delete_job(session, job_id, owner_id=found.owner_id))

    with pytest.raises(Conflict, match=found.training):
        delete(found.source)
    with database.session_scope() as session:
        used = session.scalars(select(Job.id).where(is_given_to_unfinished())).all()
        assert used == [found.source]
    record(database, found.claim, training_lineage(found.claim, found.given(), kept=[0], new=[40]))
    delete(found.source)
    with database.session_scope() as session:
        session.execute(update(Attempt).values(closed_at=func.now() - func.make_interval(0, 0, 0, 2)))
        session.execute(update(Job).where(Job.deleted_at.is_not(None)).values(cleared_at=func.now()))
        assert purging.jobs_to_purge(session, limit=9) == []  # its latents live on in the training's core
        assert view_core(session, found.training).n_latents == 2
    delete(found.training)
    with database.session_scope() as session:
        session.execute(update(Job).where(Job.deleted_at.is_not(None)).values(cleared_at=func.now()))
        session.execute(delete_rows(Artifact))
        for job_id in (found.training, found.source):
            assert purging.jobs_to_purge(session, limit=9) == [job_id]
            while not purging.purge_job(session, job_id, limit=2):
                pass
        for table in (Core, CoreLatent, Latent, Cycle, CycleSource):
            assert session.scalars(select(func.count()).select_from(table)).one() == 0


def test_a_training_around_nothing_is_recorded_without_a_core_given(database: Database) -> None:
    worker_id = database.run(lambda session: plant_worker(session, "cpu"))
    (training,) = submit_trainings(database, core={"kind": "none", "n_matched": 9}, preset="demo")
    claim = claim_of(database, worker_id)
    assert claim.source_files == ()
    told = training_lineage(claim, [], kept=[], new=[50])
    assert record(database, claim, {**told, "given": None}) == "succeeded"
    with database.session_scope() as session:
        cycle = session.scalars(select(Cycle).where(Cycle.job_id == training.job.id)).one()
        assert cycle.input_core_id is None
        assert not move_job(session, training.job.id, "failed")
